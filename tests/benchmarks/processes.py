"""Time training on two processes (gloo, one thread each) against one, on a machine with nobody else on it.

    python -m tests.benchmarks.processes                     # stage 2 of `small` on drawn portraits
    python -m tests.benchmarks.processes --root PHOTOS --pairs 8
    python -m tests.benchmarks.processes --block 2 --pairs 1 # tries it

All runs are `train.py fit` and take turns, block by block; the others wait. A block of 8 steps holds two with gradient
penalties and one with the spread term. Two processes train with the batch of one, divided between them (strong
scaling), and with a batch of the same size for each (weak scaling). Counted are seconds of the clock: two processes
need two free cores, so the load is printed. A ratio is images/s by those of one process in the block beside it. The
share in all-reduce is that of the first process, and holds its waiting for the other one.
"""

import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from jsonargparse import auto_cli

from tests.benchmarks.steps import BATCH, ROOT, Run

CASES = {
    "1 process": (1, BATCH),
    "2 processes, same global batch": (2, BATCH),
    "2 processes, same batch each": (2, 2 * BATCH),
}
"""Row -> processes and images of a step over all of them."""


class Together(pl.Callback):
    """Let all processes of a run make a block of steps when the first one is asked to.

    The first one answers with the seconds of the clock, and with those that it spent in averaging over processes.

    Args:
        connection: file number of a socket, which the first process has alone.
        block: steps.
    """

    def __init__(self, connection: int, block: int) -> None:
        self.connection, self.block, self.steps, self.reducing = connection, block, 0, 0.0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.socket = socket.socket(fileno=self.connection)
        torch.distributed.all_reduce = self.timed(torch.distributed.all_reduce)

    def timed(self, reduce: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose time is counted."""

        def function(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            reduced = reduce(*args, **options)
            self.reducing += time.perf_counter() - start
            return reduced

        return function

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.steps % self.block == 0:
            asked = self.turn() if trainer.is_global_zero else None
            if not trainer.strategy.broadcast(asked):  # the others wait here
                raise KeyboardInterrupt
            self.start, self.reducing = time.perf_counter(), 0.0
        self.steps += 1

    def turn(self) -> bool:
        """Answer for the block that has ended, and wait for the next one; return whether there is one."""
        if self.steps:
            self.socket.sendall(f"{time.perf_counter() - self.start:.6f} {self.reducing:.6f}\n".encode())
        return bool(self.socket.recv(1))


class Group(Run):
    """A run on some processes; see Run.

    Args:
        processes: how many.
        batch: images of a step, of all of them.
        block: steps of a block.
        others: stage, folder and root of the run.
    """

    def __init__(self, processes: int, batch: int, block: int, *others: Any) -> None:
        options = ("--trainer.devices", str(processes), "--data.batch_size", str(batch))
        super().__init__(ROOT, *others, options, "tests.benchmarks.processes.Together", block)

    def close(self) -> None:
        """End the run: its first process says so to the others."""
        self.socket.close()
        try:
            self.process.wait(20)
        finally:
            self.process.kill()


def main(root: str | None = None, pairs: int = 6, block: int = 8, stage: Literal["vae", "gan"] = "gan") -> None:
    """Print images per second of one process and of two.

    Args:
        root: folder of photographs to train on; drawn portraits without it.
        pairs: blocks of each run.
        block: steps of a block.
        stage: which training step.
    """
    if pairs < 1 or block < 1:
        sys.exit(f"error: --pairs {pairs}, --block {block}: give at least 1")
    print(f"{stage}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores before")
    costs: dict[str, list[list[float]]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as folder:
        runs: dict[str, Group] = {}
        try:
            for name, (processes, batch) in CASES.items():
                runs[name] = Group(processes, batch, block, stage, Path(folder, str(len(runs))), root)
                runs[name].costs()  # to warm up
            for number in range(pairs):  # each run comes as often early as late
                for name in list(CASES)[:: 1 if number % 2 else -1]:
                    costs[name].append(runs[name].costs())
        finally:
            for run in runs.values():
                run.close()
    print(f"{'':<34}{'images/s':>10}{'ratio: median':>16}{'min':>8}{'max':>8}{'in all-reduce':>15}")
    first = next(iter(CASES))
    for name, found in costs.items():
        speeds, ones = ([CASES[n][1] * block / s for s, _ in costs[n]] for n in (name, first))
        ratios = [one / other for one, other in zip(speeds, ones, strict=True)]
        share = median(reducing / seconds for seconds, reducing in found)
        print(
            f"{name:<34}{median(speeds):>10.1f}{median(ratios):>16.3f}{min(ratios):>8.3f}{max(ratios):>8.3f}{share:>15.1%}"
        )
    print(f"load {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
