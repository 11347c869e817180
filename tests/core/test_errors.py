"""Test how another exception is quoted in one line."""

import pytest

from models.core.errors import first_line


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
