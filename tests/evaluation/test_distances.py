"""The metrics against closed forms, naive implementations and the libraries."""

import math

import numpy as np
import pytest
import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from models.core.errors import InputError
from models.core.images import eight_bit
from models.evaluation.distances import (
    FeatureMoments,
    frechet_distance,
    kernel_distance,
    manifold_scores,
    nearest_neighbours,
)
from models.evaluation.spectrum import PowerSpectrum, luminance, radial_power, spectrum_error, spectrum_gap
from models.inference.pictures import to_uint8

D = 6


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rotation(seed: int, size: int = D) -> Tensor:
    return torch.linalg.qr(normal(size, size, seed=seed))[0]


def gaussian(mean: Tensor, covariance: Tensor, count: int = 5000) -> FeatureMoments:
    """A set with exactly these moments."""
    return FeatureMoments(torch.tensor(count), mean, covariance * (count - 1))


def close(a, b, atol: float = 1e-10) -> None:
    a, b = (torch.as_tensor(value, dtype=torch.float64) for value in (a, b))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=atol)


def same(a: FeatureMoments | PowerSpectrum, b: FeatureMoments | PowerSpectrum, atol: float = 1e-9) -> None:
    for name, value in vars(a).items():
        close(value, vars(b)[name], atol)


# ---- images --------------------------------------------------------------------------------------------------------


def test_eight_bit_is_what_a_picture_shows_and_passes_what_it_gives():
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
def test_what_is_no_image_is_refused(images, reason):
    with pytest.raises(InputError, match=reason):
        eight_bit(images)


# ---- moments and Frechet distance ----------------------------------------------------------------------------------


def test_streaming_moments_equal_those_at_once():
    features = 3 + normal(1001, D) @ normal(D, D, seed=1)
    moments = FeatureMoments.empty(D)
    for batch in (features[:0], *features.split(128), features[:0]):
        moments.update(batch)
    same(moments, FeatureMoments.of(features))
    assert moments.count == 1001
    close(moments.mean, features.mean(0))
    close(moments.covariance, features.T.cov())


def test_merged_moments_equal_those_of_the_whole():
    features = normal(300, D)
    parts = [FeatureMoments.of(rows) for rows in features.tensor_split([10, 10, 200])]  # one of them empty
    before = FeatureMoments(**{name: value.clone() for name, value in vars(parts[1]).items()})
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        merged = FeatureMoments.empty(D)
        for i in order:
            merged.merge(parts[i])
        same(merged, FeatureMoments.of(features))
    same(parts[1], before, 0)


def test_moments_far_from_zero_lose_no_digits():
    features = normal(500, D)
    moments = FeatureMoments.empty(D)
    for batch in (features + 1e7).split(50):
        moments.update(batch)
    close(moments.covariance, features.T.cov(), 1e-7)


def test_frechet_distance_of_a_translation_is_its_square():
    covariance, shift = normal(D, D) @ normal(D, D).T, normal(D, seed=1)
    close(frechet_distance(gaussian(shift, covariance), gaussian(0 * shift, covariance)), shift.square().sum())


def test_frechet_distance_of_commuting_covariances():
    """|m1 - m2|^2 + sum (s1 - s2)^2, s the stds along the common axes; some of them 0."""
    axes, (m1, m2) = rotation(0), normal(2, D, seed=1)
    s1, s2 = torch.tensor([[1, 2, 3, 0.5, 0, 0], [2, 2, 1, 0, 4, 0]]).double()
    first, second = (gaussian(m, axes * s.square() @ axes.T) for m, s in ((m1, s1), (m2, s2)))
    want = (m1 - m2).square().sum() + (s1 - s2).square().sum()
    close(frechet_distance(first, second), want, 1e-6)  # 1e-8 of a std: what rounding makes of a variance of 0
    close(frechet_distance(second, first), want, 1e-6)


def test_frechet_distance_in_the_plane():
    """tr (C1 C2)^(1/2) = (tr C1 C2 + 2 (det C1 C2)^(1/2))^(1/2) for 2x2, that do not commute."""
    c1, c2 = (a @ a.T for a in normal(2, 2, 2))
    overlap = ((c1 @ c2).trace() + 2 * (c1.det() * c2.det()).sqrt()).sqrt()
    zero = torch.zeros(2).double()
    close(frechet_distance(gaussian(zero, c1), gaussian(zero, c2)), c1.trace() + c2.trace() - 2 * overlap)


