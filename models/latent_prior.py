"""The priors over latents that samples are drawn from: one Gaussian with the moments of q(z), or a flow learned on it.

q(z) is the mixture of q(z|x) over the data. Training pulls each q(z|x) towards N(0, I) and yet leaves q(z) far from it
(the prior hole), so that draws from N(0, I) decode badly where draws from q(z)'s own Gaussian decode well.
Axes: B batch, D latents.
"""

import torch
from torch import Tensor, nn
from zuko.flows import NSF

from models.gaussian import Gaussian


class LatentMoments:
    """Streaming mean and covariance of q(z), in float64: Cov[z] = Cov_x[E[z|x]] + E_x[diag Var[z|x]]."""

    def __init__(self, latent: int) -> None:
        self.count = 0
        self.sum = torch.zeros(latent, dtype=torch.float64)
        self.outer = torch.zeros(latent, latent, dtype=torch.float64)
        self.variance = torch.zeros(latent, dtype=torch.float64)

    def update(self, q: Gaussian) -> None:
        """Add a batch of posteriors, mean and logstd (B, D)."""
        mean, variance = q.mean.double().cpu(), (2 * q.logstd.double()).exp().cpu()
        self.count += len(mean)
        self.sum += mean.sum(0)
        self.outer += mean.T @ mean
        self.variance += variance.sum(0)

    def mean(self) -> Tensor:
        """E[z], (D,)."""
        return self.sum / self.count

    def covariance_of_means(self) -> Tensor:
        """Cov_x[E[z|x]], (D, D); its diagonal above 0.01 counts the active units."""
        return self.outer / self.count - self.mean().outer(self.mean())

    def covariance(self) -> Tensor:
        """Cov[z], (D, D)."""
        return self.covariance_of_means() + torch.diag(self.variance / self.count)


class GaussianPrior(nn.Module):
    """N(mean, covariance) over latents, N(0, I) until `fit` is called; its state travels in the checkpoint."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(latent))
        self.register_buffer("cholesky", torch.eye(latent))

    def fit(self, moments: LatentMoments) -> None:
        """Take over the moments of q(z). A jitter of 1e-6 of the mean variance keeps the factor finite."""
        covariance = moments.covariance()
        jitter = 1e-6 * covariance.diagonal().mean()
        self.mean.copy_(moments.mean())
        self.cholesky.copy_(torch.linalg.cholesky(covariance + jitter * torch.eye(len(covariance))))

    def forward(self, noise: Tensor) -> Tensor:
        """A draw for standard normal noise, both (B, D)."""
        return self.mean + noise @ self.cholesky.T


class FlowPrior(nn.Module):
    """A neural spline flow (Durkan et al. 2019) between standard normal noise and latents of about unit scale.

    Args:
        latent: D.
        conditions: how many flows of that shape there are, told apart by a one-hot context; 0 means one.
        transforms: spline transformations, each of which moves all latents.
        width: units of both hidden layers of the networks that say how.
        bins: of each spline.
        seed: of the weights.
    """

    def __init__(
        self, latent: int, conditions: int = 0, transforms: int = 3, width: int = 128, bins: int = 16, seed: int = 0
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # zuko draws its weights from the global stream
            self.flow = NSF(latent, conditions, bins, transforms=transforms, hidden_features=(width, width))

    def forward(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        """A draw for standard normal noise, both (..., D), under a one-hot context (..., conditions)."""
        return self.flow(context).transform.inv(noise)

    def log_density(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """log p(z) in nats, (...), for (..., D)."""
        return self.flow(context).log_prob(z)
