"""The command that a user would type next, printed at the end of a command."""

import json
import shlex
from contextlib import suppress
from pathlib import Path
from pydoc import locate
from typing import Any

import yaml
from jsonargparse import Namespace

from degrain.models.evaluation.face_sheet import SCORE
from degrain.models.training.parser import class_parser
from degrain.models.training.recipe import leaves

STAGE_2 = {32: "configs/demo_gan.yaml", 64: "configs/gan_celeba64.yaml"}
"""Least image side -> config of stage 2 for a stage 1 that has none beside its own."""

OF_A_STAGE = ("batch_size", "eval_batch_size", "micro_batch_size", "num_workers", "limit_valid")
"""Options of the data of which each stage has its own values."""


def after_fit(config: Namespace, stage: str) -> list[str]:
    """Return the commands that follow a finished training.

    Args:
        config: its resolved config.
        stage: of the card; `vae`, `gan`, `plain_gan` or `toy`.
    """
    folder = Path(config.runs, config.name)
    if stage == "vae":
        return [stage_2(config)]
    draw = command("sample.py", str(folder / "last.ckpt"), n=64, seed=0, out="samples.png")
    return [draw, measure(folder)] if stage in ("gan", "plain_gan") else []


def after_test(folder: Path) -> list[str]:
    """Return the command that follows a test: the count of broken faces, if there is a sheet to look at."""
    if not (folder / "sheet_key.csv").exists():
        return []
    score = shlex.join([*SCORE.split(), str(folder / "sheet_key.csv"), "RATER.txt"])
    return [f"{score}    # RATER.txt: numbers of the broken faces on {folder}/sheet_1.png and on"]


def measure(folder: Path) -> str:
    """Return the command that tests a run."""
    return command("train.py", "test", "-c", str(folder / "config.yaml"), ckpt_path="last")


def stage_2(config: Namespace) -> str:
    """Return the command of stage 2 on a stage 1, with what its config files do not say already."""
    given = [Path(str(path)) for path in config.get("config") or []]
    files = [file for file in map(of_stage_2, given) if file is not None]
    if not files:
        side = (config.data.get("init_args") or {}).get("size", 64)
        files = [Path(STAGE_2[64 if side >= 64 else 32])]
    theirs: dict[str, Any] = {}
    for file in files:
        with suppress(OSError, ValueError, yaml.YAMLError):
            entries = leaves(yaml.safe_load(file.read_text(encoding="utf-8")))
            theirs |= {entry.replace(".init_args", ""): value for entry, value in entries.items()}
    name = config.name.replace("vae", "gan", 1) if "vae" in config.name else f"{config.name}_gan"
    options = {"name": name, "runs": config.runs, "model.vae": str(Path(config.runs, config.name, "last.ckpt"))}
    usual = {"runs": "runs"} | theirs
    options = {option: value for option, value in options.items() if usual.get(option) != value}
    sources = (part for file in files for part in ("-c", str(file)))
    return command("train.py", "fit", *sources, **data_options(config, theirs), **options)


def of_stage_2(path: Path) -> Path | None:
    """Return the config of stage 2 that stands beside one of stage 1: gan_celeba64.yaml, base_gan.yaml."""
    names = (path.name.replace("vae", "gan", 1), f"{path.stem}_gan{path.suffix}")
    return next((path.with_name(name) for name in names if name != path.name and path.with_name(name).is_file()), None)


def data_options(config: Namespace, theirs: dict[str, Any]) -> dict[str, Any]:
    """Return the options by which stage 2 has the data of stage 1, but for those that its config says, or nobody."""
    kind, given = config.data.class_path, config.data.get("init_args") or Namespace()
    usual = class_parser(locate(kind)).get_defaults().as_dict() | {"size": None}
    options = {} if theirs.get("data.class_path") == kind else {"data": kind}
    for name, value in given.as_dict().items():
        if name not in OF_A_STAGE and value != theirs.get(f"data.{name}", usual.get(name)):
            options[f"data.{name}"] = json.dumps(value) if isinstance(value, dict | list) else value
    return options


def command(*words: str, **options: Any) -> str:
    """Return a command line of python as it is typed."""
    typed = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return shlex.join(["python", *words, *typed])
