"""Paint the face onto a canvas: skin, eyes, brows, beard, mouth and glasses.

Names: `across` is the distance from the face's vertical axis, which mirrors a part to both sides.
"""

import numpy as np

from degrain.data.drawing import Canvas, bump, inside, line, muted_colour, palette, rgb, white_noise
from degrain.data.head import Hair, Head

IRISES = palette("4c2b17 613d1f 4775a8 577a57 73808a")  # the browns first


def paint_skin(canvas: Canvas, head: Head, hair: Hair, rng: np.random.Generator) -> None:
    """Paint ears and face: a height map of bumps and hollows, lit from one side, without texture."""
    fu, fv, across = head.fu, head.fv, np.abs(head.fu)
    nose, bridge, cheek = rng.uniform(0.13, 0.22), rng.uniform(0.07, 0.11), rng.uniform(0.03, 0.09)
    blush, ambient = rng.uniform(0, 0.09), rng.uniform(0.35, 0.55)
    ear = rng.uniform(0.13, 0.18)

    ears = np.hypot((np.abs(head.u) - head.width - 0.01) / ear, (head.v - 0.06) / 0.25) - 1
    lobes = head.shaded(0.62 + 0.25 * np.minimum(ears, 0))
    canvas.paint(inside(0.15 * ears, head.pixel), lobes, "skin")

    ridge = np.clip((fv + 0.25) / 0.55, 0, 1) * np.clip((0.43 - fv) / 0.09, 0, 1)
    height = (
        -0.22 * head.radius**2 - 0.24 * head.radius**4
        + nose * ridge * np.exp(-((fu / (bridge + 0.05 * np.clip(fv + 0.2, 0, 1))) ** 2))
        + 0.06 * bump(across - 0.11, fv - 0.34, 0.06, 0.06)
        - 0.07 * bump(across - 0.33, fv + 0.05, 0.20, 0.13)
        + 0.03 * bump(across - 0.30, fv + 0.28, 0.25, 0.10)
        + cheek * bump(across - 0.40, fv - 0.22, 0.20, 0.18)
        + 0.04 * bump(fu, fv - 0.57, 0.24, 0.12)
        + 0.05 * bump(fu, fv - 0.86, 0.18, 0.12)
    )  # fmt: skip
    down, right = np.gradient(height, head.pixel)
    x, y, z = head.light
    facing = (z - x * right - y * down) / np.sqrt(1 + right**2 + down**2)
    shade = ambient + (1.05 - ambient) * np.maximum(facing, 0)
    shade -= 0.25 * np.clip(1 + hair.edge / 0.14, 0, 1)  # hair casts a shadow below the hairline
    shade -= 0.35 * bump(across - 0.07, fv - 0.405, 0.045, 0.03)  # nostrils
    colour = head.shaded(shade) + 0.25 * np.maximum(facing, 0) ** 24
    colour += rgb(1, -0.4, -0.3) * head.skin[0] * (blush * bump(across - 0.42, fv - 0.25, 0.2, 0.16))
    canvas.paint(inside((head.radius - 1) * 0.85, head.pixel), colour, "skin")


def paint_eyes(canvas: Canvas, head: Head, rng: np.random.Generator) -> None:
    """Paint both eyes in one pass: the lids are mirrored, the gaze is not."""
    across, side = np.abs(head.fu), np.sign(head.fu)
    apart, wide = rng.uniform(0.32, 0.37), rng.uniform(0.17, 0.205)
    open_up, open_down = rng.uniform(0.07, 0.12), rng.uniform(0.04, 0.07)
    slant, iris = rng.uniform(-0.03, 0.02), rng.uniform(0.09, 0.105)
    gaze_u, gaze_v = rng.uniform(-0.05, 0.05), rng.uniform(-0.02, 0.02)
    tint = rgb(*rng.choice(IRISES if head.skin[0].item() > 0.75 else IRISES[:2])) * rng.uniform(0.8, 1.3)
    lash, shadow = (rng.uniform(0.018, 0.035), rng.uniform(0, 0.4)) if head.woman else (0.012, 0.0)

    e = (across - apart) / wide
    y = head.fv + 0.05 - slant * e
    upper, lower = -open_up * (1 - e**2), open_down * (1 - e**2)
    canvas.paint(0.5 * bump(e, y + open_up + 0.05, 1, 0.05), 0.62 * head.skin)  # crease of the lid
    canvas.paint(shadow * bump(e, y + open_up, 1.1, 0.08), head.skin * rgb(0.5, 0.4, 0.5))
    ball = inside(np.maximum(upper - y, y - lower), head.pixel)
    canvas.paint(ball, rgb(0.93, 0.92, 0.91) * (0.70 + 0.30 * np.clip((y - upper) / 0.1, 0, 1)), "eyes")
    away = np.hypot(across - apart - side * gaze_u, y + 0.015 - gaze_v) - iris
    canvas.paint(ball * inside(away, head.pixel), tint * (0.6 + 3 * np.minimum(-away, 0.1)))
    canvas.paint(ball * inside(away + 0.55 * iris, head.pixel), rgb(0.03, 0.03, 0.03))
    glint = np.hypot(across - apart - side * (gaze_u + 0.05 * head.light[0]), y + 0.055 - gaze_v) - 0.022
    canvas.paint(ball * inside(glint, head.pixel), rgb(1, 1, 1))
    rim = line(y - upper, lash, head.pixel) * inside((np.abs(e) - 1.08) * wide, head.pixel)
    canvas.paint(0.85 * rim, 0.25 * head.skin * rgb(0.7, 0.6, 0.6))
    rim = line(y - lower, 0.008, head.pixel) * inside((np.abs(e) - 1) * wide, head.pixel)
    canvas.paint(0.35 * rim, 0.5 * head.skin)


