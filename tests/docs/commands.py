"""Run the commands of README.md in a fresh clone, and draw the pictures that come from exports anew: `make docs`.

python -m tests.docs.commands [--install] [--only TEXT] [--keep DIR]

`$DATA` is a folder of drawn portraits, and where a command would train for hours it gets a budget of a few steps.
Commands that need a network, several GPUs or a name of the user's are listed as skipped. The clone is that of the last
commit. With --install the environment of the clone is made by pip, otherwise this interpreter's packages are used.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
PORTRAITS = {"train": 96, "valid": 32, "test": 64}
"""Split -> portraits in the folder that stands for $DATA."""

SKIPPED = {
    r"\bgit clone\b|\bpip install\b": "done before the others: the clone, and with --install its environment",
    r"\bwandb (login|sync)\b|[./_]download true|hf://|wandb:": "needs a network",
    r"\btorchrun\b|\bsrun\b|--trainer\.(devices|num_nodes) (?!1\b)": "needs several GPUs or processes",
    r"--explore\b|--device cuda": "needs a person, or a GPU",
    r"\bmake (test|docs)\b": "runs by itself",
    r"(?<![$\w])(NAME|FILE|DIR|PATH|CONFIG|CHECKPOINT|RATER|HOST|URL|USER|K|N)\b|\.\.\.": "has a placeholder",
}
"""Pattern of a command -> why it is not run."""

SMALLER = {
    r"train\.py fit": "--model.budget 64 --model.validate_every 32 --data.batch_size 8",
    r"train\.py fit.*vae_celeba64": "--model.prior_diffusion 64",
    r"train\.py (fit|test).*configs/demo_": "--data.count 128 --data.valid_count 64",
    r"train\.py test": "--evaluation.n 32 --evaluation.sheet 8",
}
"""Pattern of a command -> options that make it small."""

CONTROLS = {
    "mean": ("controls/gan32", "--row mean"),
    "sample": ("controls/gan32", "--row sample"),
    "L2 denoiser": ("controls/l2_32", "--row denoised"),
    "GAN on the mean": ("controls/mean_32", "--row denoised"),
    "VAE + GAN": ("controls/gan32", "--row denoised"),
    "plain GAN": ("controls/plain_gan32", "--row generated"),
}
"""Row of docs/controls.png -> export of pretrained/ and options of sample.py."""

BEST_OF = {f"best of {count}": ("gan_celeba64", f"--row denoised --best_of {count}") for count in (1, 4, 8)}
"""Row of docs/best_of.png, likewise."""


@dataclass(frozen=True)
class Clone:
    """A fresh clone, and the images that stand for $DATA."""

    folder: Path
    images: Path
    python: Path

    def run(self, command: str) -> subprocess.CompletedProcess:
        """Run a command line in the clone, with its own modules first."""
        path = f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"
        ours = {"PATH": path, "PYTHONPATH": str(self.folder), "WANDB_MODE": "disabled", "DATA": str(self.images)}
        shell = ["bash", "-c", command]
        return subprocess.run(shell, cwd=self.folder, env=os.environ | ours, capture_output=True, text=True)


def commands(page: str) -> list[str]:
    """Return the command lines of a page: blocks of `sh`, indented lines and code in a sentence or a table."""
    found, blocks = [], re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
    for language, block in blocks.findall(page):
        if language == "sh":
            found += re.sub(r"\\\n\s*", "", block).splitlines()
    rest = blocks.sub("", page)
    found += re.findall(r"^    ((?:python|make|torchrun) .*)$", rest, re.M)
    found += re.findall(r"`((?:python|make) [^`]+)`", rest)
    lines = [re.sub(r"(^|\s)#.*$", "", line).strip() for line in found]
    return list(dict.fromkeys(line for line in lines if line))


def skip_reason(command: str) -> str | None:
    """Return why a command is not run, or None."""
    return next((reason for pattern, reason in SKIPPED.items() if re.search(pattern, command)), None)


def smaller(command: str, clone: Clone) -> str:
    """Return the command with small budgets and the drawn portraits."""
    command = re.sub(r"path/to/\S+", str(clone.images), command)
    command = re.sub(r"(--images) (?!\$)\S+", rf"\1 {clone.images / 'valid'}", command)
    return " ".join([command, *(options for pattern, options in SMALLER.items() if re.search(pattern, command))])


def expanded(command: str, clone: Clone) -> list[str]:
    """Return the Python commands of a make target; any other command as it is."""
    if not command.startswith("make "):
        return [command]
    recipe = clone.run(f"make -n {command.removeprefix('make ')}").stdout
    return [f"python {line}" for line in re.findall(r"^\S*python ((?:train|sample)\.py .*)$", recipe, re.M)]


def make_clone(folder: Path, install: bool) -> Clone:
    """Clone the last commit of this repository and draw the portraits."""
    from degrain.data.portraits import PortraitSource

    clone = folder / "degrain"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    python = Path(sys.executable)
    if install:
        subprocess.run([sys.executable, "-m", "venv", str(clone / ".venv")], check=True)
        python = clone / ".venv/bin/python"
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "-e", str(clone)], check=True)
    source = PortraitSource(count=PORTRAITS["train"], valid_count=PORTRAITS["test"])
    for split, count in PORTRAITS.items():
        (folder / "images" / split).mkdir(parents=True)
        for item in source.items(split)[:count]:
            Image.fromarray(source.read(item, 64)["image"]).save(folder / f"images/{split}/{item}.png")
    return Clone(clone, folder / "images", python)


def run_page(clone: Clone, page: str, only: str) -> int:
    """Run the commands of a page, print a line for each, and return how many failed."""
    failed, assignments = 0, []
    for line in commands(page):
        if re.match(r"[A-Z_]+=", line):
            assignments.append(smaller(line, clone))
            continue
        if (reason := skip_reason(line)) or only not in line:
            print(f"skipped  {line}    ({reason or 'not asked for'})", flush=True)
            continue
        for command in (smaller(part, clone) for part in expanded(line, clone)):
            start = time.monotonic()
            result = clone.run("\n".join([*assignments, command]))
            failed += result.returncode != 0
            word = "FAILED " if result.returncode else "ok     "
            print(f"{word}  {command}    ({time.monotonic() - start:.0f} s)", flush=True)
            if result.returncode:
                print("\n".join(f"         {text}" for text in (result.stdout + result.stderr).splitlines()[-8:]))
    return failed


def draw_faces(clone: Clone) -> str:
    """Return the command's error, or an empty text; writes faces.png."""
    export = "pretrained/gan_celeba64.safetensors"
    return clone.run(f"python sample.py {export} --n 16 --seed 1 --out faces.png --overwrite true").stderr


