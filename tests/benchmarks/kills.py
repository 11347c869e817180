"""SIGKILLs at random moments over both stages: what is gone on with comes out as the run that nobody killed.

    python -m tests.benchmarks.kills --kills 20 --seed 0

The runs are those of tests/tiny.py with a checkpoint after every step, one thread each. A kill falls between the start
of the Trainer and its end, a random number of moments (a training step, a checkpoint's write, ...) and a random time
later, however fast the machine; the same command follows until the run is finished. Then weights, moving averages,
optimizer states, metrics.json and pictures must be those of the uninterrupted run, bit for bit, or the exit code is 1.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

import pytorch_lightning as pl
from jsonargparse import auto_cli

from tests import tiny

ROOT = Path(__file__).parents[2]
STAGES = ("vae", "gan")
IMAGES = 1000  # or no mixture is learned as prior


class Moments(pl.Callback):
    """Keeps a file of what a run is doing and its images seen, for who kills it.

    Args:
        file: where.
    """

    def __init__(self, file: str) -> None:
        self.file, self.count = os.open(file, os.O_CREAT | os.O_WRONLY), 0

    def now(self, what: str, images: int) -> None:
        self.count += 1
        os.pwrite(self.file, f"{self.count:<6}{what:<18}{images:>4} images".encode(), 0)  # one write: never half of it

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        save = trainer.save_checkpoint

        def told(*args: Any, **options: Any) -> None:
            self.now("checkpoint", module.images_seen)
            save(*args, **options)
            self.now("saved", module.images_seen)

        trainer.save_checkpoint = told
        self.now("start", module.images_seen)

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, *_) -> None:
        self.now("training", module.images_seen)

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.now("prior fit" if hasattr(module, "fit_prior") else "validation", module.images_seen)

    def on_validation_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.now("validation", module.images_seen)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.now("pictures, values", module.images_seen)


class Killer:
    """Runs of a stage below `root`, some of them killed.

    Args:
        root: folder of all runs.
        stage: `vae`, or `gan` on the run `vae`.
        random: of the moments.
    """

    def __init__(self, root: Path, stage: str, random: Random) -> None:
        self.root, self.stage, self.random = root, stage, random
        self.moment = root / f"{stage}.moment"
        moments = {"class_path": "tests.benchmarks.kills.Moments", "init_args": {"file": str(self.moment)}}
        config = tiny.CONFIGS[stage](root) | {"checkpoint_minutes": 0}
        config["data"]["init_args"]["count"] = IMAGES
        config["trainer"]["callbacks"] = [moments]
        if stage == "vae":
            config["model"]["init_args"] |= {"prior_components": 2}
        self.config = tiny.write(root / f"{stage}.yaml", config)
        start = time.monotonic()
        self.killed(stage)
        self.count = self.seen()
        self.pause = (time.monotonic() - start) / self.count
        print(f"{stage}: {self.count} moments without a kill", flush=True)

    def seen(self) -> int:
        """Moments since the Trainer's start."""
        return int(self.moment.read_text()[:6] or 0)

    def killed(self, name: str, after: int | None = None) -> bool:
        """The command that begins a run or goes on with it; whether it was killed, or ended before.

        Args:
            name: of the run.
            after: moments after which it is killed, and a random time of up to `self.pause` seconds.

        Raises:
            CalledProcessError: it failed.
        """
        self.moment.write_bytes(b"")
        command = [sys.executable, "train.py", "fit", "-c", str(self.config), "--name", name, "--ckpt_path", "last"]
        with open(self.root / f"{name}.log", "a") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=log
            )
        try:
            while process.poll() is None and (after is None or self.seen() < after):
                time.sleep(0.002)
            if after is not None and process.poll() is None:
                time.sleep(self.random.uniform(0, self.pause))
        finally:
            process.kill()
            code = process.wait()
        if code not in (0, -signal.SIGKILL):
            raise subprocess.CalledProcessError(code, command)
        return code != 0

    def report(self, name: str) -> None:
        """A line on a kill: what the run was doing, the images of the newest checkpoint, and half-written files."""
        folder = self.root / "runs" / name
        kept = tiny.checkpoint(folder)["degrain"]["images_seen"] if (folder / "last.ckpt").exists() else "none"
        parts = ", ".join(path.name for path in folder.rglob(".*.part*"))
        print(f"{name:<8}killed: {self.moment.read_text()[6:]}, checkpoint {kept:>4}  {parts}".rstrip(), flush=True)

    def spend(self, kills: int) -> bool:
        """Make so many kills in as many runs as they take, and finish these; whether each came out as the whole one."""
        same, number = True, 0
        while kills:
            number += 1
            name = f"{self.stage}{number}"
            # After half of a run's moments at most, so that no run ends before its first kill.
            while self.killed(name, self.random.randint(1, self.count // 2) if kills else None):
                self.report(name)
                kills -= 1
            try:
                tiny.assert_same_run(self.root / "runs" / name, self.root / "runs" / self.stage)
                print(f"{name:<8}equals the run without a kill", flush=True)
            except AssertionError as error:
                print(f"{name:<8}DIFFERS in {str(error).partition(chr(10))[0]}", flush=True)
                same = False
        return same


def main(kills: int = 20, seed: int = 0, folder: str | None = None) -> None:
    """Kill runs of both stages and compare what comes of them.

    Args:
        kills: in all, half of them in each stage.
        seed: of their moments, which also depend on the machine's speed.
        folder: where the runs and their logs are kept; by default they are removed.
    """
    with tempfile.TemporaryDirectory() as removed:
        root, random = Path(folder or removed), Random(seed)
        root.mkdir(parents=True, exist_ok=True)
        shares = {"vae": kills - kills // 2, "gan": kills // 2}
        same = [Killer(root, stage, random).spend(share) for stage, share in shares.items()]
    print(f"{kills} kills: " + ("every run came out as if nothing had happened" if all(same) else "runs differ"))
    sys.exit(not all(same))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
