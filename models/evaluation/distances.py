"""How far generated images are from real ones, from features that were computed once; all on tensors.

Sets of features are (N, D), from one network of models.features; no figure compares with that of another network, crop,
size or number of images. Axes: N images, D features, B batch, H height, W width.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torchmetrics.image.kid import poly_mmd

from models.core.errors import InputError

FRECHET_LEAST = 2048
"""With fewer images a side the Frechet distance measures its own bias."""


# ---- Frechet distance (FID) ----------------------------------------------------------------------------------------


@dataclass
class FeatureMoments:
    """Number, mean and scatter of a set of features, gathered in any portions, in float64.

    Three tensors, so that it can be gathered over processes or kept on disk as it is: `FeatureMoments(**vars(m))`.

    Args:
        count: N, int64, ().
        mean: (D,).
        scatter: sum (x - mean) (x - mean)^T, (D, D).
    """

    count: Tensor
    mean: Tensor
    scatter: Tensor

    @classmethod
    def empty(cls, dimension: int, device: torch.device | str = "cpu") -> "FeatureMoments":
        """Those of no features at all."""
        options = {"dtype": torch.float64, "device": device}
        count = torch.zeros((), dtype=torch.int64, device=device)
        return cls(count, torch.zeros(dimension, **options), torch.zeros(dimension, dimension, **options))

    @classmethod
    def of(cls, features: Tensor) -> "FeatureMoments":
        """Those of features (N, D)."""
        moments = cls.empty(features.shape[1], features.device)
        moments.update(features)
        return moments

    def update(self, features: Tensor) -> None:
        """Add features (B, D)."""
        if not len(features):
            return
        features = features.detach().to(self.mean)  # float64, and where the moments are
        mean = features.mean(0)
        centred = features - mean
        self.merge(FeatureMoments(torch.tensor(len(features), device=mean.device), mean, centred.T @ centred))

    def merge(self, other: "FeatureMoments") -> None:
        """Add another set, which stays as it is: the pairwise formula of Chan, Golub and LeVeque (1983)."""
        if not other.count:
            return
        count, shift = self.count + other.count, other.mean - self.mean
        between = torch.outer(shift, shift) * (self.count * other.count / count.double())
        self.scatter = self.scatter + other.scatter + between
        self.mean = self.mean + shift * (other.count / count.double())
        self.count = count

    @property
    def covariance(self) -> Tensor:
        """scatter / (N - 1), unbiased, (D, D)."""
        return self.scatter / (self.count - 1)


def frechet_distance(first: FeatureMoments, second: FeatureMoments, minimum: int = FRECHET_LEAST) -> Tensor:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), (), in float64: W2^2 of the Gaussians with these moments.

    Of Inception's features it is FID (Heusel et al. 2017). Two sets of N images of one law are not at 0, but, for large
    N and round C, at about tr C (D + 4) / 2N: compare at equal N only.

    With C = A A^T the trace of the root is the sum of A1^T A2's singular values. Unlike eigenvalues of C1 C2 these need
    no square root of their own, which would lift rounding errors from 1e-16 to 1e-8: of 1,280 features, some of them
    dead, a set is at 1e-10 from itself, not at 1e-3.

    Args:
        first: one set.
        second: the other; the order does not matter.
        minimum: least number of images in each.

    Raises:
        InputError: fewer images than that, or different numbers of features.
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
    """A with A A^T = C, (D, D)."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0).sqrt()  # rounding leaves zero eigenvalues on either side of zero


# ---- Kernel distance (KID) -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KernelDistance:
    """Mean and std (biased, as is usual) over subsets, each (), in float64; squared, so without a unit.

    The subsets overlap: the std says how far one subset's figure is off, and the mean is better by far.
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

    Of Inception's features it is KID (Binkowski et al. 2018). Of one law its mean is 0 at any N, and a
    single figure may be negative. The formula is torchmetrics'; the subsets are drawn here, from a generator.

    Args:
        features: (N, D).
        reference: (M, D).
        subsets: how many are drawn; 100 of 1,000 images with 1,280 features take a core about 20 s.
        subset_size: images of each set in a subset, drawn without replacement.
        generator: draws the subsets, on the CPU; by default one with seed 0.

    Raises:
        InputError: fewer images than a subset has, or a subset of fewer than 2.
    """
    _check_same_features(features, reference, "kid")
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


# ---- Precision, recall, density, coverage --------------------------------------------------------------------------


@dataclass(frozen=True)
class ManifoldScores:
    """Shares, each a float64 (): all in [0, 1] but density, which is about 1 for one law and can be above.

    Attributes:
        precision: of the generated images, those within reach of real ones: are they real-looking?
        recall: of the real images, those within reach of generated ones: is everything there?
        density: by how many real images a generated one is reached, over the expected number: as precision, but a
            single outlier among the real images cannot spoil it.
        coverage: of the real images, those that reach a generated one: as recall, but robust to generated outliers.
    """

    precision: Tensor
    recall: Tensor
    density: Tensor
    coverage: Tensor


