"""Train and measure, from a config.

    python train.py fit -c configs/demo_vae.yaml                     # a run lives in runs/NAME/
    python train.py fit -c configs/demo_vae.yaml --seed 1 --name s1  # of model, data and Lightning alike
    python train.py fit -c configs/demo_vae.yaml --ckpt_path last    # go on with it, also after a kill
    python train.py test -c configs/demo_vae.yaml --ckpt_path last   # held-out figures into its metrics.json
    python train.py test -c configs/demo_vae.yaml --ckpt_path FILE.safetensors    # or those of an export, see sample.py
    python train.py fit -c configs/vae_celeba64.yaml --data.root DIR --print_config

Every entry of a config can be given on the command line; `fit --help` and `fit --model.help CLASS` list them.
"""

from degrain.models.core.threads import START  # noqa: F401 (before torch: the load is measured from here on)

# isort: split
import logging
import sys
import warnings

import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException

from degrain.models.core.command_line import fail, fail_if_known, tolerant_output
from degrain.models.core.errors import InputError, first_line
from degrain.models.training.cli import CLI

HARMLESS = (
    "does not have many workers",
    "This DataLoader will create",  # more of them than cores, as asked
    "smaller than the logging interval",
    "LeafSpec",
    "in eval mode",
    "torch.distributed.nn.functional.all_gather is deprecated",  # Lightning uses it
    "It is recommended to use `self.log",  # for values that are of all processes already
    "no `validation_step`",
    "across ranks is zero",  # a finished run that is given a prior takes no step
)
"""Warnings that tell the user nothing."""


def main(args: list[str] | None = None) -> None:
    """Run a command line; an error that the user can correct ends in one line and exit code 2."""
    tolerant_output()
    for message in HARMLESS:
        warnings.filterwarnings("ignore", f".*{message}")
    for library in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)  # no advertisements, no list of hardware that is absent
    logging.getLogger("pytorch_lightning.callbacks").setLevel(logging.INFO)  # what the user asked for: a summary
    try:
        CLI(args)
    except Exception as error:
        if isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
            said = first_line(error).rpartition("] ")[2].split(". ")[0][:200]  # without the place in torch's sources
            fail(
                f"another process of this run has ended or does not answer; if it had time, it has said why: {said}; "
                f"--ckpt_path last goes on from the last checkpoint"
            )
        fail_if_known(error, (InputError, MisconfigurationException, ModuleNotFoundError))
        raise
    except SIGTERMException:  # in a validation or test; its own exit code is 0
        sys.exit(143)
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # the Trainer's exit code is 1
            sys.exit(130)
        raise


if __name__ == "__main__":
    main()
