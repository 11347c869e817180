"""YAML of configs in which text stays text: `wandb: off` is the word off, `name: 007` keeps its zeros.

YAML 1.1, which jsonargparse reads, takes off, 007, 0x10, 1_000 and 12:30 for switches and numbers. Here a plain value
is a number, a switch or null only as JSON would write it; any other stays text until an option that is a number or a
switch takes it, as on the command line. What is written is quoted where a reader would take it for something else.
"""

import re
from typing import Any

import yaml
from jsonargparse import get_loader, set_dumper, set_loader

read_yaml_1_1 = get_loader("yaml")

FORMS = {
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"-?(?:0|[1-9][0-9]*)",
    "float": r"-?(?:0|[1-9][0-9]*)\.[0-9]+(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    "null": r"~|null|Null|NULL|",
    "merge": r"<<",
}
"""Type -> the forms of plain values that are of it."""


class Loader(yaml.SafeLoader):
    """Reads a plain value of no form in FORMS as text."""

    yaml_implicit_resolvers: dict = {}  # of this class alone


class Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 would read as something else."""


def represent_text(dumper: Dumper, text: str) -> yaml.ScalarNode:
    """Return the node of a text; the dumper itself quotes what is no plain value at all."""
    try:
        plain = read_yaml_1_1(text) == text
    except (yaml.YAMLError, UnicodeError):
        plain = True
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else "'")


for name, forms in FORMS.items():
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(f"^(?:{forms})$"), None)
Dumper.add_representer(str, represent_text)


def load(text: str) -> Any:
    """Read a config or a value of the command line."""
    value = read_yaml_1_1(text)
    return yaml.load(text, Loader) if isinstance(value, dict | list) else value


def dump(values: Any) -> str:
    """Write a config."""
    return yaml.dump(values, Dumper=Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)


set_loader("yaml", load, (yaml.YAMLError,))
set_dumper("yaml", dump)
