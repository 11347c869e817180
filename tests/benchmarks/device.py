"""Measure training on this machine's GPU, or on one core without one: both presets and stages, compiled and not.

    python -m tests.benchmarks.device --out device.jsonl                # at most 9 minutes, no network, drawn portraits
    python -m tests.benchmarks.device --root PHOTOS --minutes 20
    python -m tests.benchmarks.device --batch_size 256                  # of every case, for the config's own
    OMP_NUM_THREADS=1 python -m tests.benchmarks.device --preset small --batch_size 2 --seconds 1    # tries it on a CPU

Each case is a `train.py fit` of 64 pixels in a process of its own, with loading, logging and bar. The learning rate is
next to 0, so that no weights that are new diverge; a step costs the same. Printed, and written as it goes:

- images/s, ms a step: of whole periods of 8 steps (penalties every 4th, spread term every 8th), after 8 to warm up;
- `x plain`: images/s by those of the same case in this run that is not compiled;
- TFLOP a step: of matrix products and convolutions, by the formulas of torch.utils.flop_counter, not compiled;
- of the ceiling: those TFLOP by the time of a step, by the TFLOP/s of the fastest product of large bf16 matrices here;
- busy: time in kernels and copies (torch.profiler) by the time of a step that is not profiled;
- reads: of the device's values by the host, in a step that does not log, and in one that does (training/reads.py);
- syncs: of the host with the stream, a step, by the profiler, logged steps included.

On a CPU times are core seconds of one thread, a kernel is an operator, and reads wait for nothing.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any, Literal

from jsonargparse import auto_cli

import train
from tests.benchmarks.memory import PRESETS, STAGES, command, resolved, untrained_vae

ROOT = Path(__file__).parents[2]
SIZE, IMAGES = 64, 1_024  # pixels; portraits to train on
NEVER = str(10**9)  # images or minutes
LEAST = 15  # seconds left in which a case can say something
NOT_BUILT = "train.py has no option --compile: not built"


@dataclass
class Case:
    """A row of the table.

    Attributes:
        found: what was measured of it.
        note: why something is missing.
    """

    preset: str
    stage: str
    compiled: bool
    batch: int
    found: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def name(self) -> str:
        return f"{self.preset}, stage {1 + STAGES.index(self.stage)}{', compiled' * self.compiled}"


def arguments(case: Case, folder: str, root: str | None, seconds: float, cpu: bool, out: str) -> list[str]:
    """Return the command of a case; files are kept in `folder`, results in `out`."""
    counts = {"out": out, "seconds": seconds, "counts": not case.compiled}
    measure = {"class_path": "tests.benchmarks.device_run.Measure", "init_args": counts}
    parts = [sys.executable, "-W", "ignore", "train.py", *command(case.preset, case.stage), "--wandb", "off"]
    if root is None:
        data = resolved(case.preset, case.stage)["data"]["init_args"]
        parts += ["--data", "degrain.data.datamodule.Portraits", "--data.size", str(SIZE)]
        parts += ["--data.count", str(IMAGES), "--data.valid_count", "16"]
        parts += ["--data.num_workers", str(0 if cpu else data["num_workers"])]
    else:
        parts += ["--data.root", root] + ["--data.num_workers", "0"] * cpu
    parts += ["--data.batch_size", str(case.batch), "--data.cache", f"{folder}/cache", "--runs", f"{folder}/runs"]
    parts += ["--name", case.name.replace(", ", "_").replace(" ", ""), "--checkpoint_minutes", NEVER]
    parts += ["--trainer.callbacks", json.dumps([measure]), "--trainer.limit_val_batches", "0"]
    parts += ["--model.budget", NEVER, "--model.validate_every", NEVER, "--model.learning_rate", "1e-7"]
    if case.stage == "vae":
        parts += ["--model.prior_images", "16", "--model.prior_components", "0"]
    else:
        parts += ["--model.vae", f"{folder}/{case.preset}/vae.ckpt"]
    parts += ["--compile", "true"] * case.compiled
    return parts + ["--trainer.accelerator", "cpu", "--threads", "1"] * cpu


def run(parts: list[str], log: Path, seconds: float) -> str:
    """Run a command in a session of its own; return why it failed in a line, or nothing."""
    with open(log, "w") as file:
        process = subprocess.Popen(parts, cwd=ROOT, stdout=file, stderr=file, start_new_session=True)
        try:
            code = process.wait(max(seconds, 1))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(ProcessLookupError):  # the workers that load its batches, too
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    text = log.read_text(errors="replace")
    if code is None:
        return f"stopped after {seconds:.0f} s"
    if code and ("out of memory" in text.lower() or "can't allocate memory" in text):
        return "does not fit in memory"
    if code == -signal.SIGKILL:
        return "killed by the system, as when memory runs out"
    lines = [line for line in text.splitlines() if line.strip()]
    return f"failed: {lines[-1] if lines else code}"[:300] if code else ""


def read(path: Path) -> dict[str, Any]:
    """Return all values of a file of JSON lines."""
    values: dict[str, Any] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        values |= json.loads(line)
    return values


def compiles() -> bool:
    """Return True if train.py has an option --compile."""
    out = StringIO()
    with redirect_stdout(out), redirect_stderr(out), suppress(SystemExit):
        train.main(["fit", "--help"])
    return "--compile" in out.getvalue()


class Table:
    """The cases as Markdown, and their ratios to each other.

    Args:
        machine: what was found of the device.
        cases: the rows.
    """

    def __init__(self, machine: dict[str, Any], cases: list[Case]) -> None:
        self.machine, self.cases = machine, cases

    def plain(self, case: Case) -> dict[str, Any]:
        """Return what was found of the case that differs in not being compiled."""
        kind = (case.preset, case.stage, case.batch)
        same = (c for c in self.cases if (c.preset, c.stage, c.batch) == kind and not c.compiled)
        return next(same, case).found

    def ratio(self, case: Case) -> str:
        """Return how many times as fast as the plain case it is."""
        plain = self.plain(case).get("images_per_s")
        return f"{case.found['images_per_s'] / plain:.2f}" if plain else ""

    def share(self, case: Case) -> str:
        """Return the share of the ceiling."""
        tflop = self.plain(case).get("tflop")
        return f"{tflop / case.found['ms'] * 1e3 / self.machine['ceiling_tflops']:.1%}" if tflop else ""

    def columns(self) -> dict[str, Callable[[Case], str]]:
        """Return the columns: a name, and a function of a case."""
        return {
            "case": lambda case: case.name,
            "batch": lambda case: str(case.batch),
            "precision": lambda case: case.found["precision"],
            "images/s": lambda case: f"{case.found['images_per_s']:,.1f}",
            "x plain": self.ratio,
            "ms a step": lambda case: f"{case.found['ms']:.2f}",
            "TFLOP a step": lambda case: f"{self.plain(case)['tflop']:.3g}",
            "of the ceiling": self.share,
            "busy": lambda case: f"{case.found['busy']:.0%}",
            "kernels": lambda case: f"{case.found['kernels']:,.0f}",
            "reads": lambda case: f"{median(case.found['reads']):.0f}, {max(case.found['reads'])}",
            "syncs": lambda case: f"{case.found['syncs']:.1f}",
            "peak GiB": lambda case: f"{case.found['peak_gib']:.1f}",
            "note": lambda case: case.note,
        }

    def cell(self, function: Callable[[Case], str], case: Case) -> str:
        """Return what a column says of a case, or nothing where it was not measured."""
        try:
            return function(case)
        except (KeyError, TypeError):  # no such value, or None
            return ""

    def row(self, case: Case) -> str:
        """Return the line of a case."""
        return f"| {' | '.join(self.cell(function, case) for function in self.columns().values())} |"

    def head(self) -> str:
        """Return the device's line and the head of the table."""
        device = f"{self.machine['device']}, PyTorch {self.machine['torch']}, {SIZE} pixels; ceiling of bf16 products"
        names = " | ".join(self.columns())
        return f"{device} {self.machine['ceiling_tflops']:.4g} TFLOP/s\n\n| {names} |\n{'|---' * len(self.columns())}|"

    def kernels(self) -> str:
        """Return the top kernels of every case: share of the time in kernels, calls a step, name."""
        blocks = []
        for case in self.cases:
            if top := case.found.get("top"):
                lines = "\n".join(f"{share:>7.1%} {calls:>8.1f}  {name[:100]}" for name, share, calls in top)
                blocks.append(f"{case.name}: share of the time in kernels, calls a step\n\n```\n{lines}\n```")
        return "\n\n".join(blocks)

    def text(self) -> str:
        """Return all of it."""
        return "\n".join([self.head(), *(self.row(c) for c in self.cases if c.found or c.note), "", self.kernels()])


