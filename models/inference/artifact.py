"""Checkpoints that W&B keeps, by their address `wandb:ENTITY/PROJECT/NAME:ALIAS`."""

import re
from pathlib import Path

from degrain.models.core.errors import InputError, first_line

ADDRESS = re.compile(r"wandb:(([\w.-]+/)?[\w.-]+/[\w.-]+:[\w.-]+)", re.ASCII)


def local_checkpoint(checkpoint: str) -> str:
    """Return the path of a checkpoint; one of W&B, `wandb:[ENTITY/]PROJECT/NAME:ALIAS`, is downloaded first.

    Args:
        checkpoint: a path, which is returned as it is, or an address. It needs `wandb login` and the network; what was
            downloaded before is kept in ./artifacts, and only checked.

    Raises:
        InputError: no address, not logged in, no network, no such artifact, or no checkpoint in it.
    """
    if not isinstance(checkpoint, str) or not checkpoint.startswith("wandb:"):
        return checkpoint
    address = ADDRESS.fullmatch(checkpoint)
    if address is None:
        raise InputError(f"checkpoint {checkpoint}: write wandb:ENTITY/PROJECT/NAME:ALIAS; ALIAS is latest or best")
    import wandb

    try:
        if not wandb.login(prompt=False, verify=False):  # asks nobody
            raise InputError(f"checkpoint {checkpoint}: not logged in to W&B; run `wandb login`, or give a file")
        folder = wandb.Api(timeout=10).artifact(address[1], type="model").download()
    except InputError:
        raise
    except (wandb.Error, OSError, ValueError) as error:
        raise InputError(
            f"checkpoint {checkpoint}: W&B did not give it ({first_line(error)}); check the network, the account and "
            f"the address, or give a file"
        ) from None
    found = sorted(path for path in Path(folder).iterdir() if path.suffix in (".ckpt", ".safetensors"))
    if not found:
        raise InputError(f"checkpoint {checkpoint}: holds no checkpoint; take one of --wandb_artifacts true")
    return str(found[0])
