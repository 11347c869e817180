"""Estimate on paper how training scales to 8 and 64 GPUs, for both presets and stages at 64 pixels.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.scaling                     # assumptions alone; a minute of a core
    OMP_NUM_THREADS=1 python -m tests.benchmarks.scaling --measured device.jsonl    # step times of benchmarks.device

A step of one GPU with batch B takes

    T(B) = max(FLOP(B) / (share * ceiling), operators * launch)

where FLOP(B) and the number of operators are counted here, on a CPU, in 8 steps of 2 images (torch.utils.flop_counter);
share, ceiling and launch are assumed, until --measured gives T. Gradients are averaged in one message for each
optimizer after its backward pass (degrain.models.training.update), one more message has the step's named terms;
nothing is hidden behind computation. A message of M bytes takes, on 8 GPUs of one machine,

    t = 2 * 7/8 * M / inside + latency                                       (ring all-reduce, Patarasuk and Yuan 2009)

and on m machines of 8, which reduce and scatter inside, average an eighth each between machines, and gather inside,

    t = 2 * 7/8 * M / inside + 2 * (m - 1)/m * (M / 8) / between + latency

Efficiency, with the sum t of a step's messages, is T(B) / (T(B) + t) where each GPU has a batch of its own (weak), and
T(B) / (N (T(B / N) + t)) where the N GPUs divide one (strong). Left out: copies into and out of the message (0.3 ms for
base), loading, uneven GPUs. A measured T is taken to shrink as the assumed one does.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
from jsonargparse import auto_cli
from torch.utils.data import DataLoader

from tests.benchmarks.device_run import PERIOD, Flops
from tests.benchmarks.memory import PRESETS, STAGES, bare_trainer, build, networks, parameters, resolved, untrained_vae

SIZE, FEW = 64, 2  # pixels; images of a step that is counted
MACHINE = 8  # GPUs
TRAINED = {"vae": ("vae",), "gan": ("denoiser", "discriminator")}
"""Networks whose gradients are sent, each in a message."""
TERMS = 64  # bytes, of the named terms: nothing beside the latency


@dataclass(frozen=True)
class Assumed:
    """What is assumed of GPUs and network.

    Args:
        ceiling: TFLOP/s of bf16 matrix products; 800 is what large ones reach on an H100.
        share: of the ceiling that a step reaches where it is bound by its products.
        launch: microseconds of the host for an operator, not compiled.
        inside: GB/s of the ring inside a machine (NVLink).
        between: GB/s of each GPU between machines.
        latency: microseconds of a message inside a machine.
        latency_between: the same over several machines.
    """

    ceiling: float = 800.0
    share: float = 0.25
    launch: float = 7.0
    inside: float = 300.0
    between: float = 25.0
    latency: float = 30.0
    latency_between: float = 100.0


@dataclass(frozen=True)
class Step:
    """What is counted of a training step.

    Attributes:
        preset: `small` or `base`.
        stage: `vae` or `gan`.
        batch: images of the config.
        flop: of an image.
        calls: operators of a step.
        sizes: parameters of each network that is trained.
        measured: ms of a step with that batch on one GPU, if known.
    """

    preset: str
    stage: str
    batch: int
    flop: float
    calls: float
    sizes: tuple[int, ...]
    measured: float | None

    def by_flop(self, batch: float, assumed: Assumed) -> float:
        """Return ms of a step that is bound by its products."""
        return 1e3 * self.flop * batch / (assumed.share * assumed.ceiling * 1e12)

    def by_launch(self, assumed: Assumed) -> float:
        """Return ms of a step that is bound by the host."""
        return self.calls * assumed.launch / 1e3

    def ms(self, batch: float, assumed: Assumed) -> float:
        """Return ms of a step on one GPU."""
        model = [max(self.by_flop(b, assumed), self.by_launch(assumed)) for b in (batch, self.batch)]
        return model[0] if self.measured is None else self.measured * model[0] / model[1]

    def messages(self, gpus: int, width: int, assumed: Assumed) -> float:
        """Return ms of a step's messages on so many GPUs, gradients of `width` bytes a number."""
        sent = [width * size for size in self.sizes] + [TERMS]
        return sum(all_reduce(size, gpus, assumed) for size in sent)

    def weak(self, gpus: int, width: int, assumed: Assumed) -> float:
        """Return the efficiency where each GPU has the config's batch."""
        alone = self.ms(self.batch, assumed)
        return alone / (alone + self.messages(gpus, width, assumed))

    def strong(self, gpus: int, width: int, assumed: Assumed) -> float | None:
        """Return the efficiency where the GPUs divide the config's batch; None if it does not divide."""
        if self.batch % gpus:
            return None
        together = self.ms(self.batch / gpus, assumed) + self.messages(gpus, width, assumed)
        return self.ms(self.batch, assumed) / (gpus * together)


