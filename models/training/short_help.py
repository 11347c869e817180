"""The options that most commands need, which `train.py SUBCOMMAND --help` prints; `--help all` prints every one."""

import sys
from argparse import SUPPRESS, Action
from collections.abc import Callable, Iterable
from shutil import get_terminal_size
from textwrap import fill
from typing import Any

Options = dict[str, Action]
"""Options by their dotted names."""

OF_EVERY_COMMAND = ("config", "name", "runs", "ckpt_path", "seed", "data.root", "data.size", "data.batch_size")
OF_W_AND_B = ("wandb", "project", "group", "tags")
COMMON = {
    "fit": (
        *OF_EVERY_COMMAND,
        *("model.budget", "model.vae", "model.learning_rate", "model.validate_every", "checkpoint_minutes"),
        *("trainer.devices", "trainer.precision", "trainer.max_time", "threads", *OF_W_AND_B, "wandb_artifacts"),
    ),
    "test": (
        *OF_EVERY_COMMAND,
        *("evaluation.n", "evaluation.seeds", "evaluation.net", "evaluation.sheet", "evaluation.off"),
        *("trainer.devices", "threads", *OF_W_AND_B),
    ),
    "validate": (*OF_EVERY_COMMAND, "trainer.devices", "threads"),
}
"""Subcommand -> its common options."""

TEXTS = {
    "config": "file of options, see configs/; a later one is laid over those before it",
    "ckpt_path": "checkpoint to go on from or to measure; `last` is that of the run",
    "model.learning_rate": "Adam's, after the warm-up",
    "seed": "of model, data and Lightning",
    "trainer.devices": "processes, one for each GPU",
    "trainer.precision": "32-true, bf16-mixed or 16-mixed",
    "trainer.max_time": "end this call after DD:HH:MM:SS",
}
"""Shorter texts for some of them."""


def print_common_options(parser: Any, line: list[str], of_classes: Callable[[list[str]], Options]) -> list[str]:
    """Print the common options and exit if a command line asks for help; return it without the word `all` otherwise.

    Args:
        parser: of the whole command line.
        line: the command line.
        of_classes: from the line to the options of its model and data.
    """
    number = next((i for i, word in enumerate(line) if word in ("-h", "--help")), None)
    subcommand = next((word for word in line if word in COMMON), None)
    if number is None or subcommand is None:
        return line
    if line[number + 1 :][:1] == ["all"]:
        return line[: number + 1] + line[number + 2 :]
    print(f"usage: python train.py {subcommand} -c CONFIG [--OPTION VALUE ...]\n\ncommon options:")
    actions = parser._subcommands_action.choices[subcommand]._actions
    found = {action.dest: action for action in actions} | of_classes(line)
    for name in COMMON[subcommand]:
        if name in found:
            print(described(name, found[name]))
    print(
        f"\nAll options: python train.py {subcommand} --help all\n"
        f"Those of a class: --model.help degrain.models.training.VAEModule, "
        f"--data.help degrain.data.datamodule.ImageFolder\n"
        f"With a config: python train.py {subcommand} -c CONFIG --print_config"
    )
    sys.exit(0)


def described(name: str, option: Action) -> str:
    """Return the lines of an option: its name, its text and its default."""
    default = option.default
    said = TEXTS.get(name, option.help or "").strip().split(". ")[0].removesuffix(".")
    one_value = isinstance(default, str) or not isinstance(default, Iterable)
    if one_value and default not in (None, "", SUPPRESS):
        said += f" (default: {default})"
    width = max(60, min(120, get_terminal_size().columns))
    short = "-c, " if name == "config" else ""
    head = f"{f'  {short}--{name}':<29} "
    return fill(said, width, initial_indent=head, subsequent_indent=" " * 30)
