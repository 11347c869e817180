"""A small network that reads handwritten digits, to tell the modes of Stacked MNIST apart."""

import hashlib
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from degrain.models.core.images import eight_bit
from degrain.models.core.precision import full_precision
from degrain.models.core.randomness import generator
from degrain.models.evaluation.statistics_cache import StatisticsKey, cached_statistics

SIDE = 32  # pixels of a digit
RECIPE = 1  # raise it when the same digits and seed give another classifier
BATCH, DIGITS_SEEN = 100, 100_000
LEARNING_RATE, WEIGHT_DECAY = 1e-2, 1e-2
ROTATION, SCALE, SHIFT = math.radians(10), 0.1, 2.5  # at most: radians, share of a digit's size, pixels
NOISE = 0.3  # std at most, in [0, 1] units


class DigitClassifier(nn.Module):
    """Digits (N, 1, 32, 32) in [0, 1], white on black, to logits (N, 10).

    Attributes:
        accuracy: share of held-out digits that it reads right, ().
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 24, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(24), nn.ReLU()),  # (N, 24, 16, 16)
            *(nn.Conv2d(24, 48, 3, padding=1, bias=False), nn.BatchNorm2d(48), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(48, 96, 3, padding=1, bias=False), nn.BatchNorm2d(96), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Dropout(0.3), nn.Linear(96 * 16, 10)),  # (N, 96, 4, 4) -> (N, 10)
        )
        self.register_buffer("accuracy", torch.tensor(math.nan))
        self.to(memory_format=torch.channels_last)  # faster on a CPU

    def forward(self, digits: Tensor) -> Tensor:
        return self.layers(digits)

    @torch.no_grad()
    @full_precision()
    def read(self, levels: Tensor) -> Tensor:
        """Return the most likely digit of each image (N, H, W), uint8, however unsure: (N,) from 0 to 9."""
        digits = rearrange(levels, "n h w -> n 1 h w").float() / 255
        if levels.shape[1:] != (SIDE, SIDE):
            digits = F.interpolate(digits, (SIDE, SIDE), mode="bilinear", antialias=True)
        return self(digits).argmax(1)

    def modes(self, images: Tensor) -> Tensor:
        """Return 100 red + 10 green + blue of stacks (B, 3, H, W), uint8 or floats in [0, 1], rounded to 8 bits first.

        As in PacGAN (Lin et al. 2018) every image counts, at any confidence.

        Returns:
            Modes (B,), from 0 to 999.

        Raises:
            InputError: not such images, or not finite.
        """
        read = self.read(rearrange(eight_bit(images), "b c h w -> (b c) h w"))
        red, green, blue = rearrange(read, "(b c) -> c b", c=3)
        return 100 * red + 10 * green + blue


def augmented(digits: Tensor, rng: torch.Generator) -> Tensor:
    """Rotate, scale and shift digits (N, 1, 32, 32) a little, and add noise of a random std to every second one.

    The noise is not part of the usual recipe. Without it the classifier reads 80 % of the digits right under white
    noise of std 0.1 and 25 % at 0.2, so that the modes of a noisy row would mean nothing; with it, 98 %.
    """
    turn, scale, right, down = (2 * torch.rand(4, len(digits), generator=rng) - 1).unbind()
    turn, scale = ROTATION * turn, 1 + SCALE * scale
    cos, sin, right, down = scale * turn.cos(), scale * turn.sin(), right * 2 * SHIFT / SIDE, down * 2 * SHIFT / SIDE
    maps = rearrange([cos, -sin, right, sin, cos, down], "(i j) n -> n i j", j=3)  # affine, for sides at -1 and 1
    moved = F.grid_sample(digits, F.affine_grid(maps, list(digits.shape), align_corners=False), align_corners=False)
    std = NOISE * (2 * torch.rand(len(digits), 1, 1, 1, generator=rng) - 1).clamp(min=0)
    return (moved + std * torch.randn(digits.shape, generator=rng)).clamp(0, 1)


@torch.inference_mode(False)  # Lightning's test runs in inference mode
@torch.enable_grad()
def train_classifier(images: Tensor, labels: Tensor, seed: int) -> DigitClassifier:
    """Train on digits (N, 32, 32) uint8 with labels (N,) int64, on the CPU; it takes one core a minute."""
    rng, steps = generator(seed), DIGITS_SEEN // BATCH
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the weights and the dropout are drawn from the global stream
        net = DigitClassifier().train()
        optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
        for _ in range(steps):
            few = torch.randint(len(images), (BATCH,), generator=rng)
            digits = augmented(images[few, None].float() / 255, rng)
            optimizer.zero_grad()
            F.cross_entropy(net(digits), labels[few]).backward()
            optimizer.step()
            schedule.step()
    return net.eval().requires_grad_(False)


def digit_classifier(
    train: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], folder: str | Path, seed: int = 0
) -> DigitClassifier:
    """Return the classifier of these digits on the CPU, from the file of an earlier call or trained.

    Args:
        train: digits (N, 32, 32) uint8 and their labels (N,) int64.
        held_out: the same, to measure the accuracy.
        folder: of its file, whose name has a hash of all digits.
        seed: of its training.
    """
    digest = hashlib.sha256(b"".join(t.numpy().tobytes() for t in (*train, *held_out))).hexdigest()
    key = StatisticsKey(
        digest, "train", "none", SIDE, "digit-classifier", f"weights-{RECIPE}-{DIGITS_SEEN}-seed-{seed}"
    )

    def weights() -> dict[str, Tensor]:
        start = time.monotonic()
        net = train_classifier(*train, seed)
        right = torch.cat([net.read(some) for some in held_out[0].split(1000)]) == held_out[1]
        net.accuracy = right.float().mean()
        said = f"{net.accuracy:.4f} of {len(right):,} held-out digits right"
        print(f"digit classifier: {said} ({time.monotonic() - start:.0f} s)", flush=True)
        return net.state_dict()

    net = DigitClassifier()
    net.load_state_dict(cached_statistics(folder, key, weights))
    return net.eval().requires_grad_(False)
