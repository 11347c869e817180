"""Power spectra of known images, and images as a picture file holds them."""

import math

import numpy as np
import pytest
import torch
from einops import rearrange, repeat
from PIL import Image
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.core.images import eight_bit
from degrain.models.evaluation.spectrum import PowerSpectrum, luminance, radial_power, spectrum_error, spectrum_gap
from degrain.models.inference.pictures import to_uint8
from tests.evaluation.test_distances import close, normal


def test_eight_bit_rounds_as_pictures_do_and_passes_its_own_result():
    images = 0.5 + 0.5 * normal(5, 3, 7, 9)
    levels = eight_bit(images)
    assert levels.dtype == torch.uint8
    np.testing.assert_array_equal(rearrange(levels, "b c h w -> b h w c").numpy(), to_uint8(images))
    assert eight_bit(levels) is levels
    assert eight_bit(levels.float() / 255).equal(levels)


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (torch.zeros(3, 8, 8), r"\(3, 8, 8\).*\(B, 3, H, W\)"),
        (torch.zeros(2, 1, 8, 8), r"\(2, 1, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "int64"),
        (torch.full((2, 3, 8, 8), math.nan), "384 of 384 values are not finite"),
    ],
)
def test_tensors_that_are_not_images_are_refused(images, reason):
    with pytest.raises(InputError, match=reason):
        eight_bit(images)


def grey(images: Tensor) -> Tensor:
    """Repeat grey images (N, H, W) to (N, 3, H, W)."""
    return repeat(images, "n h w -> n 3 h w")


def test_luminance_is_that_of_pil():
    levels = (255 * torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(0))).byte()
    picture = Image.fromarray(rearrange(levels, "1 c h w -> h w c").numpy()).convert("L")
    np.testing.assert_allclose(255 * luminance(levels)[0].numpy(), np.asarray(picture), atol=0.51)
    close(luminance(grey(levels[:, 0])), levels[:, 0].double() / 255)


@pytest.mark.parametrize("side", [32, 33])
def test_spectrum_of_white_noise_is_its_variance_at_every_frequency(side):
    spectrum = PowerSpectrum.of(grey(0.5 + 0.1 * normal(400, side, side)))
    assert spectrum.power.shape == spectrum.frequencies.shape == (side // 2,)
    torch.testing.assert_close(spectrum.power[1:], torch.full_like(spectrum.power[1:], 0.01), rtol=0.08, atol=0)
    close(spectrum.frequencies[[0, -1]], [1 / side, (side // 2) / side])


@pytest.mark.parametrize("cycles", [(5, 0), (0, 12), (3, 4)])
def test_spectrum_of_a_wave_is_at_its_frequency(cycles):
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    wave = torch.cos(2 * torch.pi * (cycles[0] * y + cycles[1] * x) / 32).double()
    power = radial_power(wave[None])[0]
    radius = round(math.hypot(*cycles))
    assert power.argmax() + 1 == radius
    assert power[radius - 3 : radius + 2].sum() > 0.999 * power.sum()


def test_spectrum_of_a_slope_has_no_high_frequencies_although_its_edges_differ():
    slope = torch.linspace(0, 1, 64).double().expand(1, 64, 64)
    without_window = torch.fft.fft2(slope - slope.mean()).abs().square()[0, 0, 1:33] / 64**2
    power = radial_power(slope)[0]
    assert power[16:].sum() / power.sum() < 1e-6 < 1e-3 < without_window[16:].sum() / without_window.sum()


def test_spectra_are_of_each_image_and_of_its_8_bit_levels():
    images = grey(0.5 + 0.1 * normal(50, 16, 16))
    whole = PowerSpectrum.of(images)
    close(whole.powers, torch.cat([PowerSpectrum.of(part).powers for part in images.split(8)]))
    close(whole.power, whole.powers.mean(0))
    close(PowerSpectrum.of(eight_bit(images)).powers, whole.powers)


def gap_and_error(model: Tensor, data: Tensor) -> tuple[float, float]:
    spectra = PowerSpectrum.of(grey(model)), PowerSpectrum.of(grey(data))
    return spectrum_gap(*spectra).item(), spectrum_error(*spectra).item()


def test_spectrum_gap_is_0_for_equal_negative_for_smooth_and_positive_for_noisy_images():
    detail = 0.1 * normal(100, 64, 64)
    smooth = 0.25 * (2 * detail + detail.roll(1, 2) + detail.roll(-1, 2))
    assert gap_and_error(0.5 + detail, 0.5 + detail) == (0, 0)
    gap, error = gap_and_error(0.5 + smooth, 0.5 + detail)
    assert gap < -0.5 and error == pytest.approx(-gap)
    gap, error = gap_and_error(0.5 + smooth + 0.1 * normal(100, 64, 64, seed=1), 0.5 + smooth)
    assert gap > 0.5 and error == pytest.approx(gap)


def test_spectrum_gap_is_in_octaves_of_power():
    detail = 0.2 * normal(100, 32, 32)
    gap, error = gap_and_error(0.5 + 0.25 * detail, 0.5 + 0.5 * detail)
    assert gap == pytest.approx(-2, abs=0.02) and error == pytest.approx(2, abs=0.02)


def test_spectrum_gap_sees_only_upper_frequencies_and_the_error_does_not_cancel():
    def with_power(bands: list[tuple[int, float]]) -> PowerSpectrum:
        power = torch.ones(32).double()
        for cycles, value in bands:
            power[cycles - 1] = value
        return PowerSpectrum(power[None], 64)

    flat = with_power([])
    close(spectrum_gap(with_power([(1, 9.0), (7, 9.0)]), flat), 0.0)
    close(spectrum_gap(with_power([(8, 2.0), (32, 2.0)]), flat), 2 / 25)
    close(spectrum_gap(with_power([(8, 2.0), (32, 0.5)]), flat), 0.0)
    close(spectrum_error(with_power([(8, 2.0), (32, 0.5)]), flat), 2 / 25)
    assert spectrum_gap(PowerSpectrum.of(torch.full((2, 3, 64, 64), 0.5)), flat) == -math.inf


def test_spectra_of_different_sizes_or_of_no_images_are_refused():
    small, large = PowerSpectrum.of(torch.zeros(2, 3, 16, 16)), PowerSpectrum.of(torch.zeros(2, 3, 32, 32))
    for compare in (spectrum_gap, spectrum_error):
        with pytest.raises(InputError, match="16 and 32 pixels"):
            compare(small, large)
    for shape, found in (((2, 3, 16, 32), "2 images of 32x16"), ((0, 3, 16, 16), "0 images of 16x16")):
        with pytest.raises(InputError, match=f"{found}; give square ones, one at least"):
            PowerSpectrum.of(torch.zeros(shape))
