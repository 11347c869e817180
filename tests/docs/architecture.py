"""Print the tables of docs/architecture.md from the networks themselves, and draw its figure.

python -m tests.docs.architecture                                   # the tables
python -m tests.docs.architecture --figure docs/architecture.png
"""

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch
import yaml
from matplotlib.figure import Figure
from torch import nn

from degrain.models.core.gaussian import Gaussian
from degrain.models.core.layers import PyramidConfig, ResBlock
from degrain.models.gan.denoiser import Denoiser
from degrain.models.gan.discriminator import Discriminator
from degrain.models.vae.network import VAE, VAEConfig

ROOT = Path(__file__).parents[2]
WORDS: dict[type, Callable[[nn.Module], str]] = {
    nn.PixelUnshuffle: lambda m: f"space to depth, {m.downscale_factor}x{m.downscale_factor}",
    nn.PixelShuffle: lambda m: f"depth to space, {m.upscale_factor}x{m.upscale_factor}",
    nn.Conv2d: lambda m: f"{m.kernel_size[0]}x{m.kernel_size[1]} convolution",
    nn.Linear: lambda m: "linear",
    nn.SiLU: lambda m: "SiLU",
    nn.Flatten: lambda m: "flatten",
    nn.Unflatten: lambda m: "unflatten",
    nn.AvgPool2d: lambda m: "mean over 2x2",
    nn.Upsample: lambda m: "nearest neighbour, x2",
    ResBlock: lambda m: "residual block",
}


def words(module: nn.Module) -> str:
    """Return what a layer does."""
    if isinstance(module, nn.Sequential):
        return ", ".join(map(words, module))
    return WORDS[type(module)](module)


def small() -> tuple[VAE, Denoiser, Discriminator]:
    """Return the networks of the preset `small` at 64 pixels, as their configs say."""
    vae, gan = (yaml.safe_load((ROOT / f"configs/{name}_celeba64.yaml").read_text()) for name in ("vae", "gan"))
    size, net = vae["data"]["init_args"]["size"], vae["model"]["init_args"]["net"]
    pyramids = {name: PyramidConfig(**net[name]) for name in ("encoder", "decoder")}
    stage_2 = gan["model"]["init_args"]
    denoiser, discriminator = (PyramidConfig(**stage_2[name]) for name in ("denoiser", "discriminator"))
    return (
        VAE(size, VAEConfig(latent=net["latent"], **pyramids)),
        Denoiser(size, denoiser),
        Discriminator(size, discriminator),
    )


def table(name: str, layers: list[nn.Module], run: Callable[[], object]) -> str:
    """Return a table of layers, their output (B, C, H, W) without B, and their parameters; `run` passes them all."""
    shapes: dict[nn.Module, str] = {}
    for layer in layers:
        layer.register_forward_hook(lambda m, _, out: shapes.update({m: ", ".join(map(str, out.shape[1:]))}))
    with torch.no_grad():
        run()
    total = sum(parameter.numel() for layer in layers for parameter in layer.parameters())
    lines = [f"| {name}, {total:,} parameters | output | parameters |", "|---|---|---|"]
    for layer in layers:
        count = sum(parameter.numel() for parameter in layer.parameters())
        lines.append(f"| {words(layer)} | {shapes[layer]} | {f'{count:,}' if count else ''} |")
    return "\n".join(lines)


def tables() -> dict[str, str]:
    """Return the table of each network by its name."""
    vae, denoiser, discriminator = small()
    x, z = torch.rand(1, 3, vae.size, vae.size), torch.randn(1, vae.config.latent)
    p = Gaussian(x, torch.zeros_like(x))
    stages = [denoiser.stem, *denoiser.downs, *denoiser.ups, denoiser.head]
    return {
        "encoder": table("Encoder", list(vae.encoder.layers), lambda: vae.encode(x)),
        "decoder": table("Decoder", list(vae.decoder.layers), lambda: vae.decode(z)),
        "denoiser": table("Denoiser", stages, lambda: denoiser(torch.randn_like(x), p)),
        "discriminator": table("Discriminator", list(discriminator.layers), lambda: discriminator(x, p)),
    }


BOXES = {
    "photograph\n3 x 64 x 64": (0.0, 1.0, "data"),
    "encoder": (1.0, 1.0, "network"),
    "q(z|x)\nmean, std of\n64 latents": (2.0, 1.0, "data"),
    "z": (2.9, 1.0, "data"),
    "decoder": (3.7, 1.0, "network"),
    "p(x|z)\nmean, std of every\npixel and channel": (4.8, 1.0, "data"),
    "draw\nmean + std * noise": (4.8, 0.0, "data"),
    "denoiser": (6.0, 0.0, "network"),
    "image\n3 x 64 x 64": (7.0, 0.0, "data"),
    "discriminator\n(training only)": (7.0, 1.0, "network"),
    "prior: N(0, I),\nmixture or diffusion": (2.9, 0.0, "data"),
}
"""Label -> place (x, y) and kind of every box."""

ARROWS = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8), (8, 9), (5, 9), (10, 3)]


def figure() -> Figure:
    """Draw what flows from which network to which."""
    drawn = Figure(figsize=(11, 2.6), layout="constrained")
    axes = drawn.subplots()
    axes.set_axis_off()
    axes.set(xlim=(-0.5, 7.6), ylim=(-0.45, 1.45))
    colours = {"data": "#f2f2f2", "network": "#cfe2f3"}
    texts = [
        axes.text(x, y, label, ha="center", va="center", fontsize=9, bbox={"boxstyle": "round", "fc": colours[kind]})
        for label, (x, y, kind) in BOXES.items()
    ]
    drawn.canvas.draw()
    for start, end in ARROWS:
        axes.annotate(
            "",
            xy=texts[end].get_position(),
            xytext=texts[start].get_position(),
            arrowprops={
                "arrowstyle": "->",
                "patchA": texts[start].get_bbox_patch(),
                "patchB": texts[end].get_bbox_patch(),
                "shrinkA": 2,
                "shrinkB": 2,
            },
        )
    return drawn


def main(arguments: list[str]) -> None:
    matplotlib.use("agg")
    if arguments[:1] == ["--figure"] and len(arguments) == 2:
        figure().savefig(arguments[1], dpi=110)
    else:
        print("\n\n".join(tables().values()))


if __name__ == "__main__":
    main(sys.argv[1:])
