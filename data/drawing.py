"""How a portrait is drawn: a face, its light, hair and background, by numpy from one random generator.

The faces separate what the mean of a VAE can hold from what it cannot: skin is smooth, so a code of a few
numbers tells it all; strands of hair, backgrounds and cloth are fine texture, which belongs into the std.
`regions` says which pixel is which.

Coordinates: a *head unit* is half the height of the skull; u points right, v down, from v = -1 (crown) to
v = 1 (chin). Maps are (H, W) = (size, size); colours are (3, 1, 1) or (3, H, W), in [0, 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import cos, pi, sin

import numpy as np

REGIONS = ("background", "skin", "hair", "eyes", "brows", "mouth", "glasses", "clothes")
BACKGROUND, SKIN, HAIR, EYES, BROWS, MOUTH, GLASSES, CLOTHES = range(len(REGIONS))

VERSION = 1  # of the drawing: raise it with every change that moves a pixel, caches are keyed by it


def _palette(colours: str) -> np.ndarray:
    """(N, 3) in [0, 1] from N hexadecimal colours."""
    return np.array([list(bytes.fromhex(colour)) for colour in colours.split()]) / 255


SKINS = _palette("f7d1ba f0c2a3 deab87 c48f6b 9c6e4f 734c38 573b2b")  # fair to dark, mixed between
DARK_HAIRS = _palette("1a1717 1a1717 1a1717 211a17 211a17 38261c 38261c 999694")
FAIR_HAIRS = _palette("5c3d29 5c3d29 855e3b 855e3b cca366 dbbf8c 75331c ad5c29 d6d4cf")
IRISES = _palette("4c2b17 613d1f 4775a8 577a57 73808a")  # the browns first


@dataclass(frozen=True)
class Portrait:
    """image (H, W, 3) float32 in [0, 1]; regions (H, W) uint8, indices into REGIONS."""

    image: np.ndarray
    regions: np.ndarray


@dataclass(frozen=True)
class Head:
    """What every part of a drawing shares: coordinates (H, W) in head units, light and colours.

    (x, y) stand upright with the body, (u, v) tilt with the head, (fu, fv) lie on the face and turn with it.
    """

    x: np.ndarray
    y: np.ndarray
    u: np.ndarray
    v: np.ndarray
    fu: np.ndarray
    fv: np.ndarray
    radius: np.ndarray  # 1 on the outline of the skull
    width: float  # half the width of the skull
    pixel: float  # edge of a pixel in head units
    light: tuple[float, float, float]  # unit vector towards the light; z to the viewer
    woman: bool  # long hair, lashes and lipstick are likelier; beards are not
    skin: np.ndarray
    hair: np.ndarray


class Canvas:
    """image (3, H, W) and regions (H, W); later paint covers earlier paint."""

    def __init__(self, size: int) -> None:
        self.image = np.zeros((3, size, size), np.float32)
        self.regions = np.zeros((size, size), np.uint8)

    def paint(self, cover: np.ndarray, colour: np.ndarray, region: int | None = None) -> None:
        """Mix in `colour` with weight `cover` (H, W); pixels at least half covered become `region`."""
        self.image += cover * (colour - self.image)
        if region is not None:
            self.regions[cover >= 0.5] = region


def draw_portrait(rng: np.random.Generator, size: int) -> Portrait:
    """Draw one face; size >= 16. Equal generators give the same person at every size.

    For that, every part takes as many numbers from `rng` at one size as at another.
    """
    head = _pose(rng, size)
    canvas = Canvas(size)
    _background(canvas, head, rng)
    hair = _style_hair(head, rng)
    if hair.long:
        canvas.paint(hair.shape, 0.55 * hair.colour, HAIR)  # what hangs behind the neck
    _body(canvas, head, rng)
    _skin(canvas, head, hair, rng)
    _eyes(canvas, head, rng)
    _brows(canvas, head, rng)
    _beard(canvas, head, hair, rng)
    _mouth(canvas, head, rng)
    canvas.paint(hair.shape * _inside(-hair.edge, head.pixel), hair.colour, HAIR)
    _glasses(canvas, head, rng)
    warmth = rng.uniform(-0.04, 0.04)
    canvas.image *= _colour(1 + warmth, 1, 1 - warmth) * rng.uniform(0.9, 1.08)
    image = np.clip(canvas.image, 0, 1).transpose(1, 2, 0)
    return Portrait(np.ascontiguousarray(image), canvas.regions)


# -- shapes and textures


def _colour(*rgb: float) -> np.ndarray:
    return np.array(rgb, np.float32).reshape(3, 1, 1)


def _pick(rng: np.random.Generator, options: Sequence):
    return options[int(rng.integers(len(options)))]


def _unit(x: np.ndarray) -> np.ndarray:
    return np.minimum(np.maximum(x, 0), 1)


def _inside(distance: np.ndarray, pixel: float) -> np.ndarray:
    """Coverage of the shape `distance` < 0, antialiased: its edge is one pixel wide."""
    return _unit(0.5 - distance / pixel)


def _line(distance: np.ndarray, half_width, pixel: float) -> np.ndarray:
    """Coverage of a line, `distance` from its middle; at least a pixel wide, or small sizes would lose it."""
    return _inside(np.abs(distance) - np.maximum(half_width, 0.5 * pixel), pixel)


def _bump(x: np.ndarray, y: np.ndarray, width: float, height: float) -> np.ndarray:
    return np.exp(-((x / width) ** 2) - (y / height) ** 2)


@cache
def _cells(size: int, cells: int) -> np.ndarray:
    """Weights (size, cells + 1) that blur a grid; rows of unit norm keep white noise at variance 1."""
    position = (np.arange(size) + 0.5) / size * cells
    weights = np.exp(-2 * (position[:, None] - np.arange(cells + 1)) ** 2)
    return (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)


def _cloud(rng: np.random.Generator, size: int, rows: int, columns: int) -> np.ndarray:
    """Smooth noise (H, W), mean 0 and variance 1, in rows x columns grains."""
    grid = rng.standard_normal((rows + 1, columns + 1), np.float32)
    return _cells(size, rows) @ grid @ _cells(size, columns).T


def _grain(rng: np.random.Generator, size: int) -> np.ndarray:
    """White noise (H, W) of variance 1, at the price of one number from `rng` whatever the size."""
    return np.random.default_rng(rng.integers(2**63)).standard_normal((size, size), np.float32)


def _strands(rng: np.random.Generator, across: np.ndarray, along: np.ndarray) -> np.ndarray:
    """Noise (H, W) in [-1, 1] that changes within one unit of `across` and of `along`, linear in between."""
    table = rng.uniform(-1, 1, (4, 128)).astype(np.float32)
    column, row = np.floor(across), np.floor(along)
    right, down = across - column, along - row
    column, row = column.astype(np.intp), row.astype(np.intp)
    near, far = (
        np.take(table, (r & 3) * 128 + (column & 127)) * (1 - right)
        + np.take(table, (r & 3) * 128 + (column + 1 & 127)) * right
        for r in (row, row + 1)
    )
    return near + down * (far - near)


# -- the parts of a picture, from the back to the front


def _pose(rng: np.random.Generator, size: int) -> Head:
    scale = rng.uniform(0.64, 0.74)  # head unit over half the picture's height
    tilt, nod = rng.normal(0, 0.09), rng.uniform(-0.1, 0.1)  # radians, as is turn
    turn = min(max(rng.normal(0, 0.2), -0.45), 0.45)
    woman = bool(rng.random() < 0.5)
    width = rng.uniform(0.68, 0.78) - 0.02 * woman
    jaw = rng.uniform(0.10, 0.30) + 0.06 * woman

    ticks = (2 * np.arange(size, dtype=np.float32) + 1) / size - 1
    x = np.broadcast_to((ticks - rng.normal(0, 0.04)) / scale, (size, size))
    y = np.broadcast_to(((ticks - rng.normal(0.03, 0.03)) / scale)[:, None], (size, size))
    u = cos(tilt) * x + sin(tilt) * y
    v = cos(tilt) * y - sin(tilt) * x
    half = width * (1 - jaw * np.maximum(v, 0) ** 2).clip(0.3)  # the face narrows towards the chin
    radius = np.sqrt((u / half) ** 2 + v**2)
    # A face is an ellipsoid: turned by b, what was at sin(a - b) = sin a cos b - cos a sin b is at sin a.
    depth = np.sqrt(np.maximum(1 - radius**2, 0))
    fu = cos(turn) * u - sin(turn) * half * depth
    fv = cos(nod) * v - sin(nod) * depth

    tone = rng.uniform(0, 1) ** 1.5 * (len(SKINS) - 1)
    skin = [np.interp(tone, range(len(SKINS)), channel) for channel in SKINS.T] + rng.uniform(-0.02, 0.02, 3)
    hair = _pick(rng, [*DARK_HAIRS, *FAIR_HAIRS] if tone < 2.5 else DARK_HAIRS) * rng.uniform(0.8, 1.15)
    light = np.array([rng.uniform(-0.8, 0.8), rng.uniform(-0.7, -0.1), 0.8])
    return Head(
        x=x,
        y=y,
        u=u,
        v=v,
        fu=fu,
        fv=fv,
        radius=radius,
        width=width,
        pixel=2 / size / scale,
        light=tuple((light / np.linalg.norm(light)).tolist()),
        woman=woman,
        skin=_colour(*skin),
        hair=_colour(*hair),
    )


def _muted(rng: np.random.Generator, dark: float, bright: float, saturation: float) -> np.ndarray:
    """A colour (3, 1, 1), never neon, from red over green to blue: purple walls are rare."""
    grey, hue = rng.uniform(dark, bright), rng.uniform(0, 4.4)
    tint = [cos(hue), cos(hue - 2.1), cos(hue + 2.1)]
    strength = rng.uniform(0.1, 1) * saturation
    return _colour(*[grey * (1 + strength * t) for t in tint])


def _background(canvas: Canvas, head: Head, rng: np.random.Generator) -> None:
    """A gradient of two colours under one of six textures, with a fine grain."""
    size = canvas.regions.shape[0]
    first, second = _muted(rng, 0.2, 0.8, 0.22), _muted(rng, 0.2, 0.8, 0.22)
    angle, pitch = rng.uniform(0, 2 * pi), rng.uniform(0.22, 0.4)
    blend = _unit(0.5 + 0.25 * (cos(angle) * head.x + sin(angle) * head.y))
    kind = int(rng.integers(6))
    if kind == 0:  # plaster
        pattern = 0.5 * _cloud(rng, size, 8, 8) + 0.6 * _cloud(rng, size, 24, 24)
    elif kind == 1:  # leaves
        pattern = 1.8 * np.tanh(2 * _cloud(rng, size, 14, 14)) * (0.5 + 0.3 * _cloud(rng, size, 5, 5))
    elif kind == 2:  # curtain
        pattern = 0.9 * _cloud(rng, size, 2, 14) + 0.6 * _cloud(rng, size, 4, 40)
    elif kind == 3:  # bricks
        row = np.floor(head.y / pitch)
        mortar = np.minimum((head.y / pitch) % 1, 2 * ((head.x / pitch / 2 + row / 2) % 1))
        pattern = 0.7 * _cloud(rng, size, 20, 20) - 1.5 * _inside(mortar - 0.16, head.pixel / pitch)
    elif kind == 4:  # lights out of focus
        pattern = -0.8 + 0.4 * _cloud(rng, size, 6, 6)
        for _ in range(9):
            radius = rng.uniform(0.1, 0.3)
            away = np.hypot(head.x - rng.uniform(-1.7, 1.7), head.y - rng.uniform(-1.7, 1.2)) - radius
            pattern += rng.uniform(0.8, 1.6) * _inside(away, 2 * head.pixel)
    else:  # wood
        rings = np.sin(2 * _cloud(rng, size, 3, 12) + 20 * pitch * head.y)
        pattern = 1.2 * rings + 0.4 * _cloud(rng, size, 48, 8)
    grain = _grain(rng, size)
    shade = 1 + rng.uniform(0.12, 0.22) * pattern + rng.uniform(0.05, 0.10) * grain
    canvas.image[:] = (first + blend * (second - first)) * np.maximum(shade, 0.1)


@dataclass(frozen=True)
class Hair:
    """A hairstyle: maps (H, W), and its colour (3, H, W)."""

    long: bool
    shape: np.ndarray  # coverage, the face included
    edge: np.ndarray  # distance to the hairline, negative where the face is free
    strand: np.ndarray  # texture in [-1, 1]
    colour: np.ndarray


def _style_hair(head: Head, rng: np.random.Generator) -> Hair:
    """A style is a hairline (top, rise, parting), an outline (volume, length, flare), a flow of strands."""
    kind = _pick(rng, ("fringe", "parted", "parted", "back"))
    bald = not head.woman and rng.random() < 0.1
    long = not bald and rng.random() < (0.8 if head.woman else 0.08)
    if kind == "fringe":
        top, rise, parting = rng.uniform(-0.60, -0.40), rng.uniform(0.0, 0.2), rng.uniform(-0.1, 0.1)
    elif kind == "parted":
        top, rise, parting = rng.uniform(-0.85, -0.70), rng.uniform(0.5, 0.9), rng.uniform(-0.4, 0.4)
    else:
        top, rise, parting = rng.uniform(-0.70, -0.58), rng.uniform(0.2, 0.5), rng.uniform(-0.1, 0.1)
    volume = rng.uniform(0.08, 0.28) if long else rng.uniform(0.03, 0.16)
    length = rng.uniform(0.7, 2.0) if long else rng.uniform(-0.05, 0.2)
    flare = rng.uniform(-0.05, 0.2) if long else -0.25
    side = rng.uniform(0.8, 1.0) if long else rng.uniform(0.86, 0.93)  # where hair begins to cover the cheeks
    wave, turns, phase = rng.uniform(0, 0.06) * long, rng.uniform(4, 9), rng.uniform(0, 6)
    curls = rng.uniform(0.1, 0.25) if rng.random() < 0.2 else 0.0
    temple = 0.95  # where the hairline turns down
    if bald:
        top, temple, volume = -1.5, 3.0, 0.02  # a wreath is left

    size = head.u.shape[0]
    u = head.u + wave * np.sin(turns * head.v + phase)
    v = head.v
    if curls:
        u = u + curls * 0.5 * _cloud(rng, size, 16, 16)
        v = v + curls * 0.5 * _cloud(rng, size, 16, 16)
    upper = np.minimum(v + 0.2, 0)
    # Parted hair runs in arches around the parting and then falls; other hair fans out from the crown.
    if kind == "parted":
        across = np.hypot(u - parting, 0.8 * upper) * np.sign(u - parting)
    else:
        across = np.arctan2(u - parting, v + 1.7) * 1.1
    width = max(0.03, 0.75 * head.pixel)  # of a strand: finer than the pixels, it would lose its direction
    strand = _strands(rng, across / width, 1.4 * v + 0.5 * np.abs(u))
    lock = _strands(rng, across / (4 * width), 0.5 * v)

    half = head.width + volume + flare * np.maximum(v + 0.2, 0)
    radius = np.sqrt((head.u / half) ** 2 + (np.minimum(head.v + 0.1, 0) / (0.93 + volume)) ** 2)
    ragged = 0.04 * strand + 0.04 * lock
    outline = np.maximum((radius - 1) * head.width + 0.4 * ragged, v - length + 3 * ragged)
    line = top + rise * np.abs(head.fu - parting) ** 1.5 + ragged
    dome = np.hypot(head.fu / (side * head.width), np.minimum(head.fv - 0.1, 0) / temple)
    edge = np.maximum(line - head.fv, (dome - 1) * head.width + 0.6 * ragged)
    if not bald:  # no gap between the hair and the upper skull
        edge = np.maximum(edge, np.minimum(head.radius - 0.97, -head.v))

    x, y, z = head.light
    rim = _unit(radius) ** 2
    volume_shade = 0.5 + 0.5 * (x * head.u / half + y * head.v + z * np.sqrt(1.02 - rim))
    gloss = _bump(head.u - 0.5 * x, head.v + 0.85 + 0.25 * np.abs(head.u), 0.6, 0.16) * (0.6 + 0.6 * strand)
    bright = _unit(0.58 * volume_shade + 0.48 * strand + 0.14 * lock)
    colour = head.hair * (0.30 + 1.05 * bright) + (0.01 + 0.13 * bright + 0.16 * np.maximum(gloss, 0))
    return Hair(long, _inside(outline, head.pixel), edge, strand, colour)


def _body(canvas: Canvas, head: Head, rng: np.random.Generator) -> None:
    """Neck, in the shadow of the chin, and clothes: a pullover, a striped one, or a jacket over a shirt."""
    size = canvas.regions.shape[0]
    across, y = np.abs(head.x), head.y
    neck = rng.uniform(0.36, 0.42) - 0.05 * head.woman
    shoulder = rng.uniform(1.08, 1.16) + rng.uniform(0.16, 0.3) * across**1.6
    deep = rng.uniform(0.05, 0.35)
    kind = int(rng.integers(3))
    cloth, shirt = _muted(rng, 0.1, 0.75, 0.5), _muted(rng, 0.6, 0.95, 0.15)
    pitch = rng.uniform(0.16, 0.3)

    throat = _inside(np.maximum(across - neck - 0.5 * np.maximum(y - 1.05, 0) ** 2, 0.4 - y), head.pixel)
    shade = 0.35 + 0.45 * _unit((head.radius - 1.0) / 0.35) + 0.25 * head.light[0] * head.x / neck
    canvas.paint(throat, _shaded(head.skin, shade), SKIN)
    fold = 1 + 0.12 * _cloud(rng, size, 6, 8) + 0.1 * _grain(rng, size)
    fold = fold * (0.85 + 0.3 * head.light[0] * head.x) - 0.15 * _bump(across, y - 1.15, 0.6, 0.25)
    collar = shoulder + deep * _unit(1 - across / (neck + 0.1)) + 0.03
    if kind == 2:
        front = _inside(np.maximum(shoulder - y, 1.25 - y - 0.4 * across), head.pixel)
        canvas.paint(front, shirt * fold, CLOTHES)
        collar = shoulder + 1.2 * _unit(1 - across / (neck + 0.05))
    if kind == 1:
        stripe = np.abs(((y - 0.2 * across) / pitch) % 1 - 0.5) - 0.25
        cloth = cloth + _inside(stripe * pitch, head.pixel) * (shirt - cloth)
    canvas.paint(_inside(np.maximum(shoulder, collar) - y, head.pixel), cloth * fold, CLOTHES)


def _shaded(skin: np.ndarray, shade: np.ndarray) -> np.ndarray:
    """Skin (3, H, W) under `shade` (H, W), 0 to about 1; its shadows turn red, as blood shines through."""
    dark = skin * _colour(0.40, 0.27, 0.24)
    return dark + shade * (skin - dark)


def _skin(canvas: Canvas, head: Head, hair: Hair, rng: np.random.Generator) -> None:
    """Ears and face: a height map of bumps and hollows, lit from one side, without texture."""
    fu, fv, across = head.fu, head.fv, np.abs(head.fu)
    nose, bridge, cheek = rng.uniform(0.13, 0.22), rng.uniform(0.07, 0.11), rng.uniform(0.03, 0.09)
    blush, ambient = rng.uniform(0, 0.09), rng.uniform(0.35, 0.55)
    ear = rng.uniform(0.13, 0.18)

    ears = np.hypot((np.abs(head.u) - head.width - 0.01) / ear, (head.v - 0.06) / 0.25) - 1
    lobes = _shaded(head.skin, 0.62 + 0.25 * np.minimum(ears, 0))
    canvas.paint(_inside(0.15 * ears, head.pixel), lobes, SKIN)

    ridge = _unit((fv + 0.25) / 0.55) * _unit((0.43 - fv) / 0.09)
    height = (
        -0.22 * head.radius**2 - 0.24 * head.radius**4
        + nose * ridge * np.exp(-((fu / (bridge + 0.05 * _unit(fv + 0.2))) ** 2))
        + 0.06 * _bump(across - 0.11, fv - 0.34, 0.06, 0.06)
        - 0.07 * _bump(across - 0.33, fv + 0.05, 0.20, 0.13)
        + 0.03 * _bump(across - 0.30, fv + 0.28, 0.25, 0.10)
        + cheek * _bump(across - 0.40, fv - 0.22, 0.20, 0.18)
        + 0.04 * _bump(fu, fv - 0.57, 0.24, 0.12)
        + 0.05 * _bump(fu, fv - 0.86, 0.18, 0.12)
    )  # fmt: skip
    down, right = np.gradient(height, head.pixel)
    x, y, z = head.light
    facing = (z - x * right - y * down) / np.sqrt(1 + right**2 + down**2)
    shade = ambient + (1.05 - ambient) * np.maximum(facing, 0)
    shade -= 0.25 * _unit(1 + hair.edge / 0.14)  # hair casts a shadow below the hairline
    shade -= 0.35 * _bump(across - 0.07, fv - 0.405, 0.045, 0.03)  # nostrils
    colour = _shaded(head.skin, shade) + 0.25 * np.maximum(facing, 0) ** 24
    colour += _colour(1, -0.4, -0.3) * head.skin[0] * (blush * _bump(across - 0.42, fv - 0.25, 0.2, 0.16))
    canvas.paint(_inside((head.radius - 1) * 0.85, head.pixel), colour, SKIN)


def _eyes(canvas: Canvas, head: Head, rng: np.random.Generator) -> None:
    """Both eyes in one pass: |u| mirrors the lids; the gaze is not mirrored."""
    across, side = np.abs(head.fu), np.sign(head.fu)
    apart, wide = rng.uniform(0.32, 0.37), rng.uniform(0.17, 0.205)
    open_up, open_down = rng.uniform(0.07, 0.12), rng.uniform(0.04, 0.07)
    slant, iris = rng.uniform(-0.03, 0.02), rng.uniform(0.09, 0.105)
    gaze_u, gaze_v = rng.uniform(-0.05, 0.05), rng.uniform(-0.02, 0.02)
    tint = _colour(*_pick(rng, IRISES if head.skin[0].item() > 0.75 else IRISES[:2])) * rng.uniform(0.8, 1.3)
    lash, shadow = (rng.uniform(0.018, 0.035), rng.uniform(0, 0.4)) if head.woman else (0.012, 0.0)

    e = (across - apart) / wide
    y = head.fv + 0.05 - slant * e
    upper, lower = -open_up * (1 - e**2), open_down * (1 - e**2)
    canvas.paint(0.5 * _bump(e, y + open_up + 0.05, 1, 0.05), 0.62 * head.skin)  # crease of the lid
    canvas.paint(shadow * _bump(e, y + open_up, 1.1, 0.08), head.skin * _colour(0.5, 0.4, 0.5))
    ball = _inside(np.maximum(upper - y, y - lower), head.pixel)
    canvas.paint(ball, _colour(0.93, 0.92, 0.91) * (0.70 + 0.30 * _unit((y - upper) / 0.1)), EYES)
    away = np.hypot(across - apart - side * gaze_u, y + 0.015 - gaze_v) - iris
    canvas.paint(ball * _inside(away, head.pixel), tint * (0.6 + 3 * np.minimum(-away, 0.1)))
    canvas.paint(ball * _inside(away + 0.55 * iris, head.pixel), _colour(0.03, 0.03, 0.03))
    glint = np.hypot(across - apart - side * (gaze_u + 0.05 * head.light[0]), y + 0.055 - gaze_v) - 0.022
    canvas.paint(ball * _inside(glint, head.pixel), _colour(1, 1, 1))
    rim = _line(y - upper, lash, head.pixel) * _inside((np.abs(e) - 1.08) * wide, head.pixel)
    canvas.paint(0.85 * rim, 0.25 * head.skin * _colour(0.7, 0.6, 0.6))
    rim = _line(y - lower, 0.008, head.pixel) * _inside((np.abs(e) - 1) * wide, head.pixel)
    canvas.paint(0.35 * rim, 0.5 * head.skin)


def _mouth(canvas: Canvas, head: Head, rng: np.random.Generator) -> None:
    """Two lips around an opening; an open mouth that smiles shows teeth."""
    wide, smile = rng.uniform(0.24, 0.32), min(max(rng.normal(0.5, 0.4), -0.3), 1.2)
    gap = max(0.0, rng.uniform(-0.1, 0.12)) * (smile > 0.1)
    above, below = rng.uniform(0.04, 0.07), rng.uniform(0.06, 0.10)
    rouge = rng.uniform(0, 1) ** 2 if head.woman else 0.0
    wide += 0.06 * max(smile, 0)

    m = head.fu / wide
    arch = np.maximum(1 - m**2, 0)
    y = head.fv - 0.57 + 0.1 * smile * (m**2 - 0.4)
    bow = 1 - 0.3 * np.exp(-((m / 0.16) ** 2))
    top, bottom = -gap / 2 * arch, gap / 2 * arch
    upper, lower = top - above * np.sqrt(arch) * bow, bottom + below * arch
    lips = head.skin * _colour(0.86, 0.56, 0.55) * (1 - rouge) + _colour(0.72, 0.13, 0.18) * rouge
    cover = _inside(np.maximum(np.maximum(upper - y, y - lower), (np.abs(m) - 1) * wide), head.pixel)
    light = np.where(y < 0, 0.82, 1.05) + 0.25 * _bump(m, y - bottom - 0.4 * below, 0.5, 0.025)
    canvas.paint(cover, lips * light, MOUTH)
    canvas.paint(0.4 * _bump(m, y - bottom - below - 0.06, 0.6, 0.04), 0.6 * head.skin)
    if gap:
        inside = _inside(np.maximum(np.maximum(top - y, y - bottom), (np.abs(m) - 0.97) * wide), head.pixel)
        canvas.paint(inside, _colour(0.25, 0.06, 0.07), MOUTH)
        teeth = _inside(np.maximum(top - y, y - top - 0.75 * gap * arch), head.pixel)
        canvas.paint(inside * teeth, _colour(0.93, 0.91, 0.87) * (1 - 0.35 * m**2), MOUTH)
    else:
        seam = _line(y, 0.01, head.pixel) * _inside((np.abs(m) - 1.05) * wide, head.pixel)
        canvas.paint(0.8 * seam, 0.4 * lips, MOUTH)


def _beard(canvas: Canvas, head: Head, hair: Hair, rng: np.random.Generator) -> None:
    """A full beard, a moustache, stubble (a tint of the skin) or, mostly, nothing."""
    kind = 1.0 if head.woman else rng.random()
    reach, thick = rng.uniform(0.66, 0.76), rng.uniform(0.055, 0.08)
    if kind > 0.55:
        return
    across = np.abs(head.fu)
    jaw = np.maximum(reach - 0.75 * (across / head.width) ** 2.5 - head.fv, (head.radius - 1.06) * 0.85)
    tache = thick * (np.hypot(head.fu / 0.3, (head.fv - 0.455 - 0.4 * across**2) / thick) - 1)
    area = tache if kind < 0.1 else np.minimum(jaw, tache)
    if kind > 0.33:
        canvas.paint(0.3 * _unit(0.5 - area / 0.1) * (head.radius < 1), 0.5 * head.hair + 0.25 * head.skin)
    else:
        canvas.paint(_inside(area + 0.04 * hair.strand, head.pixel), hair.colour, HAIR)


def _brows(canvas: Canvas, head: Head, rng: np.random.Generator) -> None:
    thick, arch = rng.uniform(0.022, 0.035) + 0.012 * (not head.woman), rng.uniform(0.02, 0.08)
    lift, slant = rng.uniform(-0.03, 0.03), rng.uniform(-0.03, 0.04)
    e = (np.abs(head.fu) - 0.34) / 0.24
    y = head.fv + 0.25 + lift + arch * (1 - (e - 0.1) ** 2) - slant * e
    cover = _line(y, thick * (1 - 0.5 * _unit(e)), head.pixel) * _inside((np.abs(e) - 1) * 0.24, head.pixel)
    hairs = 1 + 0.2 * _grain(rng, head.u.shape[0])
    canvas.paint(cover, np.minimum(0.55 * head.hair, 0.5 * head.skin) * hairs, BROWS)


def _glasses(canvas: Canvas, head: Head, rng: np.random.Generator) -> None:
    """Round to square rims with bridge and temples; one pair in ten is dark."""
    worn, dark = rng.random() < 0.2, rng.random() < 0.1
    wide, high, power = rng.uniform(0.25, 0.29), rng.uniform(0.18, 0.25), rng.uniform(2, 4)
    rim, colour = rng.uniform(0.015, 0.035), _muted(rng, 0.05, 0.35, 0.4)
    if not worn:
        return
    across, y = np.abs(head.fu), head.fv + 0.04
    lens = ((np.abs(across - 0.34) / wide) ** power + (np.abs(y) / high) ** power) ** (1 / power)
    away = (lens - 1) * high
    glass = _inside(away, head.pixel)
    if dark:
        canvas.paint(0.92 * glass, colour * 0.5 + 0.12 * _unit(-2 * y), GLASSES)
    else:
        canvas.paint(0.10 * glass * (y < 0.4 * head.fu), _colour(1, 1, 1))
    frame = _line(away, rim, head.pixel)
    bridge = _line(y + 0.05, rim, head.pixel) * (across < 0.34 - wide)
    temple = _line(y + 0.05, rim, head.pixel) * (across > 0.34 + wide) * (np.abs(head.u) < head.width)
    canvas.paint(np.maximum(np.maximum(frame, bridge), temple), colour, GLASSES)
