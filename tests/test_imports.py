"""Imports go one way: one table says which folder may import which, another who knows Lightning and wandb."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "models/core": set(),
    "models/vae": {"models/core"},
    "models/gan": {"models/core", "models/vae"},
    "models/inference": {"models/core", "models/vae", "models/gan"},
    "models/evaluation": {"models/core", "models/vae", "models/gan", "models/inference"},
    "models/training": {"models/core", "models/vae", "models/gan", "models/inference", "models/evaluation"},
    "models/toys": {
        *("models/core", "models/vae", "models/gan", "models/inference", "models/evaluation", "models/training"),
    },
    "data": {"models/core/errors.py", "models/core/files.py"},
    "models": set(),
    "degrain": {"models/core", "models/vae", "models/inference", "data/decode.py", "data/files.py"},
    ".": {"data", "models/core", "models/vae", "models/inference", "models/training"},
}
"""Folder -> folders and files that it may import, beside itself. Nobody imports the toys; `.` is the two scripts."""

LIBRARIES = {
    "pytorch_lightning": {"models/training", "models/toys", "data", "train.py"},
    "lightning": set(),
    "lightning_fabric": set(),
    "wandb": {"models/training/tracking.py", "models/inference/artifact.py"},
    "matplotlib": {"models/inference/pictures.py", "models/evaluation", "models/training", "models/toys"},
}
"""Library -> folders and files that may import it."""

PLACES = [
    ROOT.glob("*.py"),
    (ROOT / "models").rglob("*.py"),
    (ROOT / "data").rglob("*.py"),
    (ROOT / "degrain").rglob("*.py"),
]
FILES = sorted(path.relative_to(ROOT) for place in PLACES for path in place)


def imports(path: Path) -> set[str]:
    """Every module that a file imports anywhere, as dotted names; `from a import b` counts as a and as a.b."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(path: Path) -> set[Path]:
    """The files of this repository that a file imports."""
    bare = {name for name in imports(path) if name.split(".")[0] in ("models", "data")}
    assert not bare, f"{path}: {bare}: by its name in the package, degrain.{min(bare)}"
    paths = {Path(*name.removeprefix("degrain.").split(".")) for name in imports(path)}
    files = {p.with_suffix(".py") for p in paths if (ROOT / p).with_suffix(".py").is_file()}
    return files | {p / "__init__.py" for p in paths if (ROOT / p / "__init__.py").is_file() and p != Path("models")}


def lies_in(path: Path, places: set[str]) -> bool:
    return str(path) in places or str(path.parent) in places


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_imports_what_the_table_allows_its_folder(path):
    folder = str(path.parent)
    assert folder in ALLOWED, f"{folder}: a new folder; say in ALLOWED what it may import"
    forbidden = {str(other) for other in ours(path) if not lies_in(other, ALLOWED[folder] | {folder})}
    assert not forbidden, f"{path} imports {forbidden}"


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_is_known_where_the_table_says(library):
    knows = {path for path in FILES if any(name.split(".")[0] == library for name in imports(path))}
    assert not {str(path) for path in knows if not lies_in(path, LIBRARIES[library])}


def test_the_table_names_no_folder_that_is_gone():
    folders = {str(path.parent) for path in FILES}
    assert set(ALLOWED) == folders
    places = {place for places in [*ALLOWED.values(), *LIBRARIES.values()] for place in places}
    assert all((ROOT / place).exists() for place in places)
