"""Pages lead somewhere, the README stays one page, and versions agree."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from degrain import __version__

ROOT = Path(__file__).parents[2]
PAGES = sorted(path for folder in (".", "docs", "pretrained") for path in (ROOT / folder).glob("*.md"))


def anchors(page: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page, re.M)
    return {re.sub(r"[^\w\s-]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page):
    broken = []
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or anchor and anchor not in anchors(target.read_text()):
            broken.append(link)
    assert not broken


def test_the_readme_is_150_lines_at_most():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_citation_is_of_the_package_s_version_and_has_the_fields_that_its_format_requires():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == __version__ and citation["license"] == project["license"]
    assert citation["cff-version"] == "1.2.0" and all(citation[name] for name in ("message", "title", "authors"))
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
