"""The convolutional VAE: an encoder to q(z|x) and a decoder to p(x|z), a mean and a std for every pixel and channel."""

from dataclasses import dataclass, field
from itertools import chain
from math import log
from typing import Literal

import torch
from torch import Tensor, nn

from degrain.models.core.errors import InputError
from degrain.models.core.gaussian import Gaussian, soft_ceiling, soft_floor
from degrain.models.core.images import check_images, check_tensor
from degrain.models.core.layers import PyramidConfig, down, kaiming, levels, up
from degrain.models.vae.flow import AutoregressiveFlow, FlowConfig, FlowedGaussian
from degrain.models.vae.pixel_decoder import PixelConfig, PixelStack, coloured, eight_bit_draw

LOG_CEILING = log(2)
"""Upper bound of a posterior's log std: a std above the prior's never pays, and early in training z would diverge."""


@dataclass(frozen=True)
class VAEConfig:
    """Architecture of the VAE.

    Args:
        latent: number of latents D.
        encoder: pyramid of the encoder.
        decoder: pyramid of the decoder.
        neck: channels of the 4x4 features next to the code; few, or the dense layers would hold half of all parameters.
        std_floor: least std of a pixel, in [0, 1] units; 0.002 is half an 8-bit level.
        std_start: std of every pixel in a new network: low, because a decoder that starts wide never needs its code.
        std: `pixel`, a std for every pixel from the decoder; `shared`, one learned std for all pixels of all images;
            `fixed`, std_start for the whole training.
        posterior: inverse autoregressive steps on the encoder's Gaussian (Kingma et al. 2016), with D further features
            of the image as their context; without steps q(z|x) is Gaussian.
        prior: masked autoregressive steps from z to the noise of p(z), trained with the rest (VLAE, Chen et al. 2017);
            without steps p(z) is N(0, I).
        pixels: masked convolutions over the image, through which each pixel's distribution depends on the pixels before
            it (PixelVAE); without blocks the pixels are independent given z.
    """

    latent: int = 128
    encoder: PyramidConfig = field(default_factory=PyramidConfig)
    decoder: PyramidConfig = field(default_factory=PyramidConfig)
    neck: int = 64
    std_floor: float = 0.002
    std_start: float = 0.1
    std: Literal["pixel", "shared", "fixed"] = "pixel"
    posterior: FlowConfig = FlowConfig()
    prior: FlowConfig = FlowConfig()
    pixels: PixelConfig = PixelConfig()

    def must_be_gaussian(self, recipe: str) -> None:
        """Raise an InputError if there is no mean image or no closed-form KL, which the recipe needs."""
        no_image = "there is no mean image of a z, only a mean of each pixel given those before it"
        no_rate = "its rate is the closed form of a Gaussian posterior beside N(0, I)"
        for name, value, reason in (
            ("pixels.blocks", self.pixels.blocks, no_image),
            ("posterior.steps", self.posterior.steps, no_rate),
            ("prior.steps", self.prior.steps, no_rate),
        ):
            if value:
                raise InputError(f"{recipe}: net.{name} ({value}): {reason}; take 0")


Posterior = Gaussian | FlowedGaussian
"""q(z|x): both have `sample`, z for standard normal noise, and `draw`, z with its log q(z|x)."""


class Encoder(nn.Module):
    """x -> q(z|x), for x (B, 3, H, W) in [0, 1]: a Gaussian, mean and logstd (B, D), followed by the flow, if any."""

    def __init__(self, size: int, config: VAEConfig) -> None:
        super().__init__()
        self.latent = config.latent
        pyramid, widths = config.encoder, config.encoder.channels(size)
        parts = 3 if config.posterior.steps else 2  # mean, logstd and the flow's context
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(pyramid.patch),  # (B, 3 p^2, H/p, W/p)
            nn.Conv2d(3 * pyramid.patch**2, widths[0], 3, padding=1),
            *chain.from_iterable(levels(widths, pyramid.blocks, down)),  # (B, C, 4, 4)
            nn.SiLU(),
            nn.Conv2d(widths[-1], config.neck, 1),
            nn.Flatten(),  # (B, N, 4, 4) -> (B, 16 N)
            nn.Linear(16 * config.neck, parts * config.latent),  # (B, 2 D or 3 D)
        )
        kaiming(self)
        self.flow = AutoregressiveFlow(config.latent, config.posterior, config.latent) if parts == 3 else None

    def forward(self, x: Tensor) -> Posterior:
        mean, logstd, *context = self.layers(2 * x - 1).float().split(self.latent, dim=1)
        base = Gaussian(mean, soft_ceiling(logstd, LOG_CEILING))
        return FlowedGaussian(base, self.flow, *context) if context else base


