"""What images are rendered from, z and the noise of the pixels, and paths between them.

Axes: B batch, D latents, C = 3 channels, H, W.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.core.randomness import noise_of_images, shown
from degrain.models.vae.latent_prior import LatentPrior
from degrain.models.vae.network import VAE

MOST_SCALE = 1_000
"""Largest scale of noise, and farthest position of a latent in std: far beyond what a network was trained on."""

INFORMATION_STREAMS = (6, 7)
"""Noise streams of an image: two draws of its z, for `information`."""


@dataclass(frozen=True)
class Codes:
    """What images are rendered from.

    Args:
        z: codes (B, D).
        noise: of the pixels, standard normal times its scale, (B, 3, H, W); (B, 0) for a plain GAN, which has none.
    """

    z: Tensor
    noise: Tensor

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, index: slice | list[int] | Tensor) -> "Codes":
        """Select images of the batch."""
        return Codes(self.z[index], self.noise[index])

    def __iter__(self) -> Iterator[Tensor]:
        """Yield z and the noise, the arguments of `render`."""
        return iter((self.z, self.noise))

    @staticmethod
    def joined(parts: list["Codes"]) -> "Codes":
        """Join batches one after the other."""
        return parts[0] if len(parts) == 1 else Codes(*map(torch.cat, zip(*parts, strict=True)))


def spherical(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b, with w the angle between a and b (Shoemake 1985).

    Straight if they are parallel. In high dimensions independent a, b ~ N(0, I) are nearly orthogonal, and every point
    of the arc is again as far from 0 as a draw; the middle of the straight line is 0.7 as far.

    Args:
        a: beginnings, (B, ...).
        b: ends, of the same shape.
        t: position of each image from 0 to 1, (B,).
    """
    like, t = a, t.to(a.device).double()[:, None]
    # In float64, as the draws of bf16: the last bits are not to depend on the batch.
    a, b = a.flatten(1).double(), b.flatten(1).double()
    norms = a.norm(dim=1, keepdim=True) * b.norm(dim=1, keepdim=True)  # (B, 1)
    cosine = (a * b).sum(1, keepdim=True) / norms.clamp(min=1e-12)
    w = cosine.clamp(-1, 1).arccos()
    straight = (w.sin() < 1e-3) | (norms == 0)
    sine = w.sin().masked_fill(straight, 1)
    weight_a = torch.where(straight, 1 - t, ((1 - t) * w).sin() / sine)
    weight_b = torch.where(straight, t, (t * w).sin() / sine)
    return (weight_a * a + weight_b * b).to(like).reshape(like.shape)


def interpolate(a: Codes, b: Codes, t: Tensor, prior: LatentPrior | None) -> Codes:
    """Go from a to b: spherically in units of the Gaussian of q(z), in which it is N(0, I), and so does the noise.

    Args:
        a: beginnings, B images.
        b: ends.
        t: position of each image, 0 for a to 1 for b, (B,).
        prior: has the Gaussian; without one z is taken as it is.
    """
    noise = spherical(a.noise, b.noise, t)
    if prior is None:
        return Codes(spherical(a.z, b.z, t), noise)
    ends = [prior.whitened(codes.z.to(prior.mean)) for codes in (a, b)]
    return Codes(prior.coloured(spherical(*ends, t)).to(a.z), noise)


def traverse(codes: Codes, latents: Tensor, positions: Tensor, prior: LatentPrior) -> Codes:
    """Move one latent of each image, and keep the others and the noise.

    Args:
        codes: B images.
        latents: numbers of the latents, (B,).
        positions: where to, in std of q(z) from its mean, (B,).
        prior: has the moments of q(z).
    """
    z, image = codes.z.clone(), torch.arange(len(codes))
    z[image, latents] = (prior.mean + positions.to(prior.mean)[:, None] * prior_std(prior))[image, latents].to(z)
    return Codes(z, codes.noise)


def positions(z: Tensor, prior: LatentPrior) -> Tensor:
    """Return where the latents of codes (B, D) are, in std of q(z) from its mean."""
    return (z.to(prior.mean) - prior.mean) / prior_std(prior)


def prior_std(prior: LatentPrior) -> Tensor:
    """Return the std of each latent of q(z), (D,): the covariance is L L^T."""
    return prior.cholesky.norm(dim=1)


@torch.inference_mode()
def information(vae: VAE, images: Iterable[Tensor]) -> Tensor:
    """log(1 + v / w) / 2 in nats, (D,): how much each latent tells of an image, if q(z) is Gaussian.

    v is the variance over images of the mean of q(z|x), w the mean variance of q(z|x); both from two draws of z.

    Args:
        vae: the VAE.
        images: batches (B, 3, H, W) in [0, 1].
    """
    first, draws = 0, []
    for x in images:
        numbers = torch.arange(first, first + len(x), device=x.device)
        noise = [noise_of_images(0, numbers, stream, (vae.config.latent,)) for stream in INFORMATION_STREAMS]
        draws.append(torch.stack([vae.encode(x).sample(eps.to(x)) for eps in noise]))  # (2, B, D)
        first += len(x)
    z = torch.cat(draws, 1).double()
    within = (z[0] - z[1]).square().mean(0) / 2
    centred = z - rearrange(z, "k n d -> (k n) d").mean(0)
    between = (centred[0] * centred[1]).mean(0).clamp(min=0)
    return 0.5 * (1 + between / within.clamp(min=1e-12)).log()


def checked_scale(name: str, value: float) -> float:
    """Return a scale of noise. InputError for what is no number from 0 to MOST_SCALE."""
    if not isinstance(value, int | float) or not 0 <= value <= MOST_SCALE:
        raise InputError(f"{name} {shown(value)}: must be a number from 0 to {MOST_SCALE:,}")
    return float(value)
