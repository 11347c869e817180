"""Imports go one way: mathematics <- networks <- Lightning modules <- scripts; data and models do not meet."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NETWORKS = (
    "denoiser",
    "digit_classifier",
    "discriminator",
    "ensemble",
    "export",
    "features",
    "generator",
    "layers",
    "pictures",
    "pipeline",
    "pixels",
    "vae",
)
RECIPES = ("callbacks", "console", "evaluator", "tracking")  # and the package models.modules
LIGHTNING = ("pytorch_lightning", "lightning", "lightning_fabric")
SOURCES = sorted(path.relative_to(ROOT) for top in ("models", "data") for path in (ROOT / top).rglob("*.py"))
# A new file of models/ counts as mathematics, which may import least, until it is named above.
MATHEMATICS = sorted({path.stem for path in SOURCES if path.parent == Path("models")} - {*NETWORKS, *RECIPES})
SCRIPTS = sorted(path.relative_to(ROOT) for path in ROOT.glob("*.py"))


def imports(path: Path) -> set[str]:
    """Every module that a file imports anywhere, as dotted names; `from a import b` counts as a and as a.b."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} - {"models"}  # `from models import x` imports models.x
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(names: set[str], *packages: str) -> set[str]:
    """Those of the names that lie in one of the packages."""
    return {name for name in names if any(name == p or name.startswith(p + ".") for p in packages)}


@pytest.mark.parametrize("name", MATHEMATICS)
def test_mathematics_knows_neither_networks_nor_lightning_nor_wandb(name):
    names = imports(Path("models", f"{name}.py"))
    assert not within(names, *LIGHTNING, "wandb")
    assert within(names, "models") <= within(names, *(f"models.{other}" for other in MATHEMATICS))


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_know_neither_lightning_nor_wandb(name):
    names = imports(Path("models", f"{name}.py"))
    assert not within(names, *LIGHTNING, "wandb")
    assert within(names, "models") <= within(names, *(f"models.{other}" for other in (*MATHEMATICS, *NETWORKS)))


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_models_and_data_do_not_meet_and_neither_imports_scripts_or_tests(path):
    other = "data" if path.parts[0] == "models" else "models"
    assert not within(imports(path), other, "tests", *(script.stem for script in SCRIPTS))


def test_only_tracking_knows_wandb():
    assert {str(path) for path in SOURCES + SCRIPTS if within(imports(path), "wandb")} == {"models/tracking.py"}
