"""Give a finished run a prior that it lacks, without training its networks: `fit` of a run that has seen its budget."""

from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from degrain.models.training.checkpoints import Checkpoints
from degrain.models.training.recipe import Recipe


def lacks_prior(model: LightningModule, state: dict[str, Tensor]) -> bool:
    """Return whether a checkpoint has no diffusion prior, although the config asks for one or `model.vae` has one."""
    prior = getattr(model, "prior", None)
    asked = getattr(model, "prior_diffusion", 0) or getattr(prior, "diffusion", None) is not None
    return bool(asked) and not any(name.startswith("prior.diffusion.") for name in state)


def add_prior(trainer: Trainer, model: Recipe, **settings: object) -> bool:
    """Learn the prior that the config asks for, or take over that of `model.vae`, and write the checkpoint.

    Args:
        trainer: of the fit.
        model: has seen its budget; its `on_fit_start` learns the prior, and there are no images for a step.
        settings: of Trainer.fit.

    Returns:
        False if the checkpoint has all priors that were asked for: nothing is done.
    """
    if not model.lacks_prior:
        return False
    trainer.fit(model, **settings)  # restores weights, data and optimizer states, and takes no step
    [checkpoints] = (callback for callback in trainer.callbacks if isinstance(callback, Checkpoints))
    checkpoints.save(trainer, validated=False)
    return True