def paint_brows(canvas: Canvas, head: Head, rng: np.random.Generator) -> None:
    """Paint arched brows, darker than the hair, with a fine texture."""
    thick, arch = rng.uniform(0.022, 0.035) + 0.012 * (not head.woman), rng.uniform(0.02, 0.08)
    lift, slant = rng.uniform(-0.03, 0.03), rng.uniform(-0.03, 0.04)
    e = (np.abs(head.fu) - 0.34) / 0.24
    y = head.fv + 0.25 + lift + arch * (1 - (e - 0.1) ** 2) - slant * e
    cover = line(y, thick * (1 - 0.5 * np.clip(e, 0, 1)), head.pixel) * inside((np.abs(e) - 1) * 0.24, head.pixel)
    hairs = 1 + 0.2 * white_noise(rng, len(head.u))
    canvas.paint(cover, np.minimum(0.55 * head.hair, 0.5 * head.skin) * hairs, "brows")


def paint_beard(canvas: Canvas, head: Head, hair: Hair, rng: np.random.Generator) -> None:
    """Paint a full beard, a moustache, stubble (a tint of the skin) or, mostly, nothing."""
    kind = 1.0 if head.woman else rng.random()
    reach, thick = rng.uniform(0.66, 0.76), rng.uniform(0.055, 0.08)
    if kind > 0.55:
        return
    across = np.abs(head.fu)
    jaw = np.maximum(reach - 0.75 * (across / head.width) ** 2.5 - head.fv, (head.radius - 1.06) * 0.85)
    moustache = thick * (np.hypot(head.fu / 0.3, (head.fv - 0.455 - 0.4 * across**2) / thick) - 1)
    area = moustache if kind < 0.1 else np.minimum(jaw, moustache)
    if kind > 0.33:
        canvas.paint(0.3 * np.clip(0.5 - area / 0.1, 0, 1) * (head.radius < 1), 0.5 * head.hair + 0.25 * head.skin)
    else:
        canvas.paint(inside(area + 0.04 * hair.strand, head.pixel), hair.colour, "hair")


def paint_mouth(canvas: Canvas, head: Head, rng: np.random.Generator) -> None:
    """Paint two lips; if they are open, teeth between them."""
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
    lips = head.skin * rgb(0.86, 0.56, 0.55) * (1 - rouge) + rgb(0.72, 0.13, 0.18) * rouge
    cover = inside(np.maximum(np.maximum(upper - y, y - lower), (np.abs(m) - 1) * wide), head.pixel)
    light = np.where(y < 0, 0.82, 1.05) + 0.25 * bump(m, y - bottom - 0.4 * below, 0.5, 0.025)
    canvas.paint(cover, lips * light, "mouth")
    canvas.paint(0.4 * bump(m, y - bottom - below - 0.06, 0.6, 0.04), 0.6 * head.skin)
    if gap:
        opening = inside(np.maximum(np.maximum(top - y, y - bottom), (np.abs(m) - 0.97) * wide), head.pixel)
        canvas.paint(opening, rgb(0.25, 0.06, 0.07), "mouth")
        teeth = inside(np.maximum(top - y, y - top - 0.75 * gap * arch), head.pixel)
        canvas.paint(opening * teeth, rgb(0.93, 0.91, 0.87) * (1 - 0.35 * m**2), "mouth")
    else:
        seam = line(y, 0.01, head.pixel) * inside((np.abs(m) - 1.05) * wide, head.pixel)
        canvas.paint(0.8 * seam, 0.4 * lips, "mouth")


def paint_glasses(canvas: Canvas, head: Head, rng: np.random.Generator) -> None:
    """Paint, on one face in five, glasses with round to square rims; one pair in ten is dark."""
    worn, dark = rng.random() < 0.2, rng.random() < 0.1
    wide, high, power = rng.uniform(0.25, 0.29), rng.uniform(0.18, 0.25), rng.uniform(2, 4)
    rim, colour = rng.uniform(0.015, 0.035), muted_colour(rng, 0.05, 0.35, 0.4)
    if not worn:
        return
    across, y = np.abs(head.fu), head.fv + 0.04
    lens = ((np.abs(across - 0.34) / wide) ** power + (np.abs(y) / high) ** power) ** (1 / power)
    away = (lens - 1) * high
    glass = inside(away, head.pixel)
    if dark:
        canvas.paint(0.92 * glass, colour * 0.5 + 0.12 * np.clip(-2 * y, 0, 1), "glasses")
    else:
        canvas.paint(0.10 * glass * (y < 0.4 * head.fu), rgb(1, 1, 1))
    frame = line(away, rim, head.pixel)
    bridge = line(y + 0.05, rim, head.pixel) * (across < 0.34 - wide)
    temple = line(y + 0.05, rim, head.pixel) * (across > 0.34 + wide) * (np.abs(head.u) < head.width)
    canvas.paint(np.maximum(np.maximum(frame, bridge), temple), colour, "glasses")