def test_frechet_distance_of_equal_sets_is_zero_even_if_features_are_dead_or_dependent():
    features = normal(2048, 40) @ normal(40, 64, seed=1) * torch.logspace(0, -6, 64)
    features[:, -5:] = 0
    moments = FeatureMoments.of(features)
    assert abs(frechet_distance(moments, moments)) < 1e-11 * moments.covariance.trace()


def test_frechet_distance_equals_the_library():
    x, y = normal(300, D), 0.3 + normal(200, D, seed=1) @ normal(D, D, seed=2)
    library = FrechetInceptionDistance(identity())
    library.update(x, real=True)
    library.update(y, real=False)
    close(frechet_distance(FeatureMoments.of(x), FeatureMoments.of(y), minimum=2), library.compute(), 1e-7)


def test_frechet_distance_equals_scipys_root():
    linalg = pytest.importorskip("scipy.linalg")
    x, y = normal(300, D), 0.3 + normal(200, D, seed=1) @ normal(D, D, seed=2)
    c1, c2 = x.T.cov().numpy(), y.T.cov().numpy()
    want = (x.mean(0) - y.mean(0)).square().sum() + np.trace(c1 + c2 - 2 * linalg.sqrtm(c1 @ c2).real)
    close(frechet_distance(FeatureMoments.of(x), FeatureMoments.of(y), minimum=2), want, 1e-9)


def test_frechet_distance_of_one_law_is_its_documented_bias():
    def distance(seed: int) -> Tensor:
        first, second = (FeatureMoments.of(half) for half in normal(4096, 16, seed=seed).chunk(2))
        return frechet_distance(first, second)

    mean = torch.stack([distance(seed) for seed in range(20)]).mean()
    assert mean.item() == pytest.approx(16 * (16 + 4) / (2 * 2048), rel=0.05)


def test_frechet_distance_of_too_few_images_is_refused_and_offers_kid():
    few, many = FeatureMoments.of(normal(2047, D)), FeatureMoments.of(normal(2048, D))
    for pair in ((few, many), (many, few)):
        with pytest.raises(InputError, match="fid: 2,047 images.*below 2,048.*kid"):
            frechet_distance(*pair)
    assert frechet_distance(many, many).isfinite() and frechet_distance(few, many, minimum=100).isfinite()
    with pytest.raises(InputError, match="fid: 1 images"):
        frechet_distance(FeatureMoments.of(normal(1, D)), many, minimum=0)
    with pytest.raises(InputError, match="fid: 6 and 7 features"):
        frechet_distance(many, FeatureMoments.of(normal(2048, 7)))


# ---- kernel distance -----------------------------------------------------------------------------------------------


def identity() -> nn.Module:
    """The library's feature network for features: it does nothing."""
    net = nn.Identity()
    net.num_features = D
    return net


def test_kernel_distance_equals_its_definition():
    x, y = normal(7, D).numpy(), normal(7, D, seed=1).numpy()

    def mean_kernel(a: np.ndarray, b: np.ndarray, different: bool) -> float:
        pairs = [(i, j) for i in range(7) for j in range(7) if not different or i != j]
        return sum((a[i] @ b[j] / D + 1) ** 3 for i, j in pairs) / len(pairs)

    want = mean_kernel(x, x, True) + mean_kernel(y, y, True) - 2 * mean_kernel(x, y, False)
    found = kernel_distance(torch.tensor(x), torch.tensor(y), subsets=3, subset_size=7)
    close(found.mean, want)
    close(found.std, 0.0)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")
def test_kernel_distance_equals_the_library():
    x, y = normal(60, D), 0.3 + normal(60, D, seed=1)
    library = KernelInceptionDistance(identity(), subsets=2, subset_size=60)
    library.update(y, real=True)
    library.update(x, real=False)
    close(kernel_distance(x, y, subsets=2, subset_size=60).mean, library.compute()[0])


def test_kernel_distance_of_known_laws():
    """In one dimension MMD^2 = sum_j binom(3, j) (E x^j - E y^j)^2, here of N(0, 1) and N(1/2, 1)."""
    x, y = normal(4000, 1), 0.5 + normal(4000, 1, seed=1)
    want = 3 * 0.5**2 + 3 * 0.25**2 + (0.5**3 + 3 * 0.5) ** 2
    assert kernel_distance(x, y, subsets=40, subset_size=500).mean.item() == pytest.approx(want, rel=0.15)


