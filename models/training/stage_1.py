"""Where stage 2 takes its VAE from: the checkpoint that it goes on from, or a run of stage 1."""

import shlex
from contextlib import suppress
from pathlib import Path

import torch
import yaml
from jsonargparse import Namespace
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.inference.checkpoint import PREFIXES, located, read_checkpoint, substate

MOST_RUNS = 20  # that are looked at for a stage 1


def vae_option(checkpoint: str | Path) -> str:
    """Return the option that lets stage 2 take a stage 1, as it is typed."""
    return f"--model.vae {shlex.quote(str(checkpoint))}"


def group_of(config: Namespace) -> str:
    """Return the group of a run in W&B: that of its stage 1, whose name it has by default."""
    given = config.model.get("init_args") or {}
    if "vae" not in given or not isinstance(given["vae"], str):
        return config.name
    path = Path(given["vae"])
    with suppress(OSError, ValueError, AttributeError, yaml.YAMLError):  # an export has no config beside it
        if group := yaml.safe_load(path.with_name("config.yaml").read_text(encoding="utf-8")).get("group"):
            return group
    return path.parent.name if path.name == "last.ckpt" and path.parent.name else path.stem


def refuse_missing(path: str, size: int, runs: str) -> None:
    """Refuse a path of stage 1 without a file, and name the newest stage 1 among all runs.

    Args:
        path: `model.vae`.
        size: image side of the data.
        runs: folder of all runs.

    Raises:
        InputError: there is no such file, or an address gives none.
    """
    if located(path).is_file():
        return
    found = newest(path, size, runs) or Path(runs, "NAME/last.ckpt")
    said = f"no such file; train it first or correct the path: {vae_option(found)} takes the stage 1 of a run"
    raise InputError(f"checkpoint {path}: {said}")


def newest(path: str, size: int, runs: str) -> Path | None:
    """Return the checkpoint in the folder `path`, or the newest one of stage 1 and of this size among the runs."""
    candidates = [found for found in Path(runs).glob("*/last.ckpt") if found.is_file()]
    candidates.sort(key=lambda found: found.stat().st_mtime, reverse=True)
    for candidate in (Path(path, "last.ckpt"), *candidates[:MOST_RUNS]):
        with suppress(InputError):
            card, _ = read_checkpoint(candidate)
            if card.stage == "vae" and card.size == size:
                return candidate
    return None


def source_of_prior(path: str, checkpoint: str, state: dict[str, Tensor], renew: bool) -> str:
    """Return where stage 2 has VAE and prior from: its checkpoint, or the file of stage 1 that has a prior more.

    A line says if the file holds another VAE, or if its prior is taken.

    Args:
        path: `model.vae`; there may be no such file.
        checkpoint: path of the checkpoint of stage 2.
        state: its state dict.
        renew: whether to take a prior that the checkpoint lacks.
    """
    if Path(path).resolve() == Path(checkpoint).resolve() or not Path(path).is_file():
        return checkpoint
    with suppress(InputError):
        theirs = read_checkpoint(path)[1]
        one, other = (substate(weights, PREFIXES["vae"]) for weights in (state, theirs))
        same = one.keys() == other.keys() and all(torch.equal(one[n].half(), other[n].half()) for n in one)
        if not same:  # but for the rounding of an export
            rank_zero_only(print)(f"model.vae {path}: holds another VAE than {checkpoint}, whose own is kept")
        elif renew and substate(theirs, PREFIXES["prior"]).keys() > substate(state, PREFIXES["prior"]).keys():
            rank_zero_only(print)(f"model.vae {path}: has a prior that {checkpoint} lacks, which is taken over")
            return path
    return checkpoint
