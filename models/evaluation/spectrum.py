"""Sharpness without a network: the radial power spectrum of images, compared with that of the data.

Axes: N images, R radial frequencies, B batch, H height, W width.
"""

from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.core.images import eight_bit

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL's mode L


@dataclass(frozen=True)
class PowerSpectrum:
    """Radial power spectra of the luminance of square images, in float64."""

    powers: Tensor  # of each image, at 1, 2, ..., R = H // 2 cycles per image, (N, R)
    size: int  # H = W in pixels

    @classmethod
    def of(cls, images: Tensor) -> "PowerSpectrum":
        """Compute the spectra of images (N, 3, H, W), uint8 or floats in [0, 1], rounded to 8 bits first.

        Raises:
            InputError: not such images, no images, or not square ones.
        """
        levels = eight_bit(images)
        count, _, height, width = levels.shape
        if not count or height != width:
            raise InputError(f"power spectrum: {count:,} images of {width}x{height}; give square ones, one at least")
        return cls(radial_power(luminance(levels)), width)

    @property
    def power(self) -> Tensor:
        """Mean over the images, (R,), squared [0, 1] units per pixel: white noise of std s has s^2 everywhere."""
        return self.powers.mean(0)

    @property
    def frequencies(self) -> Tensor:
        """Cycles per pixel of each value, (R,); the last is Nyquist, 1/2, if the size is even."""
        return torch.arange(1, self.powers.shape[1] + 1, device=self.powers.device, dtype=torch.float64) / self.size


def luminance(levels: Tensor) -> Tensor:
    """Return 0.299 R + 0.587 G + 0.114 B of uint8 images (B, 3, H, W), in [0, 1], float64, not rounded: (B, H, W)."""
    weights = torch.tensor(LUMINANCE, dtype=torch.float64, device=levels.device) / 255
    return einsum(levels.double(), weights, "b c h w, c -> b h w")


def radial_power(images: Tensor) -> Tensor:
    """P(r) = mean |F(u, v)|^2 / sum w^2 over round(|(u, v)|) = r, F = DFT of w (x - mean x): (B, R), R = H // 2.

    w is a Hann window. Without it the jump between opposite edges, which are neighbours to the DFT, adds a floor to the
    high frequencies of a photograph, which hides how blurry it is. Corners beyond Nyquist are left out.

    Args:
        images: of one channel, (B, H, W), H = W, float64.
    """
    side = images.shape[-1]
    hann = torch.hann_window(side, dtype=images.dtype, device=images.device)
    window = torch.outer(hann, hann)
    centred = images - images.mean((1, 2), keepdim=True)
    power = torch.fft.fft2(window * centred).abs().square() / window.square().sum()  # (B, H, W)
    cycles = torch.fft.fftfreq(side, 1 / side, dtype=images.dtype, device=images.device)
    ring = torch.hypot(cycles[:, None], cycles[None, :]).round().long()  # (H, W)
    rings = int(ring.max()) + 1
    sums = torch.zeros(len(images), rings, dtype=images.dtype, device=images.device)
    sums.index_add_(1, rearrange(ring, "h w -> (h w)"), rearrange(power, "b h w -> b (h w)"))
    return (sums / ring.flatten().bincount(minlength=rings))[:, 1 : side // 2 + 1]


def spectrum_gap(model: PowerSpectrum, data: PowerSpectrum) -> Tensor:
    """Mean of log2(P_model / P_data) over the radial frequencies from Nyquist/4 to Nyquist, (), in octaves of power.

    Negative: too smooth; positive: too noisy; -2 is a quarter of the power, half the amplitude. Both kinds of error may
    cancel: read it together with spectrum_error. Minus infinity if the model's images have no detail at all.

    Raises:
        InputError: different sizes.
    """
    return _log_ratio(model, data).mean()


def spectrum_error(model: PowerSpectrum, data: PowerSpectrum) -> Tensor:
    """Mean of |log2(P_model / P_data)| over the radial frequencies from Nyquist/4 to Nyquist, (), in octaves of power.

    At least |spectrum_gap|; equal to it if the sign is the same at every frequency.

    Raises:
        InputError: different sizes.
    """
    return _log_ratio(model, data).abs().mean()


def _log_ratio(model: PowerSpectrum, data: PowerSpectrum) -> Tensor:
    if model.size != data.size:
        raise InputError(
            f"power spectrum: images of {model.size} and {data.size} pixels cannot be compared; resize one"
        )
    upper = data.frequencies >= 0.5 / 4
    return (model.power[upper] / data.power[upper]).log2()
