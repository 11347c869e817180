"""How the scripts speak: what the user can mend is one line on standard error and exit code 2, never a traceback."""

import dataclasses
import difflib
import inspect
import re
import sys
import typing
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from jsonargparse import Namespace
from pytorch_lightning import LightningDataModule, LightningModule
from pytorch_lightning.cli import LightningArgumentParser

from models.core.errors import InputError

UNKNOWN = re.compile(
    r"Option '(?P<option>[^']+)' is not accepted|does not accept option '(?P<nested>[^']+)'"
    r"|unrecognized arguments: -*(?P<argument>[^\s=]+)|has no attribute '(?P<attribute>[^']+)'"
)

NEITHER = ": give it `class_path` and, below `init_args`, its parameters, and nothing else"

NO_MAPPING = "the file is no mapping of names to values; take one of configs/ as an example"


def fail(message: str) -> NoReturn:
    """Say what is wrong in one line and exit with code 2."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def fail_if_known(error: BaseException, kinds: tuple[type[Exception], ...]) -> None:
    """Fail with what the user can mend; return where nobody but us can.

    Args:
        error: what a command ended with.
        kinds: of which the message is one line with the way out.
    """
    if known := cause(error, kinds):
        fail(str(known))
    if known := cause(error, (OSError,)):
        place = f"{known.filename}: " if known.filename else ""
        fail(f"{place}{known.strerror or known}; check that it is there, its permissions and the space on the disk")
    if known := cause(error, (RuntimeError,)):
        if re.search("out of memory|allocate memory", str(known)):
            fail(f"out of memory ({str(known).splitlines()[0]}); take a smaller network, image or batch size")


class OneLineParser(LightningArgumentParser):
    """Says what is wrong with a command line or config in one line, with the nearest right name for a wrong one."""

    def parse_path(self, path: Any, *args: Any, **options: Any) -> Namespace:
        """A config from its file, which must be a text."""
        try:
            return super().parse_path(path, *args, **options)
        except UnicodeDecodeError:
            fail(f"config: {path} is no text; give a YAML file, such as those in configs/")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if found := UNKNOWN.search(message):
            written = next(part for part in found.groups() if part)
            here = option_names(self)
            wrong = next((part for part in written.split(".") if part not in here), written)
            near = difflib.get_close_matches(wrong, here, n=1) or difflib.get_close_matches(wrong, known_names(), n=1)
            fail(f"config: unknown name `{wrong}`" + (f"; did you mean `{near[0]}`?" if near else f" in `{written}`"))
        message = re.sub(r"Unexpected config:.*", NO_MAPPING, message, flags=re.S)
        message = re.sub(r"Does not validate against any of the Union subtypes.*?Errors:\s*- ", "", message, flags=re.S)
        message = re.sub(r"\s*Subclass types expect one of.*", NEITHER, message, flags=re.S)
        message = re.sub(
            r"\s*- Expected a <class 'NoneType'>.*?Given value: (?=\w+$)", ". Got value: ", message, flags=re.S
        )
        message = re.sub(r"\s*- Expected a <class 'NoneType'>.*", "", message, flags=re.S)
        fail(f"config: {message.replace('Parser key', 'value of')}")


def refuse_scalars(cls: type, values: Mapping[str, Any], where: str) -> None:
    """Refuse what is no mapping in a dataclass's place, which the parser would pass over to take the defaults.

    Args:
        cls: whose parameters or fields the values are.
        values: of a config.
        where: its name there.

    Raises:
        InputError: which.
    """
    hints = typing.get_type_hints(cls if dataclasses.is_dataclass(cls) else cls.__init__)
    for name, kind in hints.items():
        if not dataclasses.is_dataclass(kind) or name not in values:
            continue
        if not isinstance(values[name], dict):
            fields = ", ".join(field.name for field in dataclasses.fields(kind))
            raise InputError(f"config: {where}.{name}: {values[name]} is no mapping; give it {fields} as in configs/")
        refuse_scalars(kind, values[name], f"{where}.{name}")


def lost_process(error: Exception) -> str | None:
    """The line for an error that says that another process of a run is gone; nothing for another error."""
    if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error):
        return None
    said = re.sub(r"^\[\S+\] ", "", str(error)).split(". ")[0].splitlines()[0][:200]  # without the place in its sources
    what = "another process of this run has ended or does not answer; if it had time, it has said why"
    return f"{what}: {said}; --ckpt_path last goes on from the last checkpoint"


def cause(error: BaseException | None, kinds: tuple[type[Exception], ...]) -> BaseException | None:
    """The error itself or what it was raised from, whichever is of the kinds: the parser wraps what a class raises."""
    while error is not None and not isinstance(error, kinds):
        error = error.__cause__
    return error


def option_names(parser: ArgumentParser) -> set[str]:
    """The parts of the names of all options of a parser and its subcommands."""
    names: set[str] = set()
    for action in parser._actions:
        names |= set(action.dest.split("."))
        if isinstance(action, _SubParsersAction):
            names = names.union(*map(option_names, action.choices.values()))
    return names


def known_names() -> set[str]:
    """Names of our recipes and data modules, of their parameters and of the fields of their dataclasses."""
    names = {"class_path", "init_args"}
    waiting: list[type] = [LightningModule, LightningDataModule]
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        if cls.__module__.split(".")[0] not in ("models", "data"):
            continue
        names |= {cls.__name__, *inspect.signature(cls).parameters}
        hints = typing.get_type_hints(cls if dataclasses.is_dataclass(cls) else cls.__init__)
        waiting += [hint for hint in hints.values() if dataclasses.is_dataclass(hint)]
    return names
