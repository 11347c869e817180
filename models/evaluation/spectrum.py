"""Sharpness without a network: the radial power spectrum of images, compared with that of the data.

Axes: N images, R radial frequencies, B batch, H height, W width.
"""

from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from torch import Tensor

from models.core.errors import InputError
from models.core.images import eight_bit

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL's mode L


@dataclass
class PowerSpectrum:
    """Radially averaged power spectrum of the luminance of square images, added in batches of any size, in float64.

    Plain tensors, to be gathered over processes or written to disk: `PowerSpectrum(**vars(s))`.

    Args:
        count: N, int64, ().
        total: sum of the images' spectra at 1, 2, ..., R = H // 2 cycles per image, (R,).
        size: H = W in pixels, int64, ().
    """

    count: Tensor
    total: Tensor
    size: Tensor

    @classmethod
    def empty(cls, size: int, device: torch.device | str = "cpu") -> "PowerSpectrum":
        """Return the spectrum of no images of `size` pixels a side."""
        count, side = (torch.tensor(n, dtype=torch.int64, device=device) for n in (0, size))
        return cls(count, torch.zeros(size // 2, dtype=torch.float64, device=device), side)

    @classmethod
    def of(cls, images: Tensor) -> "PowerSpectrum":
        """Return the spectrum of images (N, 3, H, W); see update."""
        spectrum = cls.empty(images.shape[-1], images.device)
        spectrum.update(images)
        return spectrum

    def update(self, images: Tensor) -> None:
        """Add images (B, 3, H, W), uint8 or floats in [0, 1], which are rounded to 8 bits first (see eight_bit).

        Raises:
            InputError: not such images, or not of this size.
        """
        levels = eight_bit(images).to(self.total.device)
        if set(levels.shape[2:]) != {int(self.size)}:
            height, width = levels.shape[2:]
            raise InputError(f"power spectrum: an image of {width}x{height} among {self.size}x{self.size}")
        self.total = self.total + radial_power(luminance(levels)).sum(0)
        self.count = self.count + len(levels)

    def merge(self, other: "PowerSpectrum") -> None:
        """Add the spectrum of another set, unchanged itself.

        Raises:
            InputError: its images have another size.
        """
        _check_same_size(self, other)
        self.total, self.count = self.total + other.total, self.count + other.count

    @property
    def power(self) -> Tensor:
        """Mean over the images, (R,), squared [0, 1] units per pixel: white noise of std s has s^2 everywhere."""
        return self.total / self.count

    @property
    def frequencies(self) -> Tensor:
        """Cycles per pixel of each value, (R,); the last is Nyquist, 1/2, if the size is even."""
        return torch.arange(1, len(self.total) + 1, device=self.total.device) / self.size.double()


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
        InputError: different sizes, or no images.
    """
    return _log_ratio(model, data).mean()


def spectrum_error(model: PowerSpectrum, data: PowerSpectrum) -> Tensor:
    """Mean of |log2(P_model / P_data)| over the radial frequencies from Nyquist/4 to Nyquist, (), in octaves of power.

    At least |spectrum_gap|; equal to it if the sign is the same at every frequency.

    Raises:
        InputError: different sizes, or no images.
    """
    return _log_ratio(model, data).abs().mean()


def _log_ratio(model: PowerSpectrum, data: PowerSpectrum) -> Tensor:
    _check_same_size(model, data)
    if not model.count or not data.count:
        raise InputError("power spectrum: of no images; update it first")
    upper = data.frequencies >= 0.5 / 4
    return (model.power[upper] / data.power[upper]).log2()


def _check_same_size(one: PowerSpectrum, other: PowerSpectrum) -> None:
    if one.size != other.size:
        raise InputError(f"power spectrum: images of {one.size} and {other.size} pixels cannot be compared; resize one")
