"""Speed of drawing on one core, beside the same number of images from a diffusion model of a like size; and of noise.

    python -m tests.benchmarks.sampling
    python -m tests.benchmarks.sampling --checkpoint runs/demo_gan/last.ckpt --rounds 9

The peer is UNet2DModel of diffusers with random weights, convolutions alone. One step of it is timed, and multiplied by
1,000 for DDPM and by 50 for DDIM: what lies between its steps is left out, in its favour. Each round times all of it
once, one after the other, in seconds of the core (process_time), which neighbours change less than the clock.

Noise of the pixels comes first and needs no diffusers. Beside it is how it was drawn before: by a numpy generator for
each image, on the CPU. With a GPU the same noise is drawn there, too, in seconds of the clock.
"""

import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli
from torch import nn

from degrain.models.core.randomness import image_numbers, noise_of_images
from degrain.models.inference.pictures import as_pictures, to_uint8
from degrain.models.inference.pipeline import Pipeline, PlainPipeline, load_pipeline

INSTALL = "python -m pip install diffusers    # in a virtual environment of its own, beside the packages of degrain"
PRECISIONS = ("32", "bf16")
NOISE = {64: 32, 256: 4}  # images drawn at once, by pixels of their edge
STEPS = {"DDPM, 1,000 steps": 1000, "DDIM, 50 steps": 50}


def peer(size: int) -> nn.Module:
    """Return a diffusion model's network, 6.4 M parameters at 64 pixels; the pretrained VAE and denoiser have 4.8 M."""
    try:
        from diffusers import UNet2DModel
    except ImportError:
        sys.exit(f"error: the benchmark needs diffusers: {INSTALL}")
    widths = (64, 96, 128, 160)
    net = UNet2DModel(
        sample_size=size,
        layers_per_block=1,
        block_out_channels=widths,
        down_block_types=("DownBlock2D",) * len(widths),
        up_block_types=("UpBlock2D",) * len(widths),
    )
    return net.to(memory_format=torch.channels_last).eval()


def autocast(precision: str) -> torch.autocast:
    """Return the context in which products have a precision."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


@torch.inference_mode()
def step(net: nn.Module, images: torch.Tensor, precision: str) -> None:
    """Take one step of the peer."""
    with autocast(precision):
        net(images, 500)


def draw(pipeline: Pipeline | PlainPipeline, numbers: range, precision: str) -> None:
    """Draw images and round them to 8 bits, as sample.py does."""
    pipeline.bf16 = precision == "bf16"
    row = pipeline.rows[-1]
    as_pictures(row, pipeline.draw(0, numbers)[row])


def core_seconds(function: Callable[..., Any], *arguments: Any) -> float:
    """Return the core seconds of a call."""
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start


def numpy_noise(count: int, size: int) -> torch.Tensor:
    """Draw the noise of images on the CPU, by a numpy generator for each."""
    rows = [np.random.default_rng((0, n, 1)).standard_normal((3, size, size), np.float32) for n in range(count)]
    return torch.from_numpy(np.stack(rows))


def gpu_seconds(function: Callable[..., Any], *arguments: Any) -> float:
    """Return the seconds of a call on the clock, until the GPU is done."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    function(*arguments)
    torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.inference_mode()