def manifold_scores(
    features: Tensor,
    reference: Tensor,
    neighbours: int = 3,
    coverage_neighbours: int = 5,
    chunk: int = 1024,
) -> ManifoldScores:
    """With r_k(x) the distance from x to its k-th nearest neighbour in its own set, real x_i and generated y_j:

        precision = mean_j [some i: |x_i - y_j| <= r_3(x_i)]   recall = mean_i [some j: |x_i - y_j| <= r_3(y_j)]
        density = mean_j sum_i [|x_i - y_j| < r_5(x_i)] / 5    coverage = mean_i [some j: |x_i - y_j| < r_5(x_i)]

    Kynkaanniemi et al. 2019, Naeem et al. 2020. For N = M images of one law precision and recall are below 1 and depend
    on N: compare at equal N only; the mean of density is 1, that of coverage about 1 - 2^-5. Distances are in the
    features' type, and chunk x max(N, M) of them are held.

    Args:
        features: of the generated images, (N, D).
        reference: of the real images, (M, D).
        neighbours: k of precision and recall.
        coverage_neighbours: k of density and coverage.
        chunk: rows of distances held at once.

    Raises:
        InputError: no more images than neighbours, or different numbers of features.
    """
    _check_same_features(features, reference, "precision and recall")
    if (fewest := min(len(features), len(reference))) <= (most := max(neighbours, coverage_neighbours)):
        raise InputError(f"precision and recall: {fewest:,} images have no {most:,} neighbours each; give more")
    features, reference = _centred(features, reference)
    (reach_of_drawn,) = _reaches(features, (neighbours,), chunk)  # (N,)
    reach, wide_reach = _reaches(reference, (neighbours, coverage_neighbours), chunk)  # (M,), (M,)
    hits = torch.zeros(len(features), dtype=torch.bool, device=features.device)  # reached by a real image
    depth = torch.zeros(len(features), dtype=torch.float64, device=features.device)  # by how many
    recalled, covered = [], []
    for start in range(0, len(reference), chunk):
        rows = slice(start, start + chunk)
        distance = torch.cdist(reference[rows], features)  # (rows, N)
        hits |= (distance <= reach[rows, None]).any(0)
        depth += (distance < wide_reach[rows, None]).sum(0)
        recalled.append((distance <= reach_of_drawn).any(1))
        covered.append(distance.amin(1) < wide_reach[rows])
    recalled, covered = torch.cat(recalled), torch.cat(covered)
    return ManifoldScores(
        precision=hits.double().mean(),
        recall=recalled.double().mean(),
        density=depth.mean() / coverage_neighbours,
        coverage=covered.double().mean(),
    )


def nearest_neighbours(features: Tensor, bank: Tensor, k: int = 1, chunk: int = 1024) -> Tensor:
    """Indices of the k rows of the bank that are nearest to each feature, nearest first: (N, k) int64.

    Args:
        features: (N, D).
        bank: (M, D), of training images for instance; an image that lies in it finds itself.
        k: from 1 to M.
        chunk: rows of distances held at once.

    Raises:
        InputError: k out of range, or different numbers of features.
    """
    _check_same_features(features, bank, "neighbours")
    if not 1 <= k <= len(bank):
        raise InputError(f"neighbours: k = {k} must lie between 1 and the {len(bank):,} images of the bank")
    features, bank = _centred(features, bank)
    nearest = [torch.cdist(rows, bank).topk(k, largest=False).indices for rows in features.split(chunk)]
    return torch.cat(nearest)


def _check_same_features(features: Tensor, reference: Tensor, metric: str) -> None:
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1]:
        shapes = f"{tuple(features.shape)} and {tuple(reference.shape)}"
        raise InputError(f"{metric}: features {shapes} are not (N, D) and (M, D); take both from one network")


def _centred(features: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Both less the reference's mean: distances stay, but cdist's |x|^2 + |y|^2 - 2 x.y cancels less in float32."""
    mean = reference.double().mean(0)
    return (features.double() - mean).to(features.dtype), (reference.double() - mean).to(features.dtype)


def _reaches(features: Tensor, neighbours: tuple[int, ...], chunk: int) -> list[Tensor]:
    """Distance to the k-th nearest other image, for each k: (N,) each."""
    reaches = []
    for start in range(0, len(features), chunk):
        distance = torch.cdist(features[start : start + chunk], features)  # (rows, N)
        distance.diagonal(start).fill_(torch.inf)  # an image is not its own neighbour
        nearest = distance.topk(max(neighbours), largest=False).values
        reaches.append(nearest[:, [k - 1 for k in neighbours]])
    return list(rearrange(torch.cat(reaches), "n k -> k n"))
