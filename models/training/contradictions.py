"""Arguments of the recipes that are out of range or cancel each other, refused with the reason and the way out."""

from math import inf
from typing import TYPE_CHECKING

from models.core.errors import InputError

if TYPE_CHECKING:
    from models.training.vae import VAEModule


# --- stage 1


def refuse_stage_1(module: "VAEModule") -> None:
    """Refuse arguments of stage 1 that are out of range, and variants that cancel each other.

    Raises:
        InputError: which, and the way out.
    """
    if not 0 <= module.rate_warmup <= 1:
        raise InputError(f"model: rate_warmup ({module.rate_warmup}) is a share of the budget, from 0 to 1")
    if module.gradient_clip <= 0 or module.prior_images < 1 or module.prior_components < 0:
        raise InputError(
            f"model: gradient_clip ({module.gradient_clip}) must be positive, prior_images ({module.prior_images}) at "
            f"least 1, prior_components ({module.prior_components}) at least 0"
        )
    for name in ("rate_weight", "regulariser_weight"):
        if not 0 < getattr(module, name) < inf:
            raise InputError(f"model: {name} ({getattr(module, name)}) must be positive and finite")
    if not 0 <= module.free_bits < inf:
        raise InputError(f"model: free_bits ({module.free_bits}) are nats, 0 or more")
    refuse_for_the_std(module)
    refuse_for_the_rate(module)
    refuse_for_the_pixels(module)


def refuse_for_the_std(module: "VAEModule") -> None:
    """Refuse what a fixed or a learned std rules out."""
    std = module.net.std
    if module.gradient != "plain" and std == "fixed":
        raise InputError(
            f"model: gradient {module.gradient} balances mean and std, and net.std is fixed; take gradient plain"
        )
    if module.rate_weight != 1 and std != "fixed":
        raise InputError(
            f"model: rate_weight ({module.rate_weight}) with net.std {std}: a learned std answers a weight below 1 "
            f"by falling without bound and one above 1 by an empty code; take rate_weight 1 or net.std fixed"
        )


def refuse_for_the_rate(module: "VAEModule") -> None:
    """Refuse what the regulariser, the posterior and the prior rule out."""
    regulariser, net = module.regulariser, module.net
    if module.free_bits and regulariser != "posterior":
        raise InputError(
            f"model: free_bits ({module.free_bits}) are of each posterior's KL, which is no part of the loss with "
            f"regulariser {regulariser}; take free_bits 0 or regulariser posterior"
        )
    if module.regulariser_weight != 1 and regulariser == "posterior":
        raise InputError(
            f"model: regulariser_weight ({module.regulariser_weight}) is of the regularisers moments and mmd; with "
            f"posterior the weight is rate_weight"
        )
    for name, flow in (("posterior", net.posterior), ("prior", net.prior)):
        if module.free_bits and flow.steps:
            raise InputError(
                f"model: free_bits ({module.free_bits}) are of each latent's KL, and with net.{name}.steps "
                f"({flow.steps}) the KL is no sum over latents; take free_bits 0 or steps 0"
            )
    if regulariser != "posterior" and net.prior.steps:
        raise InputError(
            f"model: regulariser {regulariser} draws q(z) to N(0, I), and with net.prior.steps ({net.prior.steps}) "
            f"p(z) is a flow; take regulariser posterior or steps 0"
        )
    if regulariser == "moments" and net.posterior.steps:
        raise InputError(
            f"model: regulariser moments takes the posterior's own mean and variance, which are not known with "
            f"net.posterior.steps ({net.posterior.steps}); take regulariser mmd, which needs draws alone, or steps 0"
        )


def refuse_for_the_pixels(module: "VAEModule") -> None:
    """Refuse what a decoder of pixels in order rules out."""
    blocks = module.net.pixels.blocks
    if blocks and module.likelihood == "density":
        raise InputError(
            f"model: likelihood density with net.pixels.blocks ({blocks}): pixels are drawn from those before on the "
            f"8-bit grid, and trained on off it; take likelihood bin or blocks 0"
        )
    if blocks and module.gradient != "plain":
        raise InputError(
            f"model: gradient {module.gradient} with net.pixels.blocks ({blocks}): it parts the gradients of mean and "
            f"std at the decoder's last layer, and here both pass through the stack; take gradient plain or blocks 0"
        )


# --- stage 2


def refuse_adversary(penalty_weight: float, penalty_every: int, translate: float, ema_images: int) -> None:
    """Refuse arguments of an adversarial recipe that are out of range.

    Raises:
        InputError: which.
    """
    if penalty_weight < 0:
        raise InputError(f"model: penalty_weight ({penalty_weight}) must not be negative")
    if not 0 <= translate <= 0.5:
        raise InputError(f"model: translate ({translate}) is a share of the side, from 0 to 0.5")
    if min(penalty_every, ema_images) < 1:
        raise InputError(f"model: penalty_every ({penalty_every}) and ema_images ({ema_images}) must be at least 1")


def refuse_stage_2(
    loss: str,
    noise: bool,
    translate: float,
    spread_weight: float,
    spread_every: int,
    ratio_images: int,
    ratio_draws: int,
) -> None:
    """Refuse arguments of stage 2 that are out of range, and terms that work against the loss or mean nothing to it.

    Raises:
        InputError: which, and the way out.
    """
    if ratio_images < 1 or ratio_draws < 2:
        raise InputError(
            f"model: ratio_images ({ratio_images}) must be at least 1, ratio_draws ({ratio_draws}) at least 2"
        )
    if spread_weight < 0 or spread_every < 1:
        raise InputError(
            f"model: spread_weight ({spread_weight}) must not be negative, spread_every ({spread_every}) at least 1"
        )
    if spread_weight and loss == "l2":
        raise InputError(
            f"model: spread_weight ({spread_weight}) holds the variance over noise that loss l2 takes away; "
            f"take spread_weight 0 or another loss"
        )
    if translate and loss == "l2":
        raise InputError(
            f"model: translate ({translate}) moves what a discriminator sees, and loss l2 has none; take "
            f"translate 0 or another loss"
        )
    if spread_weight and not noise:
        raise InputError(
            f"model: spread_weight ({spread_weight}) holds a variance over noise, and with noise false G sees "
            f"none; take spread_weight 0 or noise true"
        )


def refuse_vae(path: str, made_for: int, pixel_by_pixel: bool, size: int) -> None:
    """Refuse a stage 1 whose draws stage 2 cannot denoise.

    Args:
        path: of its checkpoint.
        made_for: image side of the VAE.
        pixel_by_pixel: whether it is a PixelVAE.
        size: image side of the data.

    Raises:
        InputError: it is of another size or a PixelVAE.
    """
    if made_for != size:
        raise InputError(f"model.vae {path}: made for {made_for} pixels, the data have {size}; set data.size")
    if pixel_by_pixel:
        raise InputError(
            f"model.vae {path}: is a PixelVAE, whose samples have no noise that is independent from pixel to pixel "
            f"and so nothing to denoise; take a stage 1 with net.pixels.blocks 0"
        )
