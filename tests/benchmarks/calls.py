"""Count the calls of our own functions in one training step of each stage.

    python -m tests.benchmarks.calls
    python -m tests.benchmarks.calls --names true    # and how often each function is called

A reader of a step follows its calls through files. The step is `training_step` of the runs in tests/tiny.py. Counted
are functions of models/ and data/, comprehensions and generator expressions left out, in all and without the inside of
networks (what torch.nn.Module.__call__ calls); a change of file is a call into another file than the call before it.
"""

import contextlib
import io
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from jsonargparse import auto_cli
from torch import nn

from degrain.models.training import GANModule, VAEModule
from degrain.models.training.recipe import Recipe
from tests import tiny

ROOT = Path(__file__).parents[2]
OURS = tuple(f"{ROOT / folder}/" for folder in ("models", "data"))
NETWORK = nn.Module._call_impl.__code__
MODULES = {"vae": VAEModule, "gan": GANModule}
STEPS = {  # number of the step: Python and PyTorch have set up in the first ones what later ones reuse
    "vae": {"every step": 5},
    "gan": {"without penalties and spread term": 5, "with both": 8},
}


@dataclass(frozen=True)
class Call:
    """A call of a function: its file, its name, and whether a network made it."""

    file: str
    name: str
    in_network: bool


def calls_of(function: Callable[[], Any]) -> list[Call]:
    """Run a function and return the calls of our own functions in their order."""
    calls: list[Call] = []
    depth = 0  # of calls of networks

    def trace(frame: FrameType, event: str, _: Any) -> None:
        nonlocal depth
        if frame.f_code is NETWORK:
            depth += {"call": 1, "return": -1}.get(event, 0)
        elif event == "call" and is_ours(frame.f_code):
            file = str(Path(frame.f_code.co_filename).relative_to(ROOT))
            calls.append(Call(file, frame.f_code.co_qualname, depth > 0))

    sys.setprofile(trace)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls


def is_ours(code: CodeType) -> bool:
    """Return True for a function or a lambda of models/ or data/, False for a comprehension."""
    return code.co_filename.startswith(OURS) and (code.co_name == "<lambda>" or not code.co_name.startswith("<"))


def measured(root: Path, stage: str) -> dict[str, list[Call]]:
    """Train the tiny run of a stage and return the calls of its steps by kind of step."""
    found: dict[str, list[Call]] = {}
    kinds = {number: kind for kind, number in STEPS[stage].items()}
    training_step = MODULES[stage].training_step

    def counted(module: Recipe, *arguments: Any) -> None:
        kind = kinds.get(module.images_seen // tiny.BATCH)
        if kind is None:
            training_step(module, *arguments)
        else:
            found[kind] = calls_of(lambda: training_step(module, *arguments))

    MODULES[stage].training_step = counted
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            tiny.run(root, stage)
    finally:
        MODULES[stage].training_step = training_step
    return found


def row(calls: list[Call]) -> str:
    """Return calls, files and changes of file as three columns."""
    files = [call.file for call in calls]
    changes = sum(one != other for one, other in zip(files, files[1:], strict=False))
    return f"{len(calls):>7}{len(set(files)):>7}{changes:>9}"


def main(names: bool = False) -> None:
    """Count the calls of our own functions in one training step of each stage.

    Args:
        names: list every function outside of networks with the number of its calls, too.
    """
    warnings.filterwarnings("ignore")
    print(f"{'':<40}{'in all':^23}  {'without networks':^23}")
    print(f"{'step':<40}" + 2 * f"{'calls':>7}{'files':>7}{'changes':>9}  ")
    with tempfile.TemporaryDirectory() as root:
        for stage in MODULES:
            for kind, calls in measured(Path(root), stage).items():
                outside = [call for call in calls if not call.in_network]
                print(f"{f'{stage}, {kind}':<40}{row(calls)}  {row(outside)}", flush=True)
                for call, count in Counter(outside).most_common() if names else ():
                    print(f"{count:>6}  {call.file}  {call.name}")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
