"""What the commands import before they answer: libraries that take long are imported where they are needed."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OPTIONAL = ("sklearn", "pandas", "zuko", "wandb", "timm", "mlxtend")
"""Slow libraries that some runs need."""

LIGHTNING = ("pytorch_lightning", "torchmetrics", "torchvision", "matplotlib", "scipy")
"""Lightning, and what it imports itself."""

FIT = "main(['fit', '-c', 'configs/demo_vae.yaml', '--model.bugdet', '1'])"
COMMANDS = {
    "sample": ("main(['missing.ckpt'])", (*OPTIONAL, *LIGHTNING)),
    "train": (FIT, OPTIONAL),
}


@pytest.mark.parametrize("script", COMMANDS)
def test_a_refused_command_imports_no_slow_library(script):
    call, slow = COMMANDS[script]
    code = f"""
import sys, {script}
try:
    {script}.{call}
except SystemExit as end:
    print(end.code, *{{name.split(".")[0] for name in sys.modules}})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    code, *imported = done.stdout.split()
    assert code == "2" and "torch" in imported, done.stderr
    found = sorted(set(slow) & set(imported))
    assert not found, found
