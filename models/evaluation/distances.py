"""Distances between sets of features: Frechet (FID) and kernel (KID). Everything is tensors.

A set of features is (N, D), all of one network of evaluation/features.py. Compare only values of the same network,
crop, size and number of images. Axes: N images, D features, B batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.image.kid import poly_mmd

from models.core.errors import InputError

FRECHET_LEAST = 2048  # with fewer images per set the Frechet distance is mostly bias


@dataclass(frozen=True)
class FeatureMoments:
    """Number, mean and scatter of a set of features, in float64; those of disjoint sets add up by `+`."""

    count: Tensor  # N, int64, ()
    mean: Tensor  # (D,)
    scatter: Tensor  # sum (x - mean) (x - mean)^T, (D, D)

    @classmethod
    def of(cls, features: Tensor) -> "FeatureMoments":
        """Compute the moments of features (N, D), N >= 0."""
        features = features.detach().double()
        mean = features.sum(0) / max(len(features), 1)
        centred = features - mean
        return cls(torch.tensor(len(features), device=features.device), mean, centred.T @ centred)

    def __add__(self, other: "FeatureMoments") -> "FeatureMoments":
        """Return the moments of the union, by the pairwise formula of Chan, Golub and LeVeque (1983)."""
        count, shift = self.count + other.count, other.mean - self.mean
        share = other.count / count.double().clamp(min=1)
        scatter = self.scatter + other.scatter + torch.outer(shift, shift) * (self.count * share)
        return FeatureMoments(count, self.mean + shift * share, scatter)

    @property
    def covariance(self) -> Tensor:
        """scatter / (N - 1), unbiased, (D, D)."""
        return self.scatter / (self.count - 1)


def frechet_distance(first: FeatureMoments, second: FeatureMoments, minimum: int = FRECHET_LEAST) -> Tensor:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), (), in float64: W2^2 of the Gaussians with these moments.

    With Inception's features this is FID (Heusel et al. 2017). Two sets of N images of one distribution are not at
    distance 0 but, for large N and round C, at about tr C (D + 4) / 2N: compare at equal N only.

    With C = A A^T the trace of the root is the sum of the singular values of A1^T A2. Eigenvalues of C1 C2 would need
    a square root, which lifts rounding errors from 1e-16 to 1e-8: with 1,280 features, some of them constant, a set is
    at 1e-10 from itself instead of 1e-3.

    Args:
        first: one set.
        second: the other; the order does not matter.
        minimum: least number of images in each set.

    Raises:
        InputError: fewer images than `minimum`, or different numbers of features.
    """
    if first.mean.shape != second.mean.shape:
        raise InputError(f"fid: {len(first.mean):,} and {len(second.mean):,} features; take both from one network")
    if (count := min(int(first.count), int(second.count))) < max(minimum, 2):
        raise InputError(
            f"fid: {count:,} images are too few, below {max(minimum, 2):,} it measures its own bias; "
            "give more or use kid, which has none"
        )
    shift = (first.mean - second.mean).square().sum()
    overlap = torch.linalg.svdvals(_factor(first.covariance).T @ _factor(second.covariance)).sum()
    return shift + first.covariance.trace() + second.covariance.trace() - 2 * overlap


def _factor(covariance: Tensor) -> Tensor:
    """Return A with A A^T = C, (D, D)."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0).sqrt()  # rounding leaves zero eigenvalues on either side of zero


@dataclass(frozen=True)
class KernelDistance:
    """Mean and std (biased, as is usual) over subsets, each (), in float64; squared, so without a unit.

    The std is that of a single subset. The mean is far more precise, as the subsets overlap.
    """

    mean: Tensor
    std: Tensor


def kernel_distance(
    features: Tensor,
    reference: Tensor,
    subsets: int = 100,
    subset_size: int = 1000,
    generator: torch.Generator | None = None,
) -> KernelDistance:
    """MMD^2 with k(x, y) = (x.y / D + 1)^3, unbiased: E k(x, x') + E k(y, y') - 2 E k(x, y) over different images.

    With Inception's features this is KID (Binkowski et al. 2018). For equal distributions its expectation is 0 for
    every N, and a single value may be negative. The formula is that of torchmetrics; the subsets are drawn here.

    Args:
        features: (N, D).
        reference: (M, D).
        subsets: number of subsets; 100 of 1,000 images with 1,280 features take one core about 20 s.
        subset_size: images of each set in a subset, drawn without replacement.
        generator: draws the subsets, on the CPU; by default one with seed 0.

    Raises:
        InputError: fewer images than a subset has, or a subset of fewer than 2.
    """
    check_same_features(features, reference, "kid")
    fewest = min(len(features), len(reference))
    if not 2 <= subset_size <= fewest:
        raise InputError(f"kid: subset_size {subset_size:,} must lie between 2 and the {fewest:,} images of a set")
    generator = generator or torch.Generator().manual_seed(0)
    features, reference = features.double(), reference.double()
    distances = []
    for _ in range(subsets):
        drawn, real = (
            x[torch.randperm(len(x), generator=generator)[:subset_size].to(x.device)] for x in (features, reference)
        )
        distances.append(poly_mmd(real, drawn, degree=3, coef=1.0))
    distances = torch.stack(distances)
    return KernelDistance(distances.mean(), distances.std(unbiased=False))


def check_same_features(features: Tensor, reference: Tensor, metric: str) -> None:
    """Refuse tensors that are not (N, D) and (M, D).

    Raises:
        InputError: they are not; it names the metric.
    """
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1]:
        shapes = f"{tuple(features.shape)} and {tuple(reference.shape)}"
        raise InputError(f"{metric}: features {shapes} are not (N, D) and (M, D); take both from one network")
