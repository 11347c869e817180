"""Several denoisings of one z: what the denoiser makes of the noise, beside the decoder's std."""

import torch
from einops import rearrange
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.core.randomness import image_numbers, natural, noise_of_images
from degrain.models.inference.pipeline import Networks, Numbers, Pipeline
from degrain.models.vae.latent_prior import PriorName

VARIATION_STREAM = 4  # noise stream of the pixels, for several noises of the same image


@torch.inference_mode()
def variations(
    pipeline: Pipeline,
    seed: int,
    numbers: Numbers,
    count: int,
    x: Tensor | None = None,
    prior: PriorName | None = None,
    temperature: float = 1,
    noise: float = 1,
    best_of: int = 1,
) -> dict[str, Tensor]:
    """Denoise images `numbers` of a seed with K = `count` different noises of the pixels each.

    Their z is that of `Pipeline.codes` or, with photographs x, that of `Pipeline.codes_of`.

    Returns:
        Rows (B, 3, H, W): mean, `denoised 1` to `denoised K`, their std and, to compare, that of the decoder.

    Raises:
        InputError: see checked_variations and those two.
    """
    count = checked_variations(pipeline, count)
    if x is None:
        z, _ = pipeline.codes(seed, numbers, prior, temperature, noise, best_of)
    else:
        z, _ = pipeline.codes_of(seed, numbers, x, temperature, noise)
    shape = (count, 3, pipeline.vae.size, pipeline.vae.size)
    pixels = noise * noise_of_images(seed, image_numbers(numbers, z.device), VARIATION_STREAM, shape)
    with pipeline.precision():
        p = pipeline.vae.decode(z)
        draws = pipeline.denoiser.draws(rearrange(pixels, "b k c h w -> k b c h w"), p)
    denoised = {f"denoised {k}": images for k, images in enumerate(draws, 1)}
    return {"mean": p.mean, **denoised, "std of denoised": draws.std(0), "std": p.std.expand_as(p.mean)}


def checked_variations(networks: Networks, count: int) -> int:
    """Return the count as an int. InputError if there is no denoiser, or for a count below 2, which has no std."""
    if getattr(networks, "denoiser", None) is None:
        raise InputError("variations: this checkpoint has no denoiser; take one of stage 2")
    number = natural(count, "variations: count")
    if number < 2:
        raise InputError(f"variations: count {count} must be at least 2")
    return number