def noise(rounds: int) -> None:
    """Print how many images' noise a core draws in a second, and a GPU if there is one."""
    print(f"noise of images, one thread, median of {rounds} rounds")
    print(f"{'':<12}{'us an image':>14}{'numpy':>10}{'images/s':>12}{'numpy':>10}{'times numpy':>14}")
    for size, count in NOISE.items():
        numbers, seconds = image_numbers(range(count)), []
        for _ in range(rounds + 1):
            ours = core_seconds(noise_of_images, 0, numbers, 1, (3, size, size))
            seconds.append((ours / count, core_seconds(numpy_noise, count, size) / count))
        ours, theirs = map(median, zip(*seconds[1:], strict=True))
        ratio = median(b / a for a, b in seconds[1:])
        costs = f"{1e6 * ours:>14,.1f}{1e6 * theirs:>10,.1f}{1 / ours:>12,.0f}{1 / theirs:>10,.0f}"
        print(f"{size:>3} pixels  {costs}{ratio:>14.2f}")
        if torch.cuda.is_available():
            numbers = image_numbers(range(16 * count), "cuda")
            on_gpu = [gpu_seconds(noise_of_images, 0, numbers, 1, (3, size, size)) for _ in range(rounds + 1)]
            rate = len(numbers) / median(on_gpu[1:])
            print(f"{size:>3} pixels, {torch.cuda.get_device_name()}: {rate:,.0f} images/s on the clock")
    print()


def differences(pipeline: Pipeline | PlainPipeline, n: int) -> None:
    """Print what bf16 changes in the 8-bit values of the first images, by row."""
    drawn = {}
    for precision in PRECISIONS:
        pipeline.bf16 = precision == "bf16"
        batches = [pipeline.draw(1, range(n)[first : first + 64]) for first in range(0, n, 64)]
        drawn[precision] = {row: torch.cat([batch[row] for batch in batches]) for row in pipeline.rows}
    print(f"\nbf16 beside float32, {n} images of seed 1\n{'row':<12}{'differ':>9}{'by more than 1':>16}{'at most':>9}")
    for row in pipeline.rows:
        levels = [torch.from_numpy(to_uint8(drawn[precision][row])).int() for precision in PRECISIONS]
        apart = (levels[0] - levels[1]).abs()
        shares = [100 * (apart > least).double().mean().item() for least in (0, 1)]
        print(f"{row:<12}{shares[0]:>8.1f}%{shares[1]:>15.2f}%{apart.max().item():>9}")


def main(
    checkpoint: str = "pretrained/gan_celeba64.safetensors", rounds: int = 5, batch_size: int = 32, n: int = 256
) -> None:
    """Print the speed of noise, core seconds of a batch, how many times as long the peer takes, and what bf16 changes.

    Args:
        checkpoint: of our networks.
        rounds: how often everything is timed; the first, untimed one warms up.
        batch_size: images of a batch.
        n: images that bf16 is compared on.
    """
    torch.set_num_threads(1)
    noise(2 * rounds + 1)
    card, pipeline = load_pipeline(checkpoint)
    net = peer(card.size)
    images = torch.randn(batch_size, 3, card.size, card.size).contiguous(memory_format=torch.channels_last)
    ours: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    theirs: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    for _ in range(rounds + 1):
        for precision in PRECISIONS:
            ours[precision].append(core_seconds(draw, pipeline, range(batch_size), precision))
            theirs[precision].append(core_seconds(step, net, images, precision))
    millions = sum(parameter.numel() for parameter in net.parameters()) / 1e6
    print(f"{batch_size} images of {card.size} pixels, one thread, core seconds, median of {rounds} rounds")
    print(f"{'':<44}" + "".join(f"{precision:>10}" for precision in PRECISIONS))

    def line(name: str, value: Callable[[str], str]) -> None:
        print(f"{name:<44}" + "".join(f"{value(precision):>10}" for precision in PRECISIONS))

    line("drawn by sample.py", lambda p: f"{median(ours[p][1:]):.3f}")
    line(f"one step of UNet2DModel ({millions:.1f} M)", lambda p: f"{median(theirs[p][1:]):.3f}")
    line("images/s of a core, sample.py", lambda p: f"{batch_size / median(ours[p][1:]):.0f}")
    for name, steps in STEPS.items():
        ratios = {p: median(b / a for a, b in zip(ours[p][1:], theirs[p][1:], strict=True)) for p in PRECISIONS}
        line(f"times as long: {name}", lambda p, steps=steps, ratios=ratios: f"{steps * ratios[p]:,.0f}")
    differences(pipeline, n)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
