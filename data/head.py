"""Draw a head by numbers: its coordinates, light, complexion and hair.

A *head unit* is half the height of the skull; u points right, v down, from v = -1 (crown) to v = 1 (chin).
Maps are (H, W), colours (3, 1, 1) or (3, H, W).
"""

from dataclasses import dataclass
from math import cos, sin

import numpy as np

from degrain.data.drawing import bump, cloud, inside, palette, rgb, strands

SKINS = palette("f7d1ba f0c2a3 deab87 c48f6b 9c6e4f 734c38 573b2b")  # fair to dark, mixed between
DARK_HAIRS = palette("1a1717 1a1717 1a1717 211a17 211a17 38261c 38261c 999694")
FAIR_HAIRS = palette("5c3d29 5c3d29 855e3b 855e3b cca366 dbbf8c 75331c ad5c29 d6d4cf")
HAIRLINES = {
    "fringe": ((-0.60, -0.40), (0.0, 0.2), (-0.1, 0.1)),
    "parted": ((-0.85, -0.70), (0.5, 0.9), (-0.4, 0.4)),
    "back": ((-0.70, -0.58), (0.2, 0.5), (-0.1, 0.1)),
}
"""Least and most of top, rise and parting of a style, as defined in _Style."""


@dataclass(frozen=True)
class Head:
    """Hold what every part of a drawing shares: coordinates (H, W) in head units, light and colours.

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
    woman: bool  # long hair is likelier; lashes and lipstick instead of a beard
    skin: np.ndarray
    hair: np.ndarray

    def shaded(self, shade: np.ndarray) -> np.ndarray:
        """Return the skin (3, H, W) under `shade` (H, W), 0 to about 1; its shadows are reddish, as real skin's are."""
        dark = self.skin * rgb(0.40, 0.27, 0.24)
        return dark + shade * (self.skin - dark)


def draw_head(rng: np.random.Generator, size: int) -> Head:
    """Draw the pose, the outline, the light and the complexion of a head."""
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
    # A face is an ellipsoid: turning by b moves sin(a - b) = sin a cos b - cos a sin b to sin a.
    depth = np.sqrt(np.maximum(1 - radius**2, 0))
    fu = cos(turn) * u - sin(turn) * half * depth
    fv = cos(nod) * v - sin(nod) * depth

    skin, hair = _complexion(rng)
    light = np.array([rng.uniform(-0.8, 0.8), rng.uniform(-0.7, -0.1), 0.8])
    light = tuple((light / np.linalg.norm(light)).tolist())
    return Head(x, y, u, v, fu, fv, radius, width, 2 / size / scale, light, woman, skin, hair)