def draw_rows(wanted: dict[str, tuple[str, str]], name: str, clone: Clone) -> str:
    """Return the commands' errors, or an empty text; writes a picture from rows of several calls."""
    import torch

    from degrain.models.inference.pictures import panel

    rows, file_of_rows = {}, clone.folder / "rows.npz"
    for row, (export, how) in wanted.items():
        command = f"python sample.py pretrained/{export}.safetensors --n 16 --seed 1 {how}"
        result = clone.run(f"{command} --out {file_of_rows.name} --overwrite true")
        if result.returncode:
            return result.stderr
        with np.load(file_of_rows) as file:
            rows[row] = torch.from_numpy(file["images"]).permute(0, 3, 1, 2) / 255
    panel(rows, scale=2).save(clone.folder / name)
    return ""


def draw_denoisings(clone: Clone) -> str:
    """Return the command's error, or an empty text; writes denoisings.png."""
    command = "python sample.py pretrained/gan_celeba64.safetensors --variations 8 --n 8 --out denoisings.png"
    return clone.run(command).stderr


def draw_architecture(clone: Clone) -> str:
    """Return the command's error, or an empty text; writes architecture.png."""
    return clone.run("python -m tests.docs.architecture --figure architecture.png").stderr


PICTURES = {
    "faces.png": draw_faces,
    "controls.png": partial(draw_rows, CONTROLS, "controls.png"),
    "best_of.png": partial(draw_rows, BEST_OF, "best_of.png"),
    "denoisings.png": draw_denoisings,
    "architecture.png": draw_architecture,
}
"""Picture of docs/ -> how it is drawn into the clone."""


def difference(one: Path, other: Path) -> str:
    """Return how two pictures differ, or an empty text where less than 1 % of the values do, by one or two levels."""
    a, b = (np.asarray(Image.open(path).convert("RGB")).astype(int) for path in (one, other))
    if a.shape != b.shape:
        return f"{a.shape[1]}x{a.shape[0]} pixels instead of {b.shape[1]}x{b.shape[0]}"
    apart = np.abs(a - b)
    if (apart > 0).mean() < 0.01 and apart.max() <= 2:
        return ""
    return f"{100 * (apart > 0).mean():.2f} % of the values differ, by at most {apart.max()} levels"


def compare_pictures(clone: Clone) -> int:
    """Draw the pictures of docs/ that come from exports anew, print a line for each, return how many differ."""
    differing = 0
    for name, draw in PICTURES.items():
        try:
            errors = draw(clone)
            wrong = difference(clone.folder / name, ROOT / "docs" / name)
        except OSError as error:
            wrong = f"not drawn: {error} {errors}"
        differing += wrong != ""
        print(f"{'DIFFERS' if wrong else 'equal  '}  docs/{name}{f'    ({wrong})' if wrong else ''}", flush=True)
    others = sorted(path.name for path in (ROOT / "docs").glob("*.png") if path.name not in PICTURES)
    print(f"not drawn, from photographs or a training (their pages have the commands): {', '.join(others)}")
    return differing


def main() -> int:
    """Return the exit code: 1 if a command failed or a picture differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--install", action="store_true", help="make the clone's environment by pip (a network)")
    parser.add_argument("--only", default="", help="run only commands that contain this text")
    parser.add_argument("--keep", type=Path, help="new folder for clone and images, which is kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        clone = make_clone(options.keep or Path(temporary), options.install)
        failed = run_page(clone, (clone.folder / "README.md").read_text(), options.only)
        differing = compare_pictures(clone)
    print(f"failed commands: {failed}; pictures that differ: {differing}")
    return int(failed + differing > 0)


if __name__ == "__main__":
    sys.exit(main())