def test_kernel_distance_is_unbiased_at_any_number_of_images():
    for size in (4, 64):
        found = torch.stack(
            [kernel_distance(normal(size, D, seed=s), normal(size, D, seed=1000 + s), 1, size).mean for s in range(300)]
        )
        assert abs(found.mean()) < 3 * found.std() / math.sqrt(len(found))
        assert (found < 0).any()


def test_kernel_distance_draws_from_its_generator_alone():
    x, y = normal(100, D), 0.3 + normal(80, D, seed=1)
    torch.manual_seed(1)
    first = kernel_distance(x, y, 5, 20)
    torch.manual_seed(2)
    assert kernel_distance(x, y, 5, 20) == first and first.std > 0
    other = kernel_distance(x, y, 5, 20, torch.Generator().manual_seed(1))
    assert other != first
    close(kernel_distance(x.float(), y.float(), 5, 20).mean, first.mean, 1e-6)


@pytest.mark.parametrize("size", [1, 81])
def test_kernel_distance_of_too_few_images_is_refused(size):
    with pytest.raises(InputError, match=rf"kid: subset_size {size} must lie between 2 and the 80 images"):
        kernel_distance(normal(100, D), normal(80, D), subset_size=size)


# ---- precision, recall, density, coverage --------------------------------------------------------------------------


def naive_scores(drawn: Tensor, real: Tensor, k: int, wide: int) -> list[float]:
    """The four definitions, loop by loop."""
    drawn, real = drawn.numpy(), real.numpy()

    def reach(points: np.ndarray, i: int, k: int) -> float:
        return sorted(np.linalg.norm(points[i] - points[j]) for j in range(len(points)) if j != i)[k - 1]

    def share(points: np.ndarray, centres: np.ndarray) -> float:
        reaches = [reach(centres, i, k) for i in range(len(centres))]
        return float(np.mean([any(np.linalg.norm(p - centres, axis=1) <= reaches) for p in points]))

    inside = np.array([[np.linalg.norm(x - y) < reach(real, i, wide) for y in drawn] for i, x in enumerate(real)])
    density, coverage = inside.sum(0).mean() / wide, inside.any(1).mean()
    return [share(drawn, real), share(real, drawn), density, coverage]


def scores(*args, **kwargs) -> list[float]:
    return [value.item() for value in vars(manifold_scores(*args, **kwargs)).values()]


@pytest.mark.parametrize("chunk", [1, 7, 1024])
@pytest.mark.parametrize(("k", "wide"), [(3, 5), (2, 1)])
def test_manifold_scores_equal_their_definition(chunk, k, wide):
    drawn, real = 0.8 * normal(23, 3), normal(17, 3, seed=1)
    want = naive_scores(drawn, real, k, wide)
    assert all(0 < value < 1.5 for value in want)
    assert scores(drawn, real, k, wide, chunk) == pytest.approx(want)


def test_manifold_scores_of_disjoint_sets_are_zero():
    assert scores(100 + normal(50, D), normal(60, D, seed=1)) == [0, 0, 0, 0]


def test_manifold_scores_of_one_law_are_as_documented():
    pairs = [scores(normal(1000, D, seed=i), normal(1000, D, seed=100 + i)) for i in range(4)]
    precision, recall, density, coverage = np.mean(pairs, 0)
    assert 0.85 < precision < 1 and 0.85 < recall < 1
    assert density == pytest.approx(1, abs=0.03)
    assert coverage == pytest.approx(1 - 2**-5, abs=0.01)


