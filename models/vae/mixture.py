"""A mixture of Gaussians: drawn from by one noise, and fitted to codes by EM.

Axes: B batch, N codes, D dimensions, K components.
"""

import warnings
from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from degrain.models.core.gaussian import log_standard_normal
from degrain.models.core.precision import full_precision

PSEUDO_CODES = 4
"""Codes of covariance I that each component's own are averaged with, per dimension: some thousand settle none."""

ITERATIONS, TOLERANCE = 30, 0.1  # of EM, at most; least gain of an iteration, in nats per code


class Mixture(nn.Module):
    """A mixture of K = `components` Gaussians N(means_k, factors_k factors_k^T) over D = `latent` dimensions."""

    def __init__(self, components: int, latent: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.full((components,), 1 / components))
        self.register_buffer("means", torch.zeros(components, latent))
        self.register_buffer("factors", torch.eye(latent).repeat(components, 1, 1))  # lower triangular

    @classmethod
    @torch.no_grad()
    def fitted_to(cls, u: Tensor, components: int, seed: int) -> "Mixture":
        """Fit a mixture to codes u (N, D) whose own covariance is about I, by EM from k-means, on the CPU.

        It maximises sum_n log p(u_n) - (m / 2) sum_k (log det C_k + tr C_k^-1), m = PSEUDO_CODES * D, the likelihood
        and an inverse Wishart prior on the covariances C_k with its mode at I (Fraley and Raftery 2007).
        """
        from sklearn.cluster import KMeans  # here, because drawing needs none of it, and it takes half a second
        from sklearn.exceptions import ConvergenceWarning

        codes, mixture = u.double().cpu(), cls(components, u.shape[1]).double()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different codes than components
            labels = KMeans(components, n_init=1, random_state=seed).fit(codes.numpy()).labels_
        shares, before = one_hot(torch.from_numpy(labels).long(), components).double(), -torch.inf
        for _ in range(ITERATIONS):
            mixture.maximise(codes, shares)
            joint = mixture.log_joint(codes)
            now = (joint.logsumexp(1).sum() + mixture.log_prior()) / len(codes)
            if now - before < TOLERANCE:
                break
            shares, before = joint.softmax(1), now
        return mixture.to(u)

    def maximise(self, codes: Tensor, shares: Tensor) -> None:
        """Take EM's M-step: C_k = (N_k S_k + m I) / (N_k + m), for codes (N, D) and their shares in components (N, K).

        N_k = sum_n shares_nk, and S_k is the covariance of the codes weighted by shares_k.
        """
        counts = shares.sum(0) + 1e-9  # a component without codes
        self.weights.copy_(counts / counts.sum())
        self.means.copy_(shares.T @ codes / counts[:, None])
        pseudo = PSEUDO_CODES * codes.shape[1]
        for k, share in enumerate(shares.unbind(1)):
            centred = codes - self.means[k]
            scatter = (share[:, None] * centred).T @ centred  # N_k S_k, (D, D)
            covariance = (scatter + pseudo * torch.eye(len(scatter)).to(scatter)) / (counts[k] + pseudo)
            self.factors[k] = torch.linalg.cholesky(covariance)

    def log_prior(self) -> Tensor:
        """-(m / 2) sum_k (log det C_k + tr C_k^-1), (), up to a constant."""
        precision_factors = torch.linalg.inv(self.factors)
        log_determinants = 2 * self.factors.diagonal(dim1=1, dim2=2).log().sum()
        return -0.5 * PSEUDO_CODES * self.means.shape[1] * (log_determinants + precision_factors.square().sum())

    @full_precision()
    def forward(self, noise: Tensor) -> Tensor:
        """Draw u for standard normal noise, both (B, D).

        The first noise chooses the component: the one whose interval of the cumulated weights contains Phi(noise). The
        position of Phi(noise) in that interval is uniform again and becomes the first noise of the component.
        """
        edges = self.weights.double().cumsum(0)
        uniform = torch.special.ndtr(noise[:, 0].double()) * edges[-1]
        chosen = torch.searchsorted(edges[:-1], uniform, right=True)  # (B,)
        position = 1 - (edges[chosen] - uniform) / self.weights.double()[chosen]
        first = torch.special.ndtri(position.clamp(1e-9, 1 - 1e-9)).to(noise)
        noise = torch.cat([first[:, None], noise[:, 1:]], 1)
        u = torch.empty_like(noise)
        for k in chosen.unique():
            u[chosen == k] = self.means[k] + noise[chosen == k] @ self.factors[k].T
        return u

    def mapped(self, matrix: Tensor, offset: Tensor) -> "Mixture":
        """Return the mixture of u `matrix` + offset, for matrices (D, D) and vectors (D,); its factors are full."""
        made = deepcopy(self)
        made.means.copy_(self.means @ matrix + offset)
        made.factors.copy_(matrix.T @ self.factors)
        return made

    @full_precision()
    def denoiser(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the function of u + t n (B, D), n ~ N(0, I), and t (B, 1) that gives E[u | u + t n], (B, D).

        A component C = V diag(e) V^T around m has the mean m + V diag(e / (e + t^2)) V^T (u + t n - m).
        """
        factors = self.factors.double()
        values, vectors = torch.linalg.eigh(factors @ factors.mT)
        parts = list(zip(self.weights.log(), self.means, values.to(self.means), vectors.to(self.means), strict=True))

        def denoised(noisy: Tensor, t: Tensor) -> Tensor:
            logs, means = [], []
            for log_weight, mean, e, v in parts:
                turned, variance = (noisy - mean) @ v, e + t.square()
                logs.append(log_weight - 0.5 * (turned.square() / variance + variance.log()).sum(1))
                means.append(mean + (turned * e / variance) @ v.T)
            return torch.einsum("kb,kbd->bd", torch.stack(logs).softmax(0), torch.stack(means))

        return denoised

    def log_density(self, u: Tensor) -> Tensor:
        """log sum_k weights_k N(u; means_k, factors_k factors_k^T) in nats, (B, D) -> (B,)."""
        return self.log_joint(u).logsumexp(1)

    @full_precision()
    def log_joint(self, u: Tensor) -> Tensor:
        """log [weights_k N(u; means_k, factors_k factors_k^T)] in nats, (B, D) -> (B, K)."""
        joint = []
        for weight, mean, factor in zip(self.weights, self.means, self.factors, strict=True):
            noise = torch.linalg.solve_triangular(factor, (u - mean).T, upper=False).T  # (B, D)
            joint.append(weight.log() + log_standard_normal(noise) - factor.diagonal().log().sum())
        return torch.stack(joint, 1)
