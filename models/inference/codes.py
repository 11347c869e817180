"""What images are rendered from, z and the noise of the pixels, and paths between them.

Axes: B batch, D latents, C = 3 channels, H, W.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from einops import rearrange, reduce
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.core.gaussian import Gaussian
from degrain.models.core.randomness import natural, noise_of_images, shown
from degrain.models.vae.latent_prior import LatentPrior
from degrain.models.vae.network import VAE

MOST_SCALE = 1_000
"""Largest scale of noise, and farthest position of a latent in std: far beyond what a network was trained on."""

MOST_CANDIDATES, DECODED = 1_000, 32
"""Most codes of which one is chosen, and how many of them are decoded at once."""

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


def checked_count(best_of: int) -> int:
    """Return a number of candidates as an int. InputError for what is no integer from 1 to MOST_CANDIDATES."""
    try:
        count = natural(best_of, "best_of")
    except InputError:
        count = 0
    if not 1 <= count <= MOST_CANDIDATES:
        raise InputError(f"best_of {shown(best_of)}: must be an integer from 1 to {MOST_CANDIDATES:,}")
    return count


def candidates(numbers: Tensor, count: int) -> Tensor:
    """Return the numbers of K = `count` draws of which the code of each image is chosen: K i to K i + K - 1, (B K,).

    Raises:
        InputError: a number of a draw would be 2^63 or more.
    """
    last = int(numbers.max())
    if count * (last + 1) > 2**63:
        raise InputError(f"number of an image {last}: must be below 2^63 / {count}, with best_of {count}")
    return (count * numbers[:, None] + torch.arange(count, device=numbers.device)).flatten()


def clearest(vae: VAE, z: Tensor, count: int) -> Tensor:
    """Return the code of largest `clarity` of each K = `count` in a row: (B K, D) -> (B, D).

    Products are in float32, also of a pipeline in bf16, whose last bits depend on the batch; on a GPU as far as torch
    multiplies in float32 there.

    Raises:
        InputError: several codes, and a decoder whose std does not depend on z.
    """
    if count == 1:
        return z
    if vae.config.std != "pixel" or vae.pixel_by_pixel:
        raise InputError(
            f"best_of {count}: chooses by the std that each pixel has given z, and here it has none; leave it out"
        )
    choices = rearrange(z, "(b k) d -> b k d", k=count)
    found = torch.cat([clarity(vae.decode(some)) for some in z.split(DECODED)])
    return choices[range(len(choices)), rearrange(found, "(b k) -> b k", k=count).argmax(1)]


def clarity(p: Gaussian) -> Tensor:
    """Return by how many std neighbouring pixels of the mean differ, down and across together, on average, (B,).

    Of the middle of an image, half of each side: there a face is, and around it what a code need not tell.
    """
    edge = p.mean.shape[-1] // 4
    mean, std = (image[..., edge:-edge, edge:-edge] for image in (p.mean, p.std))
    corner = mean[..., :-1, :-1]
    steps = (mean[..., 1:, :-1] - corner).abs() + (mean[..., :-1, 1:] - corner).abs()
    return reduce(steps / std[..., :-1, :-1], "b c h w -> b", "mean")


def checked_scale(name: str, value: float) -> float:
    """Return a scale of noise. InputError for what is no number from 0 to MOST_SCALE."""
    if not isinstance(value, int | float) or not 0 <= value <= MOST_SCALE:
        raise InputError(f"{name} {shown(value)}: must be a number from 0 to {MOST_SCALE:,}")
    return float(value)
