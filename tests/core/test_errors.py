"""Test how another exception is quoted in one line, and how lines are printed."""

import io
import sys

import pytest

from degrain.models.core.command_line import fail, tolerant_output
from degrain.models.core.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n one\n"), "one"),
        (KeyError(), "KeyError"),
        (OSError(" "), "OSError"),
    ],
)
def test_first_line_is_never_empty(error, line):
    assert first_line(error) == line


def test_a_name_needs_no_terminal_that_can_show_it(monkeypatch):
    written = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(written, "ascii", write_through=True))
    tolerant_output()
    print("run: é")
    with pytest.raises(SystemExit):
        fail("é: no such file")
    assert written.getvalue() == rb"run: \xe9" + b"\nerror: " + rb"\xe9: no such file" + b"\n"
