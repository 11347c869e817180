"""Paint what surrounds a face: the background, and the neck with clothes."""

from math import cos, pi, sin

import numpy as np

from degrain.data.drawing import Canvas, bump, cloud, inside, muted_colour, white_noise
from degrain.data.head import Head


def paint_background(canvas: Canvas, head: Head, rng: np.random.Generator) -> None:
    """Paint a gradient of two colours under one of six textures, with a fine grain."""
    size = len(head.u)
    first, second = muted_colour(rng, 0.2, 0.8, 0.22), muted_colour(rng, 0.2, 0.8, 0.22)
    angle, pitch = rng.uniform(0, 2 * pi), rng.uniform(0.22, 0.4)
    blend = np.clip(0.5 + 0.25 * (cos(angle) * head.x + sin(angle) * head.y), 0, 1)
    kind = int(rng.integers(6))
    if kind == 0:  # plaster
        pattern = 0.5 * cloud(rng, size, 8, 8) + 0.6 * cloud(rng, size, 24, 24)
    elif kind == 1:  # leaves
        pattern = 1.8 * np.tanh(2 * cloud(rng, size, 14, 14)) * (0.5 + 0.3 * cloud(rng, size, 5, 5))
    elif kind == 2:  # curtain
        pattern = 0.9 * cloud(rng, size, 2, 14) + 0.6 * cloud(rng, size, 4, 40)
    elif kind == 3:  # bricks
        row = np.floor(head.y / pitch)
        mortar = np.minimum((head.y / pitch) % 1, 2 * ((head.x / pitch / 2 + row / 2) % 1))
        pattern = 0.7 * cloud(rng, size, 20, 20) - 1.5 * inside(mortar - 0.16, head.pixel / pitch)
    elif kind == 4:  # lights out of focus
        pattern = -0.8 + 0.4 * cloud(rng, size, 6, 6)
        for _ in range(9):
            radius = rng.uniform(0.1, 0.3)
            away = np.hypot(head.x - rng.uniform(-1.7, 1.7), head.y - rng.uniform(-1.7, 1.2)) - radius
            pattern += rng.uniform(0.8, 1.6) * inside(away, 2 * head.pixel)
    else:  # wood
        rings = np.sin(2 * cloud(rng, size, 3, 12) + 20 * pitch * head.y)
        pattern = 1.2 * rings + 0.4 * cloud(rng, size, 48, 8)
    grain = white_noise(rng, size)
    shade = 1 + rng.uniform(0.12, 0.22) * pattern + rng.uniform(0.05, 0.10) * grain
    canvas.image[:] = (first + blend * (second - first)) * np.maximum(shade, 0.1)


def paint_body(canvas: Canvas, head: Head, rng: np.random.Generator) -> None:
    """Paint the neck, in the shadow of the chin, and clothes: a pullover, a striped one, or a jacket over a shirt."""
    size = len(head.u)
    across, y = np.abs(head.x), head.y
    neck = rng.uniform(0.36, 0.42) - 0.05 * head.woman
    shoulder = rng.uniform(1.08, 1.16) + rng.uniform(0.16, 0.3) * across**1.6
    deep = rng.uniform(0.05, 0.35)
    kind = int(rng.integers(3))
    cloth, shirt = muted_colour(rng, 0.1, 0.75, 0.5), muted_colour(rng, 0.6, 0.95, 0.15)
    pitch = rng.uniform(0.16, 0.3)

    throat = inside(np.maximum(across - neck - 0.5 * np.maximum(y - 1.05, 0) ** 2, 0.4 - y), head.pixel)
    shade = 0.35 + 0.45 * np.clip((head.radius - 1.0) / 0.35, 0, 1) + 0.25 * head.light[0] * head.x / neck
    canvas.paint(throat, head.shaded(shade), "skin")
    fold = 1 + 0.12 * cloud(rng, size, 6, 8) + 0.1 * white_noise(rng, size)
    fold = fold * (0.85 + 0.3 * head.light[0] * head.x) - 0.15 * bump(across, y - 1.15, 0.6, 0.25)
    collar = shoulder + deep * np.clip(1 - across / (neck + 0.1), 0, 1) + 0.03
    if kind == 2:
        front = inside(np.maximum(shoulder - y, 1.25 - y - 0.4 * across), head.pixel)
        canvas.paint(front, shirt * fold, "clothes")
        collar = shoulder + 1.2 * np.clip(1 - across / (neck + 0.05), 0, 1)
    if kind == 1:
        stripe = np.abs(((y - 0.2 * across) / pitch) % 1 - 0.5) - 0.25
        cloth = cloth + inside(stripe * pitch, head.pixel) * (shirt - cloth)
    canvas.paint(inside(np.maximum(shoulder, collar) - y, head.pixel), cloth * fold, "clothes")