def _complexion(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw the colours of skin and hair, (3, 1, 1) each; fair hair comes with fair skin only."""
    tone = rng.uniform(0, 1) ** 1.5 * (len(SKINS) - 1)
    skin = [np.interp(tone, range(len(SKINS)), channel) for channel in SKINS.T] + rng.uniform(-0.02, 0.02, 3)
    hair = rng.choice([*DARK_HAIRS, *FAIR_HAIRS] if tone < 2.5 else DARK_HAIRS) * rng.uniform(0.8, 1.15)
    return rgb(*skin), rgb(*hair)


@dataclass(frozen=True)
class Hair:
    """Hold the maps (H, W) of the hair and its colour (3, H, W)."""

    long: bool
    shape: np.ndarray  # coverage, the face included
    edge: np.ndarray  # distance to the hairline, negative where no hair covers the face
    strand: np.ndarray  # texture in [-1, 1]
    colour: np.ndarray


@dataclass(frozen=True)
class _Style:
    """Describe a hairstyle, in head units."""

    bald: bool  # but for a wreath
    long: bool
    parted: bool  # strands run in arches around the parting and then fall; others fan out from the crown
    top: float  # v of the hairline at the parting
    rise: float  # how steeply the hairline falls away from the parting
    parting: float  # u of the parting
    temple: float  # height of the dome in which the face is free of hair
    side: float  # half the width of that dome, as a share of the head's
    volume: float
    length: float  # v at which the hair ends
    flare: float  # growth of the width downwards
    wave: tuple[float, float, float]  # amplitude, frequency and phase
    curls: float


def _draw_style(rng: np.random.Generator, woman: bool) -> _Style:
    kind = rng.choice(("fringe", "parted", "parted", "back"))
    bald = not woman and rng.random() < 0.1
    long = not bald and rng.random() < (0.8 if woman else 0.08)
    top, rise, parting = (rng.uniform(*limits) for limits in HAIRLINES[kind])
    volume = rng.uniform(0.08, 0.28) if long else rng.uniform(0.03, 0.16)
    length = rng.uniform(0.7, 2.0) if long else rng.uniform(-0.05, 0.2)
    flare = rng.uniform(-0.05, 0.2) if long else -0.25
    side = rng.uniform(0.8, 1.0) if long else rng.uniform(0.86, 0.93)
    wave = rng.uniform(0, 0.06) * long, rng.uniform(4, 9), rng.uniform(0, 6)
    curls = rng.uniform(0.1, 0.25) if rng.random() < 0.2 else 0.0
    temple = 0.95
    if bald:
        top, temple, volume = -1.5, 3.0, 0.02
    return _Style(bald, long, kind == "parted", top, rise, parting, temple, side, volume, length, flare, wave, curls)


def _draw_strands(
    style: _Style, u: np.ndarray, v: np.ndarray, pixel: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the textures of single strands and of locks, (H, W) in [-1, 1] each."""
    if style.parted:
        across = np.hypot(u - style.parting, 0.8 * np.minimum(v + 0.2, 0)) * np.sign(u - style.parting)
    else:
        across = np.arctan2(u - style.parting, v + 1.7) * 1.1
    width = max(0.03, 0.75 * pixel)  # of a strand: below the size of a pixel, its direction would be lost
    strand = strands(rng, across / width, 1.4 * v + 0.5 * np.abs(u))
    return strand, strands(rng, across / (4 * width), 0.5 * v)


def draw_hair(head: Head, rng: np.random.Generator) -> Hair:
    """Draw a hairstyle: a hairline, an outline, strands, and light on them."""
    style, size = _draw_style(rng, head.woman), len(head.u)
    amplitude, frequency, phase = style.wave
    u = head.u + amplitude * np.sin(frequency * head.v + phase)
    v = head.v
    if style.curls:
        u = u + style.curls * 0.5 * cloud(rng, size, 16, 16)
        v = v + style.curls * 0.5 * cloud(rng, size, 16, 16)
    strand, lock = _draw_strands(style, u, v, head.pixel, rng)

    half = head.width + style.volume + style.flare * np.maximum(v + 0.2, 0)
    radius = np.sqrt((head.u / half) ** 2 + (np.minimum(head.v + 0.1, 0) / (0.93 + style.volume)) ** 2)
    ragged = 0.04 * strand + 0.04 * lock
    outline = np.maximum((radius - 1) * head.width + 0.4 * ragged, v - style.length + 3 * ragged)
    hairline = style.top + style.rise * np.abs(head.fu - style.parting) ** 1.5 + ragged
    dome = np.hypot(head.fu / (style.side * head.width), np.minimum(head.fv - 0.1, 0) / style.temple)
    edge = np.maximum(hairline - head.fv, (dome - 1) * head.width + 0.6 * ragged)
    if not style.bald:  # no gap between the hair and the upper skull
        edge = np.maximum(edge, np.minimum(head.radius - 0.97, -head.v))

    x, y, z = head.light
    rim = np.clip(radius, 0, 1) ** 2
    diffuse = 0.5 + 0.5 * (x * head.u / half + y * head.v + z * np.sqrt(1.02 - rim))
    gloss = bump(head.u - 0.5 * x, head.v + 0.85 + 0.25 * np.abs(head.u), 0.6, 0.16) * (0.6 + 0.6 * strand)
    bright = np.clip(0.58 * diffuse + 0.48 * strand + 0.14 * lock, 0, 1)
    colour = head.hair * (0.30 + 1.05 * bright) + (0.01 + 0.13 * bright + 0.16 * np.maximum(gloss, 0))
    return Hair(style.long, inside(outline, head.pixel), edge, strand, colour)
