"""Distances between sets of features: Frechet (FID), also at infinite n, and kernel (KID). Everything is tensors.

A set of features is (N, D), all of one network of evaluation/features.py. Compare only values of the same network,
crop, size and number of images. Axes: N images of one set, M of the other, D features.
"""

import torch
from torch import Tensor
from torchmetrics.image.kid import poly_mmd

from degrain.models.core.errors import InputError


def frechet_distance(features: Tensor, reference: Tensor) -> Tensor:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), (), in float64: W2^2 of the Gaussians with these moments.

    With Inception's features this is FID (Heusel et al. 2017). C is unbiased. Two sets of N images of one distribution
    are not at distance 0 but, for large N and round C, at about tr C (D + 4) / 2N: compare at equal N only.

    With C = A^T A the trace of the root is the sum of the singular values of A1 A2^T. Eigenvalues of C1 C2 would need
    a square root, which lifts rounding errors from 1e-16 to 1e-8: with 1,280 features, some of them constant, a set is
    at 1e-10 from itself instead of 1e-3. With N below D it is also faster: A then has N rows.

    Args:
        features: one set, (N, D).
        reference: the other, (M, D); the order does not matter.

    Raises:
        InputError: fewer than 2 images in a set, or different numbers of features.
    """
    check_same_features(features, reference, "fid")
    if (fewest := min(len(features), len(reference))) < 2:
        raise InputError(f"fid: {fewest} images have no covariance; give more")
    features, reference = features.double(), reference.double()
    shift = (features.mean(0) - reference.mean(0)).square().sum()
    first, second = _factor(features), _factor(reference)
    overlap = torch.linalg.svdvals(first @ second.T).sum()
    return shift + first.square().sum() + second.square().sum() - 2 * overlap


def _factor(features: Tensor) -> Tensor:
    """Return A with A^T A = the unbiased covariance of features (N, D): (min(N, D), D)."""
    centred = (features - features.mean(0)) / (len(features) - 1) ** 0.5
    return centred if len(centred) <= centred.shape[1] else torch.linalg.qr(centred, mode="r").R


def frechet_at_infinity(features: Tensor, reference: Tensor, distance: Tensor | None = None) -> Tensor:
    """Extrapolate the Frechet distance of equally large sets, both (N, D), to infinitely many images, ().

    2 F(N) - F(N/2): the bias is about proportional to 1/N (Chong and Forsyth 2020, who fit a line through more
    numbers of images of one side; here both sides shrink, and F(N/2) is the mean over two disjoint halves). It can be
    negative. On Gaussians it leaves under 5 % of the bias once half a set has as many images as there are directions of
    large variance. Features of photographs have heavy tails: at N = 1,050 it leaves a quarter, at 3,000 a ninth. So
    read it above that of photographs.

    Args:
        features: one set; image i belongs to half i % 2.
        reference: the other.
        distance: their Frechet distance, if it is known.

    Raises:
        InputError: different numbers of images or features, or fewer than 4 images.
    """
    if len(features) != len(reference) or len(features) < 4:
        raise InputError(f"fid: {len(features):,} and {len(reference):,} images; give as many of each, at least 4")
    whole = frechet_distance(features, reference) if distance is None else distance
    halves = torch.stack([frechet_distance(features[half::2], reference[half::2]) for half in (0, 1)])
    return 2 * whole - halves.mean()


def kernel_distance(features: Tensor, reference: Tensor) -> Tensor:
    """MMD^2 with k(x, y) = (x.y / D + 1)^3, unbiased, (), in float64; squared, so without a unit.

    E k(x, x') + E k(y, y') - 2 E k(x, y) over different images, of all images at once. With Inception's features its
    expectation is that of KID (Binkowski et al. 2018), which averages over subsets of 1,000 images and so varies more.
    For equal distributions it is 0 for every N; a value may be negative. The formula is that of torchmetrics.

    Args:
        features: (N, D).
        reference: (N, D), as many.

    Raises:
        InputError: fewer than 2 images, different numbers of images, or of features.
    """
    check_same_features(features, reference, "kid")
    if len(features) != len(reference) or len(features) < 2:
        raise InputError(f"kid: {len(features):,} and {len(reference):,} images; give as many of each, at least 2")
    return poly_mmd(reference.double(), features.double(), degree=3, coef=1.0)


def check_same_features(features: Tensor, reference: Tensor, metric: str) -> None:
    """Refuse tensors that are not (N, D) and (M, D).

    Raises:
        InputError: they are not; it names the metric.
    """
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1]:
        shapes = f"{tuple(features.shape)} and {tuple(reference.shape)}"
        raise InputError(f"{metric}: features {shapes} are not (N, D) and (M, D); take both from one network")
