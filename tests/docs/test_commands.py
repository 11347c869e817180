"""Which commands `make docs` takes from a page, and which it does not run."""

from pathlib import Path

from PIL import Image

from tests.docs.commands import BEST_OF, CONTROLS, Clone, commands, difference, skip_reason, smaller

ROOT = Path(__file__).parents[2]
PAGE = """
`python train.py fit --help` in a sentence, `make demo`, `--option`.

```sh
DATA=path/to/images    # yours
python train.py fit -c a.yaml \\
  --name b
```

    python train.py test -c c.yaml

```python
import degrain
```
"""


def test_commands_are_those_of_blocks_indented_lines_and_code():
    block = ["DATA=path/to/images", "python train.py fit -c a.yaml --name b"]
    rest = ["python train.py test -c c.yaml", "python train.py fit --help", "make demo"]
    assert commands(PAGE) == block + rest


def test_what_needs_a_network_several_gpus_or_a_name_is_skipped():
    for command in ("wandb login", "torchrun train.py", "python train.py fit --trainer.devices k", "python a.py FILE"):
        assert skip_reason(command)
    assert skip_reason("python train.py fit -c configs/demo_vae.yaml --data.root $DATA --trainer.devices 1") is None


def test_a_training_gets_a_budget_and_the_portraits():
    clone = Clone(Path("clone"), Path("portraits"), Path("python"))
    assert smaller("DATA=path/to/images", clone) == "DATA=portraits"
    assert "--model.budget 64" in smaller("python train.py fit -c a.yaml", clone)
    assert "--data.count" in smaller("python train.py fit -c configs/demo_vae.yaml", clone)
    assert smaller("python sample.py a.ckpt", clone) == "python sample.py a.ckpt"


def test_the_readme_has_commands_that_run_and_exports_of_the_pictures_are_there():
    assert sum(skip_reason(command) is None for command in commands((ROOT / "README.md").read_text())) >= 6
    assert all((ROOT / f"pretrained/{export}.safetensors").is_file() for export, _ in (CONTROLS | BEST_OF).values())


def test_pictures_differ_by_size_or_by_more_than_rounding(tmp_path):
    for name, size, level in (("a", 20, 0), ("b", 20, 9), ("c", 10, 0)):
        Image.new("RGB", (size, size), (level,) * 3).save(tmp_path / f"{name}.png")
    assert difference(tmp_path / "a.png", tmp_path / "a.png") == ""
    assert "100.00 % of the values differ, by at most 9" in difference(tmp_path / "a.png", tmp_path / "b.png")
    assert "10x10 pixels instead of 20x20" in difference(tmp_path / "c.png", tmp_path / "a.png")
