"""Errors of the scripts: one line on standard error and exit code 2 for what the user can correct, no traceback.

jsonargparse keeps the cause of an error as its `__cause__`, which is used here wherever it says enough. The name of an
unknown option and the alternatives of a union stand in its messages alone: UNKNOWN and `plain` read them there.
"""

import re
import signal
import sys
import threading
from argparse import _SubParsersAction
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from degrain.models.core import yaml_text  # noqa: F401 (sets how configs are read and written)
from degrain.models.core.errors import first_line
from degrain.models.core.words import BY_WORD

UNKNOWN = re.compile(
    r"(?:Group '(?P<group>[^']+)' does not accept o|o|O)ption '(?P<option>[^']+)'"
    r"|unrecognized arguments: -*(?P<argument>[^\s=]+)"
)

NO_SUBCLASS = ": give it `class_path` and, below `init_args`, its parameters, and nothing else"

NO_TEXT = re.compile(r"Expected a <class 'str'>(?: - |\. Got value: (?![\[{]))")
QUOTE = "; it is to be text, and unquoted it is a number or a switch: put it in quotes in the config"

LITERAL = re.compile(r"a typing\.Literal\[(.*?)\](?=\. Got)")

NO_MAPPING = "the file is no mapping of names to values; take one of configs/ as an example"


def fail(message: str) -> NoReturn:
    """Print an error in one line and exit with code 2."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def fail_if_known(error: BaseException, kinds: tuple[type[Exception], ...]) -> None:
    """Fail if the user can correct the error; return otherwise.

    Args:
        error: raised by a command.
        kinds: classes of errors whose message is one line that says what to do.
    """
    if known := cause(error, kinds):
        fail(str(known))
    if known := cause(error, (OSError,)):
        place = f"{known.filename}: " if known.filename else ""
        fail(f"{place}{known.strerror or known}; check that it is there, its permissions and the space on the disk")
    if known := cause(error, (RuntimeError,)):
        if any(words in str(known) for words in ("out of memory", "allocate memory")):
            fail(f"out of memory ({first_line(known)}); take a smaller network, image or batch size")


def cause(error: BaseException | None, kinds: tuple[type[Exception], ...]) -> Any:
    """Return the first error of these classes: itself or one that it was raised from; None if there is none."""
    while error is not None and not isinstance(error, kinds):
        error = error.__cause__
    return error


def tolerant_output() -> None:
    """Print what the terminal cannot show, such as a name in ASCII alone, as escapes instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def quiet_ends() -> Iterator[None]:
    """End at Ctrl-C, SIGTERM or SIGHUP with exit code 128 + its number, after temporary files are removed."""
    numbers = (signal.SIGTERM, signal.SIGHUP) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, lambda number, _: sys.exit(128 + number)) for number in numbers}
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class OneLineParser(ArgumentParser):
    """Parser that reports an error in one line, and the nearest right name for a wrong one."""

    def parse_path(self, path: Any, *args: Any, **options: Any) -> Namespace:
        """Parse a config file; fail if it is no text."""
        try:
            return super().parse_path(path, *args, **options)
        except UnicodeDecodeError:
            fail(f"config: {path} is no text; give a YAML file, such as those in configs/")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if found := UNKNOWN.search(message):
            self.unknown(".".join(name for name in found.groups() if name))
        if cause(ex, (UnicodeEncodeError,)):  # a config is UTF-8, which such a path is not
            fail("config: a path is not UTF-8; give a link to it that has another name")
        absent = cause(ex, (AttributeError,))
        if absent and absent.name:  # in a module: the last part of a class path
            near = nearest(absent.name, {name: name for name in dir(absent.obj)})
            fail(f"config: unknown name `{absent.name}`{near or f' in `{absent.obj.__name__}`'}")
        fail(f"config: {plain(message, ex).replace('Parser key', 'value of')}")

    def unknown(self, name: str) -> NoReturn:
        """Fail for an unknown option, by its dotted name; suggest the nearest name there, or else elsewhere."""
        options, prefix = list(option_names(self)), ""
        for part in name.split("."):
            siblings = {option.removeprefix(prefix).split(".")[0] for option in options if option.startswith(prefix)}
            if part not in siblings:
                break
            prefix += f"{part}."
        words, word = self.words(prefix), part.lower().replace("-", "_")
        if word in BY_WORD:
            near = f"; did you mean `{words[word]}`?" if word in words else ""
        else:
            ours = nearest(part, {sibling: sibling for sibling in siblings})
            near = ours or nearest(word, words, 0.85) or nearest(part, self.places())
        fail(f"config: unknown name `{part}`{near or '; --help lists all names'}")

    def places(self) -> dict[str, str]:
        """Return the dotted names of all options by their last part."""
        return {option.split(".")[-1]: option for option in option_names(self)}

    def all_places(self) -> set[str]:
        """Return the dotted names of all options that the command has."""
        return set(option_names(self))

    def words(self, prefix: str) -> dict[str, str]:
        """Return the places of options by other programs' names for them, from a prefix if they lie below it."""
        there, own = self.all_places(), set(option_names(self))
        found: dict[str, str] = {}
        for word, places in BY_WORD.items():
            for place in places:
                if place in there:
                    inner = place.partition(".")[2]  # in the parser of a class the names have no `model` before them
                    found.setdefault(word, inner if inner in own and inner.startswith(prefix) else place)
        return {word: place.removeprefix(prefix) for word, place in found.items()}


def option_names(parser: ArgumentParser) -> Iterator[str]:
    """Yield the dotted names of all options of a parser and its subcommands."""
    for action in parser._actions:
        yield action.dest
        if isinstance(action, _SubParsersAction):
            for subparser in action.choices.values():
                yield from option_names(subparser)


def nearest(wrong: str, places: dict[str, str], least: float = 0.6) -> str:
    """Return "; did you mean `PLACE`?" for the nearest name in a dictionary name -> place, or "" if all are far.

    Args:
        wrong: the name that is none.
        places: the right names.
        least: least similarity, from 0 to 1; see difflib.
    """
    near = [name for name in get_close_matches(wrong, places, cutoff=least) if places[name] != wrong]
    return f"; did you mean `{places[near[0]]}`?" if near else ""


def plain(message: str, error: Exception | None) -> str:
    """Return a message of jsonargparse without the value as a whole, which may be a long mapping, and without types.

    Args:
        message: the message.
        error: its error, if there is one.
    """
    if "Unexpected config:" in message:
        return NO_MAPPING
    place, union, rest = message.partition("Does not validate against any of the Union subtypes")
    if union:
        alternatives = rest.partition("Errors:")[2].rpartition("Given value type:")[0]
        alternatives = alternatives.replace("- Expected a <class 'NoneType'>", "").strip().removeprefix("- ")
        while error.__cause__ is not None and isinstance(error.__cause__, TypeError | ValueError):
            error = error.__cause__  # of the first alternative: it repeats the value
        message = place.partition("- Expected a path but")[0] + (alternatives if "- " in alternatives else str(error))
    subject, no_subclass, _ = message.partition("Subclass types expect one of")
    if no_subclass:
        return subject.strip() + NO_SUBCLASS
    message = LITERAL.sub(lambda names: "one of " + names[1].replace("'", ""), message)
    return message + QUOTE if NO_TEXT.search(message) else message
