"""The parser of train.py: suggestions from recipes and data modules, and names that are gone."""

import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping
from pydoc import locate
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from pytorch_lightning import LightningDataModule, LightningModule
from pytorch_lightning.cli import LightningArgumentParser

from models.core.command_line import OneLineParser, fail, option_names
from models.core.errors import InputError


class ConfigParser(OneLineParser, LightningArgumentParser):
    """Parser of the command line and the config, in which model and data take no seed of their own."""

    def add_subclass_arguments(self, *args: Any, **options: Any) -> list[str]:
        return super().add_subclass_arguments(*args, **options | {"skip": {"seed"}})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if moved := re.search(r"models\.modules\.(\w+)", message):
            for package in ("models.training", "models.toys"):
                if locate(f"{package}.{moved[1]}"):
                    fail(f"config: {moved[0]} is now {package}.{moved[1]}; change class_path")
        super().error(message, ex)

    def unknown(self, name: str) -> NoReturn:
        if name.split(".")[-1] in ("seed", "seed_everything"):
            fail(f"config: no `{name}` here: --seed N (in a config `seed: N`) is the seed of model, data and Lightning")
        super().unknown(name)

    def places(self) -> dict[str, str]:
        """Return the dotted names of all options by their last part; with those of all recipes and data modules."""
        places = super().places()
        for part, kind in (("model", LightningModule), ("data", LightningDataModule)):
            if part in places:  # not in the parser of a class
                for cls in subclasses(kind):
                    if cls.__module__.split(".")[0] in ("models", "data"):
                        places |= {name.split(".")[-1]: f"{part}.{name}" for name in arguments(cls)}
        return places


def subclasses(cls: type) -> Iterator[type]:
    """Yield all imported subclasses of a class."""
    for child in cls.__subclasses__():
        yield child
        yield from subclasses(child)


def arguments(cls: type) -> list[str]:
    """Return the dotted names of a class's arguments, those taken as **keywords and fields of dataclasses included."""
    parser = ArgumentParser(add_help=False)
    parser.add_class_arguments(cls, fail_untyped=False)
    return list(option_names(parser))


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
