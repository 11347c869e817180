"""Speed of a training step by number of threads, as the machine is and beside busy processes.

    python -m tests.benchmarks.threads
    python -m tests.benchmarks.threads --threads "[1, 2, 4]" --busy "[0, 2, 4]" --rounds 3

The steps are those of the preset `small` at 64 pixels. Each round measures every case once, one after the other, in a
process of its own: images per second of the clock and of a core (user and system time of all threads). The last column
compares the core seconds of an image with those of one thread in the same round, without busy processes of ours. The
load says whether others were busy: a machine is quiet if it is below a half in the lines of 0 busy processes.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Literal

import pytorch_lightning as pl
import torch
from jsonargparse import auto_cli
from torch.utils.data import DataLoader

from degrain.models.core.threads import allowed_cores, free_cores, now
from tests.benchmarks.memory import bare_trainer, build, untrained_vae

BATCH, SIZE, WARM_UP = 16, 64, 4
STEPS = {"vae": 8, "gan": 8}  # timed; of stage 2 two have gradient penalties
SPIN = {"default": {}, "GOMP_SPINCOUNT=0": {"GOMP_SPINCOUNT": "0"}}


@dataclass(frozen=True)
class Case:
    """What is measured: a stage, its threads, how they wait, and busy processes beside it."""

    stage: str
    threads: int
    spin: str
    busy: int


class Timer(pl.Callback):
    """Takes the time on the clock and of the process after the first steps, and prints both at the end."""

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_) -> None:
        if module.images_seen == WARM_UP * BATCH:
            self.clock, self.core = time.perf_counter(), time.process_time()

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        print(time.perf_counter() - self.clock, time.process_time() - self.core)


def train(stage: str, threads: int, vae: str) -> None:
    """Train a stage for a few steps in this process."""
    torch.set_num_threads(threads)
    images = BATCH * (WARM_UP + STEPS[stage])
    module = build("small", stage, SIZE, images, vae)
    batch = {"image": torch.randint(256, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8)}
    trainer = bare_trainer(accelerator="cpu", precision="bf16-mixed", callbacks=[Timer()])
    trainer.fit(module, DataLoader([batch] * (WARM_UP + STEPS[stage]), batch_size=None))


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep so many cores busy."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def measured(case: Case, vae: str) -> tuple[float, float]:
    """Return the seconds of the clock and of all cores that an image takes, measured in a fresh process."""
    code = f"from tests.benchmarks.threads import train; train({case.stage!r}, {case.threads}, {vae!r})"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | SPIN[case.spin]
    with busy_processes(case.busy):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True
        )
    if done.returncode:
        sys.exit(done.stderr)
    clock, core = (float(seconds) / (BATCH * STEPS[case.stage]) for seconds in done.stdout.split()[-2:])
    return clock, core


def row(case: Case, found: dict[Case, list[tuple[float, float]]]) -> str:
    """Return a line of the table: medians over the rounds."""
    clock, core = (median(column) for column in zip(*found[case], strict=True))
    against = found.get(Case(case.stage, 1, "default", 0), found[case])
    ratio = median(here / one for (_, here), (_, one) in zip(found[case], against, strict=True))
    return (
        f"{case.stage:<7}{case.busy:>5}{case.threads:>8}  {case.spin:<18}{1 / clock:>9.1f}{1 / core:>10.1f}"
        f"  {ratio:.2f} of 1 thread, 0 busy"
    )


def main(
    threads: tuple[int, ...] = (1, 2),
    busy: tuple[int, ...] = (0, 2),
    stage: Literal["vae", "gan", "both"] = "both",
    rounds: int = 1,
) -> None:
    """Print the speed of a training step for each number of threads and of busy processes.

    Args:
        threads: numbers of threads.
        busy: numbers of busy processes that are started beside it.
        stage: which training step.
        rounds: how often each case is measured; printed are medians.
    """
    start = now()
    time.sleep(2)
    free = free_cores(start, now(), len(allowed_cores()))
    print(f"{free:.1f} of {len(allowed_cores())} cores free before, load {os.getloadavg()[0]:.1f}")
    stages = ("vae", "gan") if stage == "both" else (stage,)
    spins = {count: SPIN if count > 1 else ("default",) for count in threads}  # one thread waits for nobody
    cases = [Case(s, t, spin, b) for s in stages for b in busy for t in threads for spin in spins[t]]
    found: dict[Case, list[tuple[float, float]]] = {case: [] for case in cases}
    print(f"{'stage':<7}{'busy':>5}{'threads':>8}  {'waiting':<18}{'images/s':>9}{'of a core':>10}  core seconds")
    with tempfile.TemporaryDirectory() as folder:
        vae = untrained_vae("small", SIZE, folder)
        for number in range(rounds):
            for case in cases:
                found[case].append(measured(case, vae))
                if number == rounds - 1:
                    print(row(case, found), flush=True)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
