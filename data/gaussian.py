"""Draw data from known distributions: Gaussian vectors of a given covariance, and mixtures in the plane.

Batches are {"x": (B, d)} in float64. For a given batch size, the batch at position p of the stream depends on (seed, p)
alone, so a run that continues from a checkpoint sees the same draws.
"""

from abc import abstractmethod
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from degrain.models.core.errors import InputError


class FreshBatches(Dataset):
    """Draw the batches {"x": (B, d)} at positions start, start + B, ... up to stop."""

    def __init__(self, source: "VectorDataModule", start: int, stop: int) -> None:
        self.source, self.firsts = source, range(start, stop, source.batch_size)

    def __len__(self) -> int:
        return len(self.firsts)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.source.seed, self.firsts[i]))
        return {"x": self.source.draw(rng, self.source.batch_size)}


class VectorDataModule(pl.LightningDataModule):
    """Stream fresh draws from a known distribution; nothing is held out, as nothing is seen twice.

    The stream continues from the Lightning module's `images_seen` up to its `leg_end`, as in ImageDataModule.

    Args:
        batch_size: Vectors of one step.
        seed: Seed of the draws.
    """

    def __init__(self, batch_size: int = 256, seed: int = 0) -> None:
        super().__init__()
        if batch_size < 1 or seed < 0:
            raise InputError(f"--data.batch_size {batch_size} must be at least 1 and --data.seed {seed} not negative")
        self.batch_size, self.seed = batch_size, seed

    @abstractmethod
    def draw(self, rng: np.random.Generator, count: int) -> Tensor:
        """Draw count vectors, (count, d) float64."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Describe the data in plain types, for checkpoints and W&B."""

    def train_dataloader(self) -> DataLoader:
        if self.trainer.world_size > 1:
            raise InputError("the toys run on one process; leave --trainer.devices at 1")
        run = self.trainer.lightning_module
        return DataLoader(FreshBatches(self, run.images_seen, run.leg_end), batch_size=None)


class GaussianDataModule(VectorDataModule):
    """Draw x ~ N(0, S)."""

    covariance: Tensor  # S, (d, d) float64, set by subclasses

    def draw(self, rng: np.random.Generator, count: int) -> Tensor:
        root = torch.linalg.cholesky(self.covariance)
        return torch.from_numpy(rng.standard_normal((count, len(root)))) @ root.T

    def describe(self) -> dict[str, Any]:
        return {"source": type(self).__name__, "covariance": self.covariance.tolist()}


class GaussianVectors(GaussianDataModule):
    """Draw x ~ N(0, S) with given stds along its principal directions: the pixels, or rotated against them.

    Args:
        std: Std along each principal direction, all > 0; for a grid of one-dimensional toys, the t of each.
        rotation: Seed of a random rotation of the directions; None leaves them on the pixels' axes.
    """

    def __init__(self, std: list[float] = (0.5, 1.0, 2.0), rotation: int | None = None, **common) -> None:
        super().__init__(**common)
        wrong = [value for value in std if not 0 < value < np.inf]
        if wrong or not std:
            raise InputError(f"--data.std {wrong[0] if wrong else '[]'}: give finite values t > 0")
        variances = np.square(std, dtype=np.float64)
        if rotation is None:
            self.covariance = torch.diag(torch.from_numpy(variances))
        else:
            q = np.linalg.qr(np.random.default_rng(rotation).standard_normal((len(std), len(std)))).Q
            self.covariance = torch.from_numpy((q * variances) @ q.T)


class FactorVectors(GaussianDataModule):
    """Draw x = C f + noise with few factors f ~ N(0, I) and a planted std at each pixel: S = C C^T + diag std^2.

    Args:
        noise: Std planted at each pixel, all > 0.
        factors: Number of factors.
        matrix: Seed of C, whose entries are standard normal.
    """

    def __init__(
        self,
        noise: list[float] = (0.2, 0.4, 0.6, 0.8, 0.9, 1.1, 1.3, 1.5),
        factors: int = 2,
        matrix: int = 0,
        **common,
    ) -> None:
        super().__init__(**common)
        wrong = [value for value in noise if not 0 < value < np.inf]
        if wrong or not 0 <= factors < len(noise):
            raise InputError(
                f"--data.noise {noise}, --data.factors {factors}: give stds > 0 and fewer factors than pixels"
            )
        self.noise = [float(value) for value in noise]
        c = np.random.default_rng(matrix).standard_normal((len(noise), factors))
        self.covariance = torch.from_numpy(c @ c.T + np.diag(np.square(self.noise)))


class RandomVectors(GaussianDataModule):
    """Draw x ~ N(0, g g^T/d) for a random square g: most such covariances are Heywood cases of factor analysis.

    Args:
        pixels: d.
        matrix: Seed of g, whose entries are standard normal.
    """

    def __init__(self, pixels: int = 5, matrix: int = 0, **common) -> None:
        super().__init__(**common)
        if pixels < 1:
            raise InputError(f"--data.pixels {pixels}: give at least 1")
        g = np.random.default_rng(matrix).standard_normal((pixels, pixels))
        self.covariance = torch.from_numpy(g @ g.T / pixels)


class AutoregressiveVectors(GaussianDataModule):
    """Draw x ~ N(0, S) with S_ij = correlation^|i - j|.

    Args:
        pixels: d.
        correlation: Correlation of neighbours, in (-1, 1).
    """

    def __init__(self, pixels: int = 8, correlation: float = 0.6, **common) -> None:
        super().__init__(**common)
        if pixels < 1 or not -1 < correlation < 1:
            raise InputError(
                f"--data.pixels {pixels}, --data.correlation {correlation}: give d >= 1 and a value in (-1, 1)"
            )
        i = torch.arange(pixels, dtype=torch.float64)
        self.covariance = correlation ** (i[:, None] - i).abs()


class MixtureVectors(VectorDataModule):
    """Draw from equally likely round Gaussians in the plane: 25 on a grid of spacing 2, or 8 on a ring of radius 2.

    Args:
        layout: grid or ring.
        std: Std of each Gaussian; None: 0.05 on the grid, 0.02 on the ring, as in the usual benchmarks.
    """

    def __init__(self, layout: Literal["grid", "ring"] = "grid", std: float | None = None, **common) -> None:
        super().__init__(**common)
        self.layout, self.std = layout, std if std is not None else {"grid": 0.05, "ring": 0.02}[layout]
        if not 0 < self.std < np.inf:
            raise InputError(f"--data.std {std}: give a finite value > 0")
        axis = torch.arange(-4.0, 5.0, 2.0, dtype=torch.float64)
        angle = torch.arange(8, dtype=torch.float64) * (2 * torch.pi / 8)
        ring = 2 * torch.stack([angle.cos(), angle.sin()], 1)
        self.centres = torch.cartesian_prod(axis, axis) if layout == "grid" else ring  # (M, 2) float64

    def draw(self, rng: np.random.Generator, count: int) -> Tensor:
        chosen = torch.from_numpy(rng.integers(len(self.centres), size=count))
        return self.centres[chosen] + self.std * torch.from_numpy(rng.standard_normal((count, 2)))

    def describe(self) -> dict[str, Any]:
        return {"source": type(self).__name__, "layout": self.layout, "std": self.std}