def write(table: Table, case: Case, out: Path | None) -> None:
    """Print a case's line, append it to `out`, and write the table beside it."""
    print(table.row(case), flush=True)
    if out is not None:
        values = {"case": case.name, "preset": case.preset, "stage": case.stage, "compiled": case.compiled}
        with open(out, "a") as file:
            file.write(json.dumps(values | {"batch": case.batch, "note": case.note} | case.found) + "\n")
        out.with_suffix(".md").write_text(table.text() + "\n")


def measure(table: Table, folder: str, root: str | None, seconds: float, end: float, out: Path | None) -> None:
    """Measure the cases of a table one after the other until the clock is at `end`."""
    built, cpu = compiles(), table.machine["device"].startswith("CPU")
    for number, case in enumerate(table.cases):
        left = end - time.monotonic()
        if case.compiled and not built:
            case.note = NOT_BUILT
        elif left < LEAST:
            case.note = "skipped: no time left"
        else:
            file, most = Path(folder, f"{number}.jsonl"), min(left, 2 * left / (len(table.cases) - number))
            case.note = run(arguments(case, folder, root, seconds, cpu, str(file)), Path(folder, f"{number}.log"), most)
            case.found = read(file)
        write(table, case, out)


def main(
    preset: Literal["small", "base", "both"] = "both",
    stage: Literal["vae", "gan", "both"] = "both",
    batch_size: int | None = None,
    root: str | None = None,
    minutes: float = 9.0,
    seconds: float = 10.0,
    out: Path | None = None,
) -> None:
    """Print one table of training on this machine's device.

    Args:
        preset: whose networks.
        stage: which training step.
        batch_size: images of a step; the configs' by default.
        root: folder of photographs to train on; drawn portraits by default.
        minutes: most time in all; what has not begun then is skipped.
        seconds: least time in which a case's steps are timed.
        out: file for lines of JSON, as they come; the table gets the same name with .md.
    """
    end = time.monotonic() + 60 * minutes
    for path in (out, out and out.with_suffix(".md")):
        if path is not None and path.exists():
            sys.exit(f"error: --out {path}: exists; give another name")
    if root is not None and not Path(root).is_dir():
        sys.exit(f"error: --root {root}: no such folder")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    presets, stages = (PRESETS if preset == "both" else (preset,)), (STAGES if stage == "both" else (stage,))
    cases = [
        Case(p, s, c, batch_size or resolved(p, s)["data"]["init_args"]["batch_size"])
        for c in (False, True)
        for p in presets
        for s in stages
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "machine.jsonl")
        code = f"from tests.benchmarks.device_run import ceiling; ceiling({str(file)!r})"
        if failed := run([sys.executable, "-c", code], Path(folder, "machine.log"), end - time.monotonic()):
            sys.exit(f"error: the product of matrices {failed}")
        for name in presets:
            Path(folder, name).mkdir()
            untrained_vae(name, SIZE, f"{folder}/{name}")
        table = Table(read(file), cases)
        print(table.head(), flush=True)
        if out is not None:
            out.write_text(json.dumps(table.machine) + "\n")
        measure(table, folder, root and str(Path(root).absolute()), seconds, end, out)
        print("\n" + table.kernels())


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
