"""Arguments of the recipes that are out of range or contradict each other, refused with the reason and the way out."""

from math import inf
from typing import TYPE_CHECKING

from degrain.models.core.errors import InputError

if TYPE_CHECKING:
    from degrain.models.training.vae import VAEModule


def refuse_if(wrong: object, message: str) -> None:
    """Raise an InputError with the message if `wrong` is true."""
    if wrong:
        raise InputError(f"model: {message}")


# --- stage 1


def refuse_stage_1(module: "VAEModule") -> None:
    """Refuse arguments of stage 1 that are out of range or contradict each other.

    Raises:
        InputError: names them and the way out.
    """
    m = module
    refuse_if(not 0 <= m.rate_warmup <= 1, f"rate_warmup ({m.rate_warmup}) is a share of the budget, from 0 to 1")
    refuse_if(
        not m.gradient_clip > 0 or m.prior_images < 1 or min(m.prior_components, m.prior_diffusion) < 0,
        f"gradient_clip ({m.gradient_clip}) must be positive, prior_images ({m.prior_images}) at least 1, "
        f"prior_components ({m.prior_components}) and prior_diffusion ({m.prior_diffusion}) at least 0",
    )
    for name in ("rate_weight", "regulariser_weight"):
        value = getattr(m, name)
        refuse_if(not 0 < value < inf, f"{name} ({value}) must be positive and finite")
    refuse_if(not 0 <= m.free_bits < inf, f"free_bits ({m.free_bits}) are nats, 0 or more")
    check_decoder(m)
    check_rate(m)


def check_decoder(module: "VAEModule") -> None:
    """Refuse arguments that contradict the decoder: its std, and its stack if it draws pixel after pixel."""
    std, blocks = module.net.std, module.net.pixels.blocks
    refuse_if(
        module.gradient != "plain" and std == "fixed",
        f"gradient {module.gradient} balances mean and std, and net.std is fixed; take gradient plain",
    )
    refuse_if(
        module.rate_weight != 1 and std != "fixed",
        f"rate_weight ({module.rate_weight}) with net.std {std}: a learned std answers a weight below 1 by falling "
        f"without bound and one above 1 by an empty code; take rate_weight 1 or net.std fixed",
    )
    refuse_if(
        blocks and module.likelihood == "density",
        f"likelihood density with net.pixels.blocks ({blocks}): pixels are drawn from those before on the 8-bit "
        f"grid, and trained on off it; take likelihood bin or blocks 0",
    )
    refuse_if(
        blocks and module.gradient != "plain",
        f"gradient {module.gradient} with net.pixels.blocks ({blocks}): it parts the gradients of mean and std at "
        f"the decoder's last layer, and here both pass through the stack; take gradient plain or blocks 0",
    )


def check_rate(module: "VAEModule") -> None:
    """Refuse arguments that contradict the regulariser, the posterior or the prior."""
    regulariser, net, free_bits = module.regulariser, module.net, module.free_bits
    refuse_if(
        module.prior_diffusion and net.posterior.steps,
        f"prior_diffusion ({module.prior_diffusion}) learns from the posteriors' mean and variance, which are not "
        f"known with net.posterior.steps ({net.posterior.steps}); take prior_diffusion 0 or steps 0",
    )
    refuse_if(
        free_bits and regulariser != "posterior",
        f"free_bits ({free_bits}) are of each posterior's KL, which is no part of the loss with regulariser "
        f"{regulariser}; take free_bits 0 or regulariser posterior",
    )
    refuse_if(
        module.regulariser_weight != 1 and regulariser == "posterior",
        f"regulariser_weight ({module.regulariser_weight}) is the weight of the regularisers moments and mmd; with "
        f"posterior the weight is rate_weight",
    )
    for name, flow in (("posterior", net.posterior), ("prior", net.prior)):
        refuse_if(
            free_bits and flow.steps,
            f"free_bits ({free_bits}) are of each latent's KL, and with net.{name}.steps ({flow.steps}) the KL is "
            f"no sum over latents; take free_bits 0 or steps 0",
        )
    refuse_if(
        regulariser != "posterior" and net.prior.steps,
        f"regulariser {regulariser} draws q(z) to N(0, I), and with net.prior.steps ({net.prior.steps}) p(z) is a "
        f"flow; take regulariser posterior or steps 0",
    )
    refuse_if(
        regulariser == "moments" and net.posterior.steps,
        f"regulariser moments takes the posterior's own mean and variance, which are not known with "
        f"net.posterior.steps ({net.posterior.steps}); take regulariser mmd, which needs only draws, or steps 0",
    )


# --- stage 2


def refuse_adversary(
    penalty_weight: float,
    penalty_every: int,
    translate: float,
    translate_from: int,
    feature_weight: float,
    ema_share: float,
) -> None:
    """Refuse arguments of an adversarial recipe that are out of range.

    Raises:
        InputError: names them.
    """
    refuse_if(not 0 <= penalty_weight < inf, f"penalty_weight ({penalty_weight}) must be finite and not negative")
    refuse_if(not 0 <= translate <= 0.5, f"translate ({translate}) is a share of the side, from 0 to 0.5")
    refuse_if(translate_from < 0, f"translate_from ({translate_from}) is a number of images, not negative")
    refuse_if(penalty_every < 1, f"penalty_every ({penalty_every}) must be at least 1")
    refuse_if(not 0 <= feature_weight < inf, f"feature_weight ({feature_weight}) must be finite and not negative")
    refuse_if(not 0 < ema_share <= 1, f"ema_share ({ema_share}) is a share of the images seen, above 0 and at most 1")


def refuse_stage_2(
    loss: str,
    noise: bool,
    translate: float,
    feature_weight: float,
    spread_weight: float,
    spread_every: int,
    ratio_images: int,
    ratio_draws: int,
) -> None:
    """Refuse arguments of stage 2 that are out of range, and terms that contradict the loss.

    Raises:
        InputError: names them and the way out.
    """
    refuse_if(
        ratio_images < 1 or ratio_draws < 2,
        f"ratio_images ({ratio_images}) must be at least 1, ratio_draws ({ratio_draws}) at least 2",
    )
    refuse_if(
        not 0 <= spread_weight < inf or spread_every < 1,
        f"spread_weight ({spread_weight}) must be finite and not negative, spread_every ({spread_every}) at least 1",
    )
    refuse_if(
        spread_weight and loss == "l2",
        f"spread_weight ({spread_weight}) holds the variance over noise that loss l2 takes away; take spread_weight 0 "
        f"(as configs/control_l2.yaml) or another loss",
    )
    refuse_if(
        translate and loss == "l2",
        f"translate ({translate}) moves what a discriminator sees, and loss l2 has none; take translate 0 (as "
        f"configs/control_l2.yaml) or another loss",
    )
    refuse_if(
        feature_weight and loss == "l2",
        f"feature_weight ({feature_weight}) weighs a discriminator, and loss l2 has none; take feature_weight 0 (as "
        f"configs/control_l2.yaml) or another loss",
    )
    refuse_if(
        spread_weight and not noise,
        f"spread_weight ({spread_weight}) holds a variance over noise, and with noise false G sees none; take "
        f"spread_weight 0 or noise true",
    )


def refuse_vae(path: str, made_for: int, pixel_by_pixel: bool, size: int) -> None:
    """Refuse a stage 1 whose draws stage 2 cannot denoise.

    Args:
        path: path of its checkpoint.
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