def modes(count: int, number: int, seed: int) -> Tensor:
    """Points spread evenly over the first of eight far modes."""
    centres = 20 * normal(8, D, seed=99)[:number]
    return repeat(centres, "m d -> (m n) d", n=count // number) + normal(count, D, seed=seed)


def test_dropped_modes_lower_recall_and_coverage_only():
    real = modes(800, 8, 1)
    whole, half = scores(modes(800, 8, 2), real), scores(modes(800, 4, 2), real)
    assert half[0] == pytest.approx(whole[0], abs=0.03) and half[2] == pytest.approx(whole[2], abs=0.1)
    assert half[1] == pytest.approx(whole[1] / 2, abs=0.03) and half[3] == pytest.approx(0.5, abs=0.01)


def test_noise_in_other_directions_lowers_precision_and_density_only():
    """Three of four images are fine and every fourth far off: those are not real-looking, but nothing is missing."""
    real, fine = modes(800, 8, 1), modes(800, 8, 2)
    noisy = fine.clone()
    noisy[::4] += 300 + 30 * normal(200, D, seed=3)
    before, after = scores(fine, real), scores(noisy, real)
    assert after[0] == pytest.approx(0.75 * before[0], abs=0.02) and after[2] == pytest.approx(0.75, abs=0.06)
    assert after[1] > before[1] - 0.03 and after[3] > before[3] - 0.05


def test_manifold_scores_in_float32_are_those_in_float64():
    drawn, real = 50 + normal(300, 64), 50 + normal(300, 64, seed=1)
    assert scores(drawn.float(), real.float()) == pytest.approx(scores(drawn, real), abs=0.005)


def test_manifold_scores_of_too_few_images_are_refused():
    with pytest.raises(InputError, match="5 images have no 5 neighbours"):
        manifold_scores(normal(5, D), normal(50, D))
    with pytest.raises(InputError, match=r"\(50, 6\) and \(50, 7\)"):
        manifold_scores(normal(50, D), normal(50, 7))


@pytest.mark.parametrize("chunk", [1, 8, 1024])
def test_nearest_neighbours_are_the_nearest(chunk):
    features, bank = normal(20, D), normal(33, D, seed=1)
    want = [sorted(range(33), key=lambda j: (x - bank[j]).norm().item())[:4] for x in features]
    assert nearest_neighbours(features, bank, 4, chunk).tolist() == want
    assert nearest_neighbours(bank.float(), bank.float(), chunk=chunk).flatten().tolist() == list(range(33))
    for k in (0, 34):
        with pytest.raises(InputError, match=f"k = {k} must lie between 1 and the 33"):
            nearest_neighbours(features, bank, k)


# ---- power spectrum ------------------------------------------------------------------------------------------------


def grey(images: Tensor) -> Tensor:
    """Grey images (N, H, W) as (N, 3, H, W)."""
    return repeat(images, "n h w -> n 3 h w")


def test_luminance_is_that_of_pil():
    from PIL import Image

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


def test_streamed_and_merged_spectra_equal_that_at_once():
    images = grey(0.5 + 0.1 * normal(50, 16, 16))
    whole, streamed, merged = PowerSpectrum.of(images), PowerSpectrum.empty(16), PowerSpectrum.empty(16)
    for batch in images.split(8):
        streamed.update(batch)
    for part in images.tensor_split([20]):
        merged.merge(PowerSpectrum.of(part))
    same(streamed, whole)
    same(merged, whole)
    same(PowerSpectrum.of(eight_bit(images)), whole)


def gap_and_error(model: Tensor, data: Tensor) -> tuple[float, float]:
    spectra = PowerSpectrum.of(grey(model)), PowerSpectrum.of(grey(data))
    return spectrum_gap(*spectra).item(), spectrum_error(*spectra).item()


def test_spectrum_gap_is_zero_of_the_same_negative_of_smooth_and_positive_of_noisy_images():
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


def test_spectrum_gap_sees_the_upper_frequencies_only_and_error_what_cancels_in_it():
    def with_power(bands: list[tuple[int, float]]) -> PowerSpectrum:
        power = torch.ones(32).double()
        for cycles, value in bands:
            power[cycles - 1] = value
        return PowerSpectrum(torch.tensor(1), power, torch.tensor(64))

    flat = with_power([])
    close(spectrum_gap(with_power([(1, 9.0), (7, 9.0)]), flat), 0.0)
    close(spectrum_gap(with_power([(8, 2.0), (32, 2.0)]), flat), 2 / 25)
    close(spectrum_gap(with_power([(8, 2.0), (32, 0.5)]), flat), 0.0)
    close(spectrum_error(with_power([(8, 2.0), (32, 0.5)]), flat), 2 / 25)
    assert spectrum_gap(PowerSpectrum.of(torch.full((2, 3, 64, 64), 0.5)), flat) == -math.inf


def test_spectra_of_different_sizes_or_of_nothing_are_refused():
    small, large = PowerSpectrum.of(torch.zeros(2, 3, 16, 16)), PowerSpectrum.of(torch.zeros(2, 3, 32, 32))
    for compare in (spectrum_gap, spectrum_error, PowerSpectrum.merge):
        with pytest.raises(InputError, match="16 and 32 pixels"):
            compare(small, large)
    with pytest.raises(InputError, match="32x16 among 16x16"):
        small.update(torch.zeros(2, 3, 16, 32))
    with pytest.raises(InputError, match="of no images"):
        spectrum_gap(PowerSpectrum.empty(16), small)