class Decoder(nn.Module):
    """z (B, D) -> p(x|z): mean and logstd of every pixel, each (B, 3, H, W), in [0, 1] units.

    Args:
        size: image side in pixels.
        config: architecture.
        context: further output channels, which `PixelDecoder` uses.
    """

    def __init__(self, size: int, config: VAEConfig, context: int = 0) -> None:
        super().__init__()
        pyramid, self.std = config.decoder, config.std
        widths = pyramid.channels(size)
        channels = (6 if self.std == "pixel" else 3) + context
        self.layers = nn.Sequential(
            nn.Linear(config.latent, 16 * config.neck),
            nn.Unflatten(1, (config.neck, 4, 4)),
            nn.Conv2d(config.neck, widths[-1], 1),
            *chain.from_iterable(levels(reversed(widths), pyramid.blocks, up)),  # (B, C, H/p, W/p)
            nn.SiLU(),
            nn.Conv2d(widths[0], channels * pyramid.patch**2, 3, padding=1),
            nn.PixelShuffle(pyramid.patch),  # (B, 6 p^2, H/p, W/p) -> (B, 6, H, W)
        )
        kaiming(self)
        head = self.layers[-2]
        nn.init.zeros_(head.bias)
        nn.init.normal_(head.weight, std=1e-3)  # a new decoder predicts grey, with std_start everywhere
        self.log_floor, self.log_start = log(config.std_floor), log(config.std_start)
        if self.std == "shared":
            self.shared_logstd = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor, x: Tensor | None = None) -> Gaussian:
        return self.head(self.features(z))  # x does not matter: the pixels are independent

    def features(self, z: Tensor) -> Tensor:
        """Return the features from which `head` makes mean and std, (B, C, H/p, W/p)."""
        return self.layers[:-2](z)

    def head(self, features: Tensor) -> Gaussian:
        """Return p(x|z) from the features: one convolution."""
        return self.gaussian(self.layers[-2:](features).float())

    def gaussian(self, output: Tensor) -> Gaussian:
        """Return mean and logstd (B, 3, ...) from (B, 6, ...), or from (B, 3, ...) if the std is no output."""
        mean, logstd = 0.5 * (output[:, :3] + 1), output[:, 3:]
        if self.std == "fixed":
            return Gaussian(mean, torch.full_like(mean, self.log_start))
        if self.std == "shared":
            logstd = self.shared_logstd
        return Gaussian(mean, soft_floor(logstd + self.log_start, self.log_floor).expand_as(mean))


class PixelDecoder(Decoder):
    """(z, x_<i) -> p(x_i|x_<i, z), for the values x_i in raster order, red, green, blue: the decoder of PixelVAE.

    A new one equals the decoder with independent pixels.
    """

    def __init__(self, size: int, config: VAEConfig) -> None:
        super().__init__(size, config, config.pixels.context)
        self.pixels = PixelStack(config.pixels)

    def forward(self, z: Tensor, x: Tensor) -> Gaussian:
        """Return the distribution of every pixel of x (B, 3, H, W), on the grid k/255, given those before it."""
        decoded = self.layers(z).float()  # (B, 6 + C, H, W)
        output = self.pixels(x, decoded)  # (B, 9, H, W)
        return coloured(self.gaussian(decoded[:, :6] + output[:, :6]), output[:, 6:], x)

    def draw(self, z: Tensor, noise: Tensor) -> tuple[Tensor, Gaussian]:
        """Draw images on the grid k/255 from noise (B, 3, H, W); also returns the distribution of each drawn pixel."""
        decoded = self.layers(z).float()  # (B, 6 + C, H, W)
        mean, logstd = torch.empty_like(noise), torch.empty_like(noise)

        def pixel(row: int, column: int, output: Tensor) -> Tensor:
            independent = self.gaussian(decoded[:, :6, row, column] + output[:, :6])
            x, at = torch.zeros_like(independent.mean), (..., row, column)  # (B, 3)
            for colour in range(3):
                p = coloured(independent, output[:, 6:], x)
                x[:, colour] = eight_bit_draw(p, noise[at])[:, colour]
            mean[at], logstd[at] = p.mean, p.logstd
            return x

        return self.pixels.draw(decoded, pixel), Gaussian(mean, logstd)


class VAE(nn.Module):
    """Encoder and decoder.

    Args:
        size: image side in pixels, a power of two from 32 to 256.
        config: architecture.

    Raises:
        InputError: size and architecture do not fit, a width < 1, or not 0 < std_floor < std_start.
    """

    def __init__(self, size: int, config: VAEConfig) -> None:
        super().__init__()
        if min(config.latent, config.neck) < 1:
            raise InputError(f"latent {config.latent} and neck {config.neck}: must be at least 1")
        if config.pixels.blocks and config.std != "pixel":
            both = f"net.std {config.std} with net.pixels.blocks ({config.pixels.blocks})"
            raise InputError(f"{both}: the pixels before determine the std of the next; take std pixel or blocks 0")
        if not 0 < config.std_floor < config.std_start:
            raise InputError(f"std_floor {config.std_floor} must lie between 0 and std_start {config.std_start}")
        self.size, self.config = size, config
        self.encoder = Encoder(size, config)
        self.decoder = (PixelDecoder if config.pixels.blocks else Decoder)(size, config)
        self.to(memory_format=torch.channels_last)  # faster convolutions on CPU and GPU alike

    @property
    def pixel_by_pixel(self) -> bool:
        """True for a PixelVAE: pixels depend on those before them, so that p(x|z) has samples and no mean image."""
        return self.config.pixels.blocks > 0

    def encode(self, x: Tensor) -> Posterior:
        """Return q(z|x) for images (B, 3, H, W) in [0, 1].

        Raises:
            InputError: no such images, of another size or of another type than the weights.
        """
        check_images(x, self.size, self.encoder.layers[1].weight)
        return self.encoder(x)

    def decode(self, z: Tensor, x: Tensor | None = None) -> Gaussian:
        """Return p(x|z) for codes (B, D); a PixelVAE needs the images x, and returns p(x_i|x_<i, z) of every pixel.

        Raises:
            InputError: no such codes, or no images for a PixelVAE.
        """
        weight = self.decoder.layers[0].weight
        check_tensor("codes z", z, ("B", self.config.latent), weight)
        if self.pixel_by_pixel:
            check_tensor("images x, which a PixelVAE decodes with,", x, (len(z), 3, self.size, self.size), weight)
        return self.decoder(z, x)
