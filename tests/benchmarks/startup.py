"""Core seconds until the commands answer, as ratios to the import of the library that they cannot do without.

    python -m tests.benchmarks.startup
    python -m tests.benchmarks.startup --rounds 9

Each round runs every command once, one after the other, and what it is compared with beside it. Core seconds are user
and system time of the process (getrusage of children), which neighbours change less than the time on the clock.
"""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from jsonargparse import auto_cli

ROOT = Path(__file__).parents[2]
TORCH, LIGHTNING = "import torch", "import pytorch_lightning"
DEMO = ("train.py", "fit", "-c", "configs/demo_vae.yaml")
COMMANDS = {
    "sample.py --help": (TORCH, ("sample.py", "--help"), 0),
    "sample.py, refused option": (TORCH, ("sample.py", "x.ckpt", "--steps", "50"), 2),
    "sample.py, missing checkpoint": (TORCH, ("sample.py", "missing.ckpt"), 2),
    "train.py, misspelt option": (LIGHTNING, (*DEMO, "--model.bugdet", "1000"), 2),
    "train.py, misspelt entry of a config": (LIGHTNING, ("train.py", "fit", "-c", "{config}"), 2),
    "train.py --help": (LIGHTNING, ("train.py", "--help"), 0),
    "train.py fit --help": (LIGHTNING, ("train.py", "fit", "--help"), 0),
}
"""Name -> (what it is compared with, arguments of Python, exit code)."""


def core_seconds(arguments: tuple[str, ...], code: int = 0) -> float:
    """Run Python and return the user and system time that it took, in seconds.

    Raises:
        RuntimeError: it ended with another exit code.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != code:
        raise RuntimeError(f"{' '.join(arguments)}: exit code {done.returncode}, not {code}: {done.stderr[-500:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(rounds: int = 5) -> None:
    """Print the core seconds of each command, and the median of their ratios to an import in the same round.

    Args:
        rounds: how often each command is run.
    """
    if rounds < 1:
        sys.exit(f"error: --rounds {rounds}: give at least 1")
    text = (ROOT / DEMO[-1]).read_text(encoding="utf-8").replace("budget:", "bugdet:")
    seconds: dict[str, list[float]] = {name: [] for name in (TORCH, LIGHTNING, *COMMANDS)}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as config:
        config.write(text)
        config.flush()
        for _ in range(rounds):
            for library in (TORCH, LIGHTNING):
                seconds[library].append(core_seconds(("-c", library)))
            for name, (_, arguments, code) in COMMANDS.items():
                filled = tuple(argument.format(config=config.name) for argument in arguments)
                seconds[name].append(core_seconds(filled, code))
    print(f"{'':<40}{'core seconds':>14}  ratio")
    for library in (TORCH, LIGHTNING):
        print(f"{library:<40}{median(seconds[library]):>14.2f}")
    for name, (library, *_) in COMMANDS.items():
        ratio = median(one / other for one, other in zip(seconds[name], seconds[library], strict=True))
        print(f"{name:<40}{median(seconds[name]):>14.2f}  {ratio:.2f} of {library}")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
