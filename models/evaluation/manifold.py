"""Precision, recall, density, coverage, and nearest neighbours, by distances between features.

Sets of features are as in evaluation/distances.py. Axes: N generated images, M real images, D features.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.core.precision import full_precision
from degrain.models.evaluation.distances import check_same_features

ROUNDING = 1e-6
"""Share of the features' norm by which balls are wider: cdist puts copies at 1e-8 of it from each other, not at 0."""


@dataclass(frozen=True)
class ManifoldScores:
    """Shares, each a float64 (), in [0, 1]; density is about 1 for equal distributions and can be above.

    Attributes:
        precision: share of the generated images within reach of real ones: do they look real?
        recall: share of the real images within reach of generated ones: is every kind generated?
        density: number of real images that reach a generated one, divided by its expectation. Like precision, but
            a single outlier among the real images cannot spoil it.
        coverage: share of the real images that reach a generated one. Like recall, but robust to generated outliers.
    """

    precision: Tensor
    recall: Tensor
    density: Tensor
    coverage: Tensor


@full_precision()
def manifold_scores(
    features: Tensor, reference: Tensor, neighbours: int = 3, coverage_neighbours: int = 5, chunk: int = 1024
) -> ManifoldScores:
    """Compute, with r_k(x) the distance from x to its k-th nearest neighbour in its set, real x_i, generated y_j:

        precision = mean_j [some i: |x_i - y_j| <= r_3(x_i)]   recall = mean_i [some j: |x_i - y_j| <= r_3(y_j)]
        density = mean_j sum_i [|x_i - y_j| <= r_5(x_i)] / 5   coverage = mean_i [some j: |x_i - y_j| <= r_5(x_i)]

    Kynkaanniemi et al. 2019, Naeem et al. 2020. Every ball is closed, so that ties count: a set in which every picture
    lies eight times has precision, recall and coverage 1 to itself. The papers' own code takes <= for the first two
    and < for the others, prdc < for all. For N = M images of one distribution the mean of density is 1, that of
    coverage about 1 - 2^-5; precision and recall are below 1 and depend on N: compare at equal N only. Distances are in
    float64; chunk x max(N, M) of them are in memory at once.

    Args:
        features: of the generated images, (N, D).
        reference: of the real images, (M, D).
        neighbours: k of precision and recall.
        coverage_neighbours: k of density and coverage.
        chunk: rows of distances in memory at once.

    Raises:
        InputError: no more images than neighbours, or different numbers of features.
    """
    check_same_features(features, reference, "precision and recall")
    if (fewest := min(len(features), len(reference))) <= (most := max(neighbours, coverage_neighbours)):
        raise InputError(f"precision and recall: {fewest:,} images have no {most:,} neighbours each; give more")
    features, reference = _centred(features, reference)
    slack = ROUNDING * reference.square().sum(1).mean().sqrt()
    (generated_radius,) = (radii + slack for radii in _radii(features, (neighbours,), chunk))  # (N,)
    radius, wide_radius = (radii + slack for radii in _radii(reference, (neighbours, coverage_neighbours), chunk))
    precise, depth = features.new_zeros(len(features)).bool(), features.new_zeros(len(features)).double()  # (N,), (N,)
    recalled, covered = [], []
    for rows in torch.arange(len(reference), device=reference.device).split(chunk):
        distance = torch.cdist(reference[rows], features)  # (rows, N)
        precise |= (distance <= radius[rows, None]).any(0)
        depth += (distance <= wide_radius[rows, None]).sum(0)
        recalled.append((distance <= generated_radius).any(1))
        covered.append(distance.amin(1) <= wide_radius[rows])
    precision, recall, coverage = (hits.double().mean() for hits in (precise, torch.cat(recalled), torch.cat(covered)))
    return ManifoldScores(precision, recall, depth.mean() / coverage_neighbours, coverage)


@full_precision()
def copies(features: Tensor, chunk: int = 1024) -> int:
    """Count the images (N, D) with the features of another one: nearer than features vary with the batch, 1e-5."""
    (nearest,) = _radii(_centred(features, features)[0], (1,), chunk)  # (N,)
    return int((nearest <= 1e-5 * features.double().square().sum(1).mean().sqrt()).sum())


@full_precision()
def nearest_neighbours(features: Tensor, bank: Tensor, k: int = 1, chunk: int = 1024) -> Tensor:
    """Return the indices of the k rows of the bank nearest to each feature, nearest first: (N, k) int64.

    Args:
        features: (N, D).
        bank: (M, D), of training images for instance; an image that is in it finds itself.
        k: from 1 to M.
        chunk: rows of distances in memory at once.

    Raises:
        InputError: k out of range, or different numbers of features.
    """
    check_same_features(features, bank, "neighbours")
    if not 1 <= k <= len(bank):
        raise InputError(f"neighbours: k = {k} must lie between 1 and the {len(bank):,} images of the bank")
    features, bank = _centred(features, bank)
    nearest = [torch.cdist(rows, bank).topk(k, largest=False).indices for rows in features.split(chunk)]
    return torch.cat(nearest)


def _centred(features: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract the reference's mean from both, in float64: cdist's |x|^2 + |y|^2 - 2 x.y then cancels less."""
    mean = reference.double().mean(0)
    return features.double() - mean, reference.double() - mean


def _radii(features: Tensor, neighbours: tuple[int, ...], chunk: int) -> list[Tensor]:
    """Return the distance to the k-th nearest other image, for each k: (N,) each."""
    radii = []
    for start in range(0, len(features), chunk):
        distance = torch.cdist(features[start : start + chunk], features)  # (rows, N)
        distance.diagonal(start).fill_(torch.inf)  # an image is not its own neighbour
        nearest = distance.topk(max(neighbours), largest=False).values
        radii.append(nearest[:, [k - 1 for k in neighbours]])
    return list(rearrange(torch.cat(radii), "n k -> k n"))
