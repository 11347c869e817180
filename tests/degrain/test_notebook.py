"""The notebook runs, and its outputs are those of its cells, small enough to be committed."""

import json
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parent.parent.parent / "docs"
NOTEBOOK = DOCS / "degrain.ipynb"


@pytest.fixture(scope="module")
def code() -> list[dict[str, Any]]:
    """Return the notebook's cells of code."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_its_cells_run(code, monkeypatch, capsys):
    monkeypatch.chdir(DOCS)
    names: dict[str, Any] = {}
    for cell in code:
        exec("".join(cell["source"]), names)
        printed = ["".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream"]
        assert capsys.readouterr().out == "".join(printed)


def test_it_was_run_from_top_to_bottom_and_is_small(code):
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"execute_result", "stream"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    assert NOTEBOOK.stat().st_size < 300_000
