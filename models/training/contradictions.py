"""Variants of stage 1 that cancel each other, refused with the reason and the way out."""

from math import inf
from typing import TYPE_CHECKING

from models.core.errors import InputError

if TYPE_CHECKING:
    from models.training.vae import VAEModule


def refuse_contradictions(module: "VAEModule") -> None:
    """Refuse weights out of range and variants that cancel each other.

    Raises:
        InputError: which, and the way out.
    """
    for name in ("rate_weight", "regulariser_weight"):
        if not 0 < getattr(module, name) < inf:
            raise InputError(f"model: {name} ({getattr(module, name)}) must be positive and finite")
    if not 0 <= module.free_bits < inf:
        raise InputError(f"model: free_bits ({module.free_bits}) are nats, 0 or more")
    refuse_of_the_std(module)
    refuse_of_the_rate(module)
    refuse_of_the_pixels(module)


def refuse_of_the_std(module: "VAEModule") -> None:
    """What a fixed or a learned std rules out."""
    std = module.vae.config.std
    if module.gradient != "plain" and std == "fixed":
        raise InputError(
            f"model: gradient {module.gradient} balances mean and std, and net.std is fixed; take gradient plain"
        )
    if module.rate_weight != 1 and std != "fixed":
        raise InputError(
            f"model: rate_weight ({module.rate_weight}) with net.std {std}: a learned std answers a weight below 1 "
            f"by falling without bound and one above 1 by an empty code; take rate_weight 1 or net.std fixed"
        )


def refuse_of_the_rate(module: "VAEModule") -> None:
    """What the regulariser, the posterior and the prior rule out."""
    regulariser, net = module.regulariser, module.vae.config
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


def refuse_of_the_pixels(module: "VAEModule") -> None:
    """What a decoder of pixels in order rules out."""
    blocks = module.vae.config.pixels.blocks
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
