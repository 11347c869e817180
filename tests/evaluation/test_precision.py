"""Statistics keep float32 inside a region of half precision: each is compared with float64 outside of one."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from degrain.models.core.gaussian import Gaussian, LatentDraws, kl_of_moments, kl_to_standard_normal, log_density
from degrain.models.core.precision import PRODUCTS, full_precision
from degrain.models.evaluation.calibration import Calibration, CodeStatistics
from degrain.models.evaluation.diagnostics import Diagnostics
from degrain.models.evaluation.digit_classifier import DigitClassifier
from degrain.models.evaluation.distances import frechet_at_infinity, frechet_distance, kernel_distance
from degrain.models.evaluation.manifold import manifold_scores, nearest_neighbours
from degrain.models.evaluation.moments import DenoisingMoments
from degrain.models.evaluation.regions import RegionCalibration
from degrain.models.evaluation.spectrum import PowerSpectrum
from degrain.models.gan.objective import spread_terms, squared_error
from degrain.models.vae.latent_prior import LatentPrior
from degrain.models.vae.likelihood import log_bin_probability
from degrain.models.vae.mixture import Mixture
from degrain.models.vae.regulariser import mixture_moments, mmd_in_nats

COUNT, SIDE, LATENT = 40, 16, 6


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


IMAGES = (0.5 + 0.2 * normal(COUNT, 3, SIDE, SIDE)).clamp(0, 1)
P = Gaussian(IMAGES + 0.1 * normal(COUNT, 3, SIDE, SIDE, seed=1), -2 + 0.4 * normal(COUNT, 3, SIDE, SIDE, seed=2))
DRAWS = P.mean + 0.1 * normal(4, COUNT, 3, SIDE, SIDE, seed=3)
CODES = Gaussian(3 + normal(COUNT, LATENT, seed=4), -1 + 0.3 * normal(COUNT, LATENT, seed=5))
NOISE, FEATURES, OTHERS = normal(COUNT, LATENT, seed=6), normal(COUNT, 200, seed=7), 0.1 + normal(COUNT, 200, seed=8)
COVARIANCE = CODES.mean.T.cov()
REGIONS = torch.arange(SIDE * SIDE).reshape(SIDE, SIDE).mul(7).remainder(3).expand(COUNT, SIDE, SIDE)


def prior(like: Tensor) -> LatentPrior:
    """Return a prior with all its forms, of the type of a tensor."""
    made = LatentPrior(LATENT)
    made.fit(normal(LATENT, seed=9), COVARIANCE)
    made.mixture = Mixture(3, LATENT)
    made.mixture.means.copy_(normal(3, LATENT, seed=10))
    made.mixture.factors.copy_(made.mixture.factors + 0.3 * normal(3, LATENT, LATENT, seed=11).tril(-1))
    return made.to(like)


def streamed(metric: Any, *inputs: Any) -> Any:
    metric.update(*inputs)
    return metric.scalars() if isinstance(metric, Diagnostics) else metric.compute()


def denoising(draws: Tensor, p: Gaussian) -> Any:
    return streamed(DenoisingMoments(("a", "b")), draws, p, REGIONS)


def every_prior(z: Tensor) -> list[Tensor]:
    found, names = prior(z), ("standard", "fitted", "learned")
    return [found.whitened(z), *(found(z, name) for name in names), *(found.log_density(z, name) for name in names)]


STATISTICS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "calibration": (lambda p, x: streamed(Calibration((3, SIDE, SIDE)), p, x), (P, IMAGES)),
    "codes": (lambda q: streamed(CodeStatistics(LATENT), q), (CODES,)),
    "codes, drawn": (
        lambda z: streamed(CodeStatistics(LATENT), LatentDraws(z, z[..., 0])),
        (normal(3, COUNT, LATENT),),
    ),
    "regions": (lambda p, x: streamed(RegionCalibration(("a", "b")), p, x, REGIONS), (P, IMAGES)),
    "planted": (lambda p, x, c: streamed(RegionCalibration(("a", "b")), p, x, REGIONS, c), (P, IMAGES, P.mean + 0.02)),
    "diagnostics": (
        lambda q, p, x: streamed(Diagnostics(SIDE, LATENT, ("a", "b")), q, p, x, {"regions": REGIONS}),
        (CODES, P, IMAGES),
    ),
    "denoising": (denoising, (DRAWS, P)),
    "frechet": (frechet_distance, (FEATURES, OTHERS)),
    "frechet at infinity": (frechet_at_infinity, (FEATURES, OTHERS)),
    "kernel": (kernel_distance, (FEATURES, OTHERS)),
    "manifold": (manifold_scores, (FEATURES, OTHERS)),
    "neighbours": (lambda a, b: nearest_neighbours(a, b, 3), (FEATURES, OTHERS)),
    "spectrum": (PowerSpectrum.of, (IMAGES,)),
    "digits": (lambda x: classifier().modes(x), (IMAGES,)),
    "priors": (every_prior, (NOISE,)),
    "em": (lambda z: Mixture.fitted_to(z, 2, 0).factors, (NOISE,)),
    "gaussian kl": (lambda q: (kl_to_standard_normal(q), log_density(q, q.std)), (CODES,)),
    "moments": (kl_of_moments, (CODES.mean[0], COVARIANCE)),
    "regularisers": (lambda q, z: (mmd_in_nats(q.mean, z), *mixture_moments(q)), (CODES, NOISE)),
    "likelihood": (log_bin_probability, (P, (255 * IMAGES).round() / 255)),
    "spread": (lambda draws, p: spread_terms(draws, p.std), (DRAWS, P)),
    "l2": (squared_error, (DRAWS[0], IMAGES)),
}


def classifier() -> DigitClassifier:
    torch.manual_seed(0)
    return DigitClassifier().eval()


def in_doubles(value: Any) -> Any:
    return Gaussian(value.mean.double(), value.logstd.double()) if isinstance(value, Gaussian) else value.double()


def numbers(found: Any) -> list[Tensor]:
    """Return every tensor of a result, in float64."""
    if isinstance(found, Tensor):
        return [found.double()]
    if is_dataclass(found):
        found = [getattr(found, field.name) for field in fields(found)]
    values = found.values() if isinstance(found, dict) else found if isinstance(found, list | tuple) else ()
    return [number for value in values for number in numbers(value)]


@pytest.mark.parametrize("name", STATISTICS)
def test_a_statistic_is_that_of_float64_also_under_autocast(name):
    statistic, inputs = STATISTICS[name]
    wanted = numbers(statistic(*map(in_doubles, inputs)))
    with torch.autocast("cpu", torch.bfloat16):
        found = numbers(statistic(*inputs))
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=5e-5, atol=1e-5, equal_nan=True)


def test_products_are_of_float32_inside_and_as_the_user_chose_outside():
    torch.set_float32_matmul_precision("medium")
    try:
        chosen = [place.fp32_precision for place in PRODUCTS]
        with pytest.raises(ZeroDivisionError), full_precision():
            assert {place.fp32_precision for place in PRODUCTS} == {"ieee"}
            raise ZeroDivisionError
        assert chosen == [place.fp32_precision for place in PRODUCTS] and set(chosen) != {"ieee"}
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
