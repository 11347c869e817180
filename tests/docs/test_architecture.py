"""The tables of docs/architecture.md are those of the networks."""

from pathlib import Path

from tests.docs.architecture import tables


def test_the_page_holds_the_tables_of_the_networks_as_they_are():
    page = (Path(__file__).parents[2] / "docs/architecture.md").read_text()
    stale = [name for name, table in tables().items() if table not in page]
    assert not stale, "print the tables anew: python -m tests.docs.architecture"
