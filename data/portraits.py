"""Draw portraits: faces by numpy from one random generator, a data set that needs no download.

    source = PortraitSource(count=20_000, seed=0)
    source.read(item=17, size=64)["image"]  # (64, 64, 3) uint8: face 17 of seed 0, the same in every process

`regions` holds the region of each pixel, and `noise=` plants Gaussian noise of a known std on each region.
"""

import hashlib
import json

import numpy as np

from degrain.data.drawing import REGIONS, Canvas, inside, rgb
from degrain.data.face import paint_beard, paint_brows, paint_eyes, paint_glasses, paint_mouth, paint_skin
from degrain.data.head import draw_hair, draw_head
from degrain.data.numbered import NumberedSource
from degrain.data.scenery import paint_background, paint_body
from degrain.models.core.errors import InputError

VERSION = 1  # raise it with every change that moves a pixel: caches are keyed by it
MIN_SIZE = 16
MAX_NOISE = 0.1  # planted std; beyond it less than a fifth of the contrast would be left
NOISE_MARGIN = 4.0  # in units of the largest planted std, kept free at both ends of [0, 1]


def draw_portrait(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one face: its image (H, W, 3) float32 in [0, 1], and regions (H, W) uint8, indices into REGIONS.

    Equal generators give the same person at every size >= 16: every part takes as many numbers at one size as at
    another. The faces separate what the mean of a VAE can hold from what it cannot: skin is smooth, so a code of a few
    numbers describes it; hair, backgrounds and cloth are fine texture, which belongs into the std.
    """
    head = draw_head(rng, size)
    canvas = Canvas(size)
    paint_background(canvas, head, rng)
    hair = draw_hair(head, rng)
    if hair.long:
        canvas.paint(hair.shape, 0.55 * hair.colour, "hair")  # the part that hangs behind the neck
    paint_body(canvas, head, rng)
    paint_skin(canvas, head, hair, rng)
    paint_eyes(canvas, head, rng)
    paint_brows(canvas, head, rng)
    paint_beard(canvas, head, hair, rng)
    paint_mouth(canvas, head, rng)
    canvas.paint(hair.shape * inside(-hair.edge, head.pixel), hair.colour, "hair")
    paint_glasses(canvas, head, rng)
    warmth = rng.uniform(-0.04, 0.04)
    canvas.image *= rgb(1 + warmth, 1, 1 - warmth) * rng.uniform(0.9, 1.08)
    return np.ascontiguousarray(np.clip(canvas.image, 0, 1).transpose(1, 2, 0)), canvas.regions


def planted_std(regions: np.ndarray, noise: dict[str, float]) -> np.ndarray:
    """Return the std map (H, W) float32, in units of [0, 1], that `noise` plants on `regions` (H, W)."""
    return np.array([noise.get(name, 0) for name in REGIONS], np.float32)[regions]


class PortraitSource(NumberedSource):
    """Draw any number of faces. Face i of a seed is the same person at every size and for every count.

    With `noise`, the pixels of each region get independent Gaussian noise of a known std. To prevent clipping, the
    clean image is first compressed into [m, 1 - m], m = 4 times the largest std: a pixel at those bounds leaves [0, 1]
    only 3 times in 100,000. The noise is added to the 8-bit clean image, and the sum is rounded. In levels,
    image - clean has variance (255 std)^2 + 1/12 if 255 std > 1/2; it is 0 if std = 0.
    Arguments are those of NumberedSource and of degrain.data.datamodule.Portraits.
    """

    def __init__(
        self, count: int = 20_000, valid_count: int = 2_000, seed: int = 0, noise: dict[str, float] | None = None
    ) -> None:
        super().__init__("portraits", count, valid_count, seed)
        for region, std in (noise or {}).items():
            if region not in REGIONS:
                known = ", ".join(REGIONS)
                raise InputError(f"portraits: noise on unknown region {region!r}; choose from {known}")
            if not 0 <= std <= MAX_NOISE:
                raise InputError(f"portraits: noise {std} on {region} is not in 0..{MAX_NOISE} of [0, 1]")
        self.noise = dict(sorted(noise.items())) if noise else None
        digest = hashlib.sha256(json.dumps(self.noise).encode()).hexdigest()
        self.name = f"portraits-s{seed}" + (f"-noise-{digest[:8]}" if noise else "")

    def fingerprint(self, split: str) -> str:
        """Return all that the pixels of `split` depend on as one line of JSON."""
        return json.dumps(["portraits", VERSION, self.seed, len(self.items(split)), self.noise])

    def read(self, item: int, size: int) -> dict[str, np.ndarray]:
        """Return face `item`, uint8: "image" (size, size, 3), "regions" (size, size); with noise also "clean"."""
        if size < MIN_SIZE:
            raise InputError(f"portraits: size {size} is below {MIN_SIZE}, the smallest that shows a face")
        image, regions = draw_portrait(np.random.default_rng([self.seed, item, 0]), size)
        if self.noise is None:
            return {"image": _levels(image), "regions": regions}
        margin = NOISE_MARGIN * max(self.noise.values())
        clean = _levels(margin + (1 - 2 * margin) * image)
        std = planted_std(regions, self.noise)[..., None]
        white = np.random.default_rng([self.seed, item, 1]).standard_normal(clean.shape, np.float32)
        noisy = _levels(np.clip(clean / np.float32(255) + std * white, 0, 1))
        return {"image": noisy, "clean": clean, "regions": regions}


def _levels(image: np.ndarray) -> np.ndarray:
    """Round [0, 1] to the nearest of 256 levels, uint8."""
    return np.rint(255 * image).astype(np.uint8)
