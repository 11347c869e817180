"""Time the training steps of both stages in this work tree against those of another one.

    git worktree add DIR REVISION
    python -m tests.benchmarks.steps --baseline DIR               # on drawn portraits
    python -m tests.benchmarks.steps --baseline DIR --root PHOTOS

Both trees run `train.py fit` with the presets `small` (64 pixels, batch 16, bf16-mixed, one thread) and take turns,
block by block; the other one waits. A block holds as many steps with gradient penalties and with the spread term as any
other one. Counted are core seconds of whole steps, with loading, logging and the progress bar, so that busy neighbours
count little. Each tree has its own configs and pretrained VAE: where these differ, times do, too. A ratio is the
baseline's time of a block divided by that of this tree's block beside it.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, Literal

import pytorch_lightning as pl
from jsonargparse import auto_cli

ROOT = Path(__file__).parents[2]
BATCH = 16  # images, of both configs
BLOCK = {"vae": 16, "gan": 8}  # steps
VAE = "pretrained/vae_celeba64.safetensors"  # of each tree


class Pace(pl.Callback):
    """Let a run make a block of steps whenever it is asked to, and answer with the core seconds that it took.

    Args:
        connection: file number of a socket.
        block: steps.
    """

    def __init__(self, connection: int, block: int) -> None:
        self.socket, self.block, self.steps, self.start = socket.socket(fileno=connection), block, 0, 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        if self.steps % self.block == 0:
            if self.steps:
                self.socket.sendall(f"{time.process_time() - self.start:.6f}\n".encode())
            if not self.socket.recv(1):
                raise KeyboardInterrupt  # who asked is gone
            self.start = time.process_time()
        self.steps += 1


class Run:
    """A run of a stage in a work tree, which makes a block of steps at each call.

    Args:
        tree: root of the work tree.
        stage: `vae` or `gan`.
        folder: where the run keeps its files.
        root: folder of photographs; None for drawn portraits.
        options: of train.py, after the others.
        pace: class path of the callback.
        block: steps of a block; by default BLOCK's.
    """

    def __init__(
        self,
        tree: Path,
        stage: Literal["vae", "gan"],
        folder: Path,
        root: str | None,
        options: tuple[str, ...] = (),
        pace: str = "steps.Pace",
        block: int | None = None,
    ) -> None:
        folder.mkdir(parents=True)
        self.log = folder / "log"
        ours, theirs = socket.socketpair()
        pace = {"class_path": pace, "init_args": {"connection": theirs.fileno(), "block": block or BLOCK[stage]}}
        command = [sys.executable, "train.py", "fit", "-c", f"configs/{stage}_celeba64.yaml", "--wandb", "off"]
        command += ["--runs", str(folder / "runs"), "--trainer.callbacks", json.dumps([pace])]
        command += ["--trainer.accelerator", "cpu", "--data.cache", str(folder / "cache")]
        if root is None:
            package = "degrain.data" if (tree / "degrain").is_dir() else "data"  # a tree from before the package
            command += ["--data", f"{package}.datamodule.Portraits"]
            command += ["--data.size", "64", "--data.batch_size", str(BATCH)]
            command += ["--data.count", "512", "--data.valid_count", "16"]
        else:
            command += ["--data.root", str(Path(root).absolute())]
        if stage == "gan":
            command += ["--model.vae", VAE]
        command += options
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                command, cwd=tree, env=environment, stdout=log, stderr=log, pass_fds=[theirs.fileno()]
            )
        theirs.close()
        self.socket = ours

    def block(self) -> float:
        """Make a block of steps and return its core seconds."""
        return self.costs()[0]

    def costs(self) -> list[float]:
        """Make a block of steps and return what the callback says of it."""
        answer = ""
        with suppress(ConnectionError):
            self.socket.sendall(b"1")
            answer = self.socket.makefile().readline()
        if not answer:
            sys.exit(f"error: {self.process.args[3:5]} ended early: {self.log.read_text()[-2000:]}")
        return [float(cost) for cost in answer.split()]

    def close(self) -> None:
        """End the run."""
        self.process.kill()
        self.process.wait()
        self.socket.close()


def blocks(trees: list[Path], stage: Literal["vae", "gan"], count: int, root: str | None) -> list[list[float]]:
    """Return the core seconds of so many blocks of each tree; first blocks are not counted."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [Run(tree, stage, Path(folder, str(i)), root) for i, tree in enumerate(trees)]
        try:
            for run in runs:
                run.block()
            pairs = []
            for number in range(count):  # each tree is first as often as second
                order = runs if number % 2 else runs[::-1]
                taken = {run: run.block() for run in order}
                pairs.append([taken[run] for run in runs])
        finally:
            for run in runs:
                run.close()
    return [list(column) for column in zip(*pairs, strict=True)]


def main(
    baseline: Path, root: str | None = None, pairs: int = 8, stage: Literal["vae", "gan", "both"] = "both"
) -> None:
    """Print how many times as fast as a baseline this work tree makes its training steps.

    Args:
        baseline: root of another work tree; this one's own says how much the ratios scatter.
        root: folder of photographs to train on; drawn portraits without it.
        pairs: blocks of each tree.
        stage: which training step.
    """
    if not (baseline / "train.py").is_file():
        sys.exit(f"error: --baseline {baseline}: holds no train.py; give the root of a work tree")
    if pairs < 1:
        sys.exit(f"error: --pairs {pairs}: give at least 1")
    print(f"{'':<8}{'this tree':>14}{'baseline':>14}{'ratio: median':>16}{'min':>8}{'max':>8}")
    for name in ("vae", "gan") if stage == "both" else (stage,):
        mine, theirs = blocks([ROOT, baseline.absolute()], name, pairs, root)
        ratios = [other / one for one, other in zip(mine, theirs, strict=True)]
        speeds = "".join(f"{BLOCK[name] * BATCH / median(times):>9.1f} im/s" for times in (mine, theirs))
        print(f"{name:<8}{speeds}{median(ratios):>16.3f}{min(ratios):>8.3f}{max(ratios):>8.3f}", flush=True)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