def all_reduce(size: float, gpus: int, assumed: Assumed) -> float:
    """Return ms of a message of `size` bytes that is averaged over GPUs; see the top of this file."""
    machines = -(-gpus // MACHINE)
    seconds = 2 * (MACHINE - 1) / MACHINE * size / (assumed.inside * 1e9)
    if machines == 1:
        return 1e3 * seconds + assumed.latency / 1e3
    seconds += 2 * (machines - 1) / machines * size / MACHINE / (assumed.between * 1e9)
    return 1e3 * seconds + assumed.latency_between / 1e3


class Count(pl.Callback):
    """Counts FLOPs and operators of all steps but the first ones, in which Adam makes its moments."""

    def on_train_start(self, *_: object) -> None:
        self.mode = Flops()
        self.parts = self.counted()

    def counted(self) -> Iterator[None]:
        """Yield to each step."""
        yield
        with self.mode:
            yield from [None] * PERIOD

    def on_train_batch_start(self, *_: object) -> None:
        next(self.parts)

    def on_train_end(self, *_: object) -> None:
        self.parts.close()


def counted(preset: str, stage: str, folder: str, measured: float | None) -> Step:
    """Count a step of a preset."""
    count = Count()
    module = build(preset, stage, SIZE, FEW * (PERIOD + 1), untrained_vae(preset, SIZE, folder))
    batch = {"image": torch.randint(256, (FEW, 3, SIZE, SIZE), dtype=torch.uint8)}
    precision = resolved(preset, stage)["trainer"]["precision"]
    trainer = bare_trainer(accelerator="cpu", precision=precision, callbacks=[count])
    trainer.fit(module, DataLoader([batch] * (PERIOD + 1), batch_size=None))
    sizes = tuple(parameters(networks(preset, SIZE)[name]) for name in TRAINED[stage])
    images = resolved(preset, stage)["data"]["init_args"]["batch_size"]
    totals = (count.mode.total / PERIOD / FEW, count.mode.calls / PERIOD)
    return Step(preset, stage, images, *totals, sizes, measured)


def fastest(path: Path | None) -> dict[tuple[str, str, int], float]:
    """Return the least ms of a step by preset, stage and batch from a file of tests.benchmarks.device."""
    found: dict[tuple[str, str, int], float] = {}
    for line in path.read_text().splitlines() if path else ():
        values = json.loads(line)
        if "ms" in values:
            key = (values["preset"], values["stage"], values["batch"])
            found[key] = min(values["ms"], found.get(key, values["ms"]))
    return found


def name(step: Step) -> str:
    """Return what a line begins with."""
    return f"{step.preset}, stage {1 + STAGES.index(step.stage)}"


def alone(step: Step, assumed: Assumed) -> str:
    """Return a line on one GPU."""
    taken = f"{step.ms(step.batch, assumed):.1f}{'' if step.measured is None else ', measured'}"
    millions = " + ".join(f"{size / 1e6:.1f}" for size in step.sizes)
    cells = [name(step), millions, str(step.batch), f"{step.flop * step.batch / 1e12:.3g}"]
    cells += [f"{step.by_flop(step.batch, assumed):.2f}", f"{step.by_launch(assumed):.1f}", taken]
    return f"| {' | '.join(cells)} |"


def together(step: Step, gpus: int, assumed: Assumed) -> str:
    """Return a line on several GPUs."""
    speed = gpus * step.batch / step.ms(step.batch, assumed) * 1e3 * step.weak(gpus, 4, assumed)
    strong = step.strong(gpus, 4, assumed)
    cells = [name(step), str(gpus), f"{step.messages(gpus, 4, assumed):.2f}", f"{step.weak(gpus, 4, assumed):.0%}"]
    cells += [f"{step.weak(gpus, 2, assumed):.0%}", f"{speed:,.0f}", "" if strong is None else f"{strong:.0%}"]
    return f"| {' | '.join(cells)} |"


def headed(columns: list[str], lines: list[str]) -> str:
    """Return a table as Markdown."""
    return "\n".join([f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *lines])


def main(assumed: Assumed = Assumed(), measured: Path | None = None) -> None:  # noqa: B008 (frozen)
    """Print the efficiency on 8 and 64 GPUs.

    Args:
        assumed: of GPUs and network.
        measured: file of tests.benchmarks.device; the fastest row of each case gives the step time of one GPU.
    """
    if measured is not None and not measured.is_file():
        sys.exit(f"error: --measured {measured}: no such file")
    torch.set_num_threads(1)
    times = fastest(measured)
    steps = []
    with tempfile.TemporaryDirectory() as folder:
        for preset in PRESETS:
            for stage in STAGES:
                images = resolved(preset, stage)["data"]["init_args"]["batch_size"]
                steps.append(counted(preset, stage, folder, times.get((preset, stage, images))))
    one = ["one GPU", "parameters, M", "batch", "TFLOP a step", "ms by FLOPs", "ms by launches", "ms taken"]
    several = [
        "several",
        "GPUs",
        "ms of messages",
        "efficiency",
        "with bf16 gradients",
        "images/s",
        "one batch, divided",
    ]
    print(f"{assumed}\n\n{headed(one, [alone(step, assumed) for step in steps])}\n")
    print(headed(several, [together(step, gpus, assumed) for step in steps for gpus in (8, 64)]))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
