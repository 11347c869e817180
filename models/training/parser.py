"""The parser of train.py: suggestions from recipes and data modules, and names that are gone."""

import dataclasses
import re
import sys
import typing
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from pydoc import ErrorDuringImport, locate
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace
from pytorch_lightning.cli import LightningArgumentParser

from degrain.models.core.command_line import OneLineParser, fail, option_names
from degrain.models.core.errors import InputError
from degrain.models.training.short_help import Options, print_common_options

PACKAGES = (
    *("degrain.models.training", "degrain.models.toys"),
    *("degrain.data.datamodule", "degrain.data.gaussian", "degrain.data.stacked_mnist"),
)
"""Where the classes are that configs name."""


class ConfigParser(OneLineParser, LightningArgumentParser):
    """Parser of the command line and the config, in which model and data take no seed of their own.

    Attributes:
        whole: the parser of the last command line, for suggestions: errors arise in those of its parts.
        line: that command line.
    """

    whole: "ConfigParser | None" = None
    line: list[str] = []

    def add_subclass_arguments(self, *args: Any, **options: Any) -> list[str]:
        return super().add_subclass_arguments(*args, **options | {"skip": {"seed"}})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if moved := re.search(r"(?<![\w.])(models|data)\.\w+\.([A-Z]\w+)", message):  # before the package degrain
            for package in PACKAGES:
                if locate(f"{package}.{moved[2]}"):
                    fail(f"config: {moved[0]} is now {package}.{moved[2]}; change class_path")
        super().error(message, ex)

    def unknown(self, name: str) -> NoReturn:
        if name.split(".")[-1] in ("seed", "seed_everything"):
            fail(f"config: no `{name}` here: --seed N (in a config `seed: N`) is the seed of model, data and Lightning")
        for part in ("model", "data"):
            if "trainer.devices" not in option_names(self) and chosen_class(self.line, part) is None:
                fail(f"config: `{name}` without a `class_path` of {part}: give a whole config before it, see configs/")
        super().unknown(name)

    def parse_args(self, args: list[str] | None = None, *rest: Any, **options: Any) -> Namespace:
        if self._subcommands_action is not None:  # not in the parser of a class or a subcommand
            args = print_common_options(self, list(sys.argv[1:] if args is None else args), common_actions)
            ConfigParser.whole, ConfigParser.line = self, args
        return super().parse_args(args, *rest, **options)

    def places(self) -> dict[str, str]:
        """Return the dotted names of all options by their last part; with those of the config's model and data."""
        places = super().places()
        if "model" in places:  # not in the parser of a class
            places |= {place.split(".")[-1]: place for place in self.of_classes()}
        return places

    def all_places(self) -> set[str]:
        subcommands = self.whole._subcommands_action.choices if self.whole else {"": self}
        chosen = next((word for word in self.line if word in subcommands), next(iter(subcommands)))
        return {*option_names(subcommands[chosen]), *self.of_classes()}

    def of_classes(self) -> list[str]:
        """Return the dotted names of the options of the model and the data that the command line chooses."""
        chosen = ((part, chosen_class(self.line, part)) for part in ("data", "model"))
        return [f"{part}.{name}" for part, cls in chosen if cls is not None for name in arguments(cls)]


def chosen_class(line: list[str], part: str) -> type | None:
    """Return the class of `model` or `data` that a command line and its configs choose; None if there is none."""
    path = None
    for word, value in zip(line, [*line[1:], ""], strict=True):
        option, equals, given = word.partition("=")
        value = given if equals else value
        if option in ("-c", "--config"):
            with suppress(OSError, ValueError, yaml.YAMLError, AttributeError):
                there = yaml.safe_load(Path(value).read_text(encoding="utf-8")).get(part)
                path = there if isinstance(there, str) else (there or {}).get("class_path", path)
        elif option in (f"--{part}", f"--{part}.class_path"):
            path = value
    with suppress(ErrorDuringImport, AttributeError):
        cls = locate(path) if path else None
        return cls if isinstance(cls, type) else None


def common_actions(line: list[str]) -> Options:
    """Return the options of the model and the data of a command line, or of those that it would have for faces."""
    usual = {"data": "degrain.data.datamodule.ImageFolder", "model": "degrain.models.training.GANModule"}
    found = {}
    for part, path in usual.items():
        cls = chosen_class(line, part) or locate(path)
        found |= {f"{part}.{action.dest}": action for action in class_parser(cls)._actions}
    return found


def arguments(cls: type) -> list[str]:
    """Return the dotted names of a class's arguments, those taken as **keywords and fields of dataclasses included."""
    return list(option_names(class_parser(cls)))


@cache
def class_parser(cls: type) -> ArgumentParser:
    """Return a parser of a class's arguments, to be read, not changed."""
    parser = ArgumentParser(add_help=False)
    parser.add_class_arguments(cls, fail_untyped=False)
    return parser


def refuse_nulls(parser: ArgumentParser, values: Namespace, where: str = "") -> None:
    """Refuse null for an option that has no such value: jsonargparse lets it pass.

    Args:
        parser: parser of the options.
        values: their values.
        where: dotted name of the values in the config, with a dot at its end.

    Raises:
        InputError: names the option.
    """
    for action in parser._actions:
        kind = getattr(action, "_typehint", None) or action.type
        optional = action.default is None and not action.required or type(None) in typing.get_args(kind)
        if kind is not None and not optional and action.dest in values and values[action.dest] is None:
            raise InputError(f"config: {where}{action.dest}: null is no value of it; leave it out to have the default")


def refuse_scalars(cls: type, values: Mapping[str, Any], where: str) -> None:
    """Refuse a value that is no mapping where a dataclass is expected: the parser would silently take its defaults.

    Args:
        cls: class whose parameters or fields the values are.
        values: values of a config.
        where: dotted name of the values in the config.

    Raises:
        InputError: a value is no mapping.
    """
    hints = typing.get_type_hints(cls if dataclasses.is_dataclass(cls) else cls.__init__)
    for name, kind in hints.items():
        if not dataclasses.is_dataclass(kind) or name not in values:
            continue
        if not isinstance(values[name], dict):
            fields = ", ".join(field.name for field in dataclasses.fields(kind))
            raise InputError(f"config: {where}.{name}: {values[name]} is no mapping; give it {fields} as in configs/")
        refuse_scalars(kind, values[name], f"{where}.{name}")
