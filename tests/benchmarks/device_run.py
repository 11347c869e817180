"""What one run of tests/benchmarks/device.py measures, in a process of its own: a callback, and the matrix ceiling."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tests.training.reads import ASKING, Methods, Operators, found

PERIOD = 8  # steps: any so many have as many penalties and spread terms as any others
TOP = 10  # kernels
SIDES = {"cuda": (4096, 8192, 16384), "cpu": (1024, 2048)}  # of the matrices whose product gives the ceiling
CEILING_SECONDS = {"cuda": 1.0, "cpu": 0.5}  # for each side
SYNCHRONISING = ("cudaStreamSynchronize", "cudaEventSynchronize")


def device_type() -> str:
    """Return `cuda` or `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def now() -> float:
    """Return the clock when the GPU has done all its work; on a CPU core seconds, which neighbours change less."""
    if device_type() == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def keep(path: str, values: dict[str, Any]) -> None:
    """Append values to a file, as a line of JSON."""
    with open(path, "a") as file:
        file.write(json.dumps(values) + "\n")


def ceiling(path: str) -> None:
    """Keep the name of the device and the most that a product of bf16 matrices reaches on it, in TFLOP/s."""
    device, reached = device_type(), {}
    if device == "cpu":
        torch.set_num_threads(1)
    for side in SIDES[device]:
        a, b = torch.randn(2, side, side, device=device).bfloat16()
        for _ in range(3):
            a @ b
        start, count = now(), 0
        while now() - start < CEILING_SECONDS[device]:
            for _ in range(10 if device == "cuda" else 1):
                a @ b
                count += 1
        reached[side] = 2 * side**3 * count / (now() - start) / 1e12
    card = torch.cuda.get_device_name() if device == "cuda" else f"CPU, 1 thread, {cpu_name()}"
    keep(
        path, {"device": card, "torch": torch.__version__, "ceiling_tflops": max(reached.values()), "by_side": reached}
    )


def cpu_name() -> str:
    """Return the processor's name as Linux has it, or nothing."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")


class Flops(TorchDispatchMode):
    """Count the FLOPs of matrix products and convolutions, backward passes included, by PyTorch's own formulas.

    FlopCounterMode itself fails in a gradient penalty: its hooks refuse torch.autograd.grad by a module's input
    (pytorch/pytorch issue 131753).

    Attributes:
        total: FLOPs; a multiplication and an addition are two.
        calls: operators that compute or copy something, each at least one kernel of a GPU; no views, no allocations.
    """

    total = calls = 0

    def __torch_dispatch__(
        self, operator: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = operator(*args, **(kwargs or {}))
        self.calls += not operator.is_view and not operator.name().startswith("aten::empty")
        if formula := flop_registry.get(operator.overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


class Measure(pl.Callback):
    """Measures a run of `train.py fit` by parts of PERIOD steps, and ends it.

    After a part that warms up: time; a profile; and, if asked to, the products' FLOPs, then what the host reads. The
    time is taken without the others.

    Args:
        out: file that gets a line of JSON after each part.
        seconds: least time of the timed part.
        counts: whether to count FLOPs and reads, which hold for the uncompiled step alone.
    """

    def __init__(self, out: str, seconds: float, counts: bool) -> None:
        self.out, self.seconds, self.counts = out, seconds, counts
        self.ended = False

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.parts = self.measured(trainer, module)

    def on_train_batch_start(self, *_: Any) -> None:
        next(self.parts)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.should_stop |= self.ended  # the module's clock has just set it

    def measured(self, trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[None]:
        """Measure part by part; each yield lets the Trainer take a step."""
        yield from [None] * PERIOD  # a compiled step is compiled, a GPU's convolutions are chosen
        ms = yield from self.timed(trainer, module)
        yield from self.profiled(ms)
        if self.counts:
            with Flops() as counter:
                yield from [None] * PERIOD
            keep(self.out, {"tflop": counter.total / PERIOD / 1e12})
            yield from self.reads(trainer.log_every_n_steps)  # one of them logs
        self.ended = True
        yield

    def timed(self, trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[None]:
        """Keep and return the ms of a step; keep images per second and peak memory."""
        start, images, steps = now(), module.images_seen, 0
        began = time.monotonic()
        while time.monotonic() - began < self.seconds or not steps:
            yield from [None] * PERIOD
            steps += PERIOD
        seconds = now() - start
        peak = torch.cuda.max_memory_allocated() / 2**30 if device_type() == "cuda" else None
        ms = 1e3 * seconds / steps
        speed = {"steps": steps, "ms": ms, "images_per_s": (module.images_seen - images) / seconds}
        keep(self.out, speed | {"peak_gib": peak, "precision": str(trainer.precision)})
        return ms

    def profiled(self, ms: float) -> Iterator[None]:
        """Keep the busy share of a step of so many ms, the kernels, and how often the host waited for the GPU."""
        cuda, wall = device_type() == "cuda", time.perf_counter()
        with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda) as profiler:
            yield from [None] * PERIOD
        wall = time.perf_counter() - wall
        rows = [e for e in profiler.key_averages() if not annotation(e)]
        kernels = {e.key: e for e in rows if e.device_type == (DeviceType.CUDA if cuda else DeviceType.CPU)}
        costs = {n: (e.self_device_time_total if cuda else e.self_cpu_time_total) / 1e3 for n, e in kernels.items()}
        total = sum(costs.values())  # ms of PERIOD steps
        # A profile slows the host, not the kernels. On a CPU both are the clock's, neighbours included.
        busy = total / PERIOD / ms if cuda else total / 1e3 / wall
        top = sorted(costs, key=costs.get, reverse=True)[:TOP]
        syncs = sum(e.count for e in rows if e.key in SYNCHRONISING) / PERIOD if cuda else None
        values = {"busy": busy, "kernels": sum(e.count for e in kernels.values()) / PERIOD, "syncs": syncs}
        values["top"] = [[name, costs[name] / total, kernels[name].count / PERIOD] for name in top]
        keep(self.out, values)

    def reads(self, steps: int) -> Iterator[None]:
        """Keep how often the host reads the device's values in each step, and where; a CPU counts as an accelerator."""
        before = [module.readable for module in ASKING]
        for module in ASKING:
            module.readable = lambda device: device.type == "never"
        found.clear()
        with Operators(), Methods():
            for _ in range(steps):
                found.append([])
                yield
        for module, function in zip(ASKING, before, strict=True):
            module.readable = function
        keep(self.out, {"reads": [len(step) for step in found], "places": sorted({p for step in found for p in step})})


def annotation(event: Any) -> bool:
    """Return True for a span that a library has named, as Optimizer.step; its kernels are counted by themselves."""
    return getattr(event, "is_user_annotation", False) or event.key.startswith(("Optimizer.", "ProfilerStep"))
