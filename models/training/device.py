"""What a run asks of its device: compiled networks, the precision of float32 products, cuDNN's choice of algorithms."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import pytorch_lightning as pl
import torch
from jsonargparse import Namespace
from pytorch_lightning.utilities import rank_zero_only

from degrain.models.core.errors import InputError, first_line
from degrain.models.core.precision import cpu_emulates_bf16
from degrain.models.training.image_module import ImageModule

MatmulPrecision = Literal["highest", "high", "medium"]

BACKEND = "inductor"
"""Compiler of torch.compile: C++ on a CPU, Triton on a GPU."""


HALF = ("bf16-mixed", "bf16", "16-mixed", "16", 16)
"""Precisions of which Lightning makes bf16 on a CPU."""


def avoid_emulation(options: Namespace) -> None:
    """Take float32 on a processor that has no instructions for bf16, and say so.

    Args:
        options: of the Trainer, as the config has them; `precision` is changed.
    """
    on_cpu = options.accelerator == "cpu" or options.accelerator == "auto" and not torch.accelerator.is_available()
    if on_cpu and options.precision in HALF and cpu_emulates_bf16():
        given, options.precision = options.precision, "32-true"
        rank_zero_only(print)(
            f"trainer.precision: 32-true instead of {given}, for which this processor has no instructions (far slower)"
        )


def set_products(device: torch.device, precision: MatmulPrecision | None) -> str | None:
    """Set the precision of float32 products, and return a line that says what a GPU does; None on a CPU.

    Args:
        device: where the networks are.
        precision: of torch.set_float32_matmul_precision; by default `high`, TF32, on a GPU and PyTorch's elsewhere.
    """
    on_gpu = device.type == "cuda"
    if precision or on_gpu:
        torch.set_float32_matmul_precision(precision or "high")
    if not on_gpu:
        return None
    line = f"gpu: float32 products: {torch.get_float32_matmul_precision()} (--float32_matmul_precision)"
    if torch.backends.cudnn.benchmark:
        line += "; cuDNN chooses algorithms by timing, so that results of a seed differ in their last bits: "
        line += "--trainer.deterministic true makes them equal"
    return line


def compile_networks(module: pl.LightningModule, trainer: pl.Trainer) -> None:
    """Compile the networks of the module's training step, without graph breaks.

    Raises:
        InputError: a recipe without networks on images, or a machine on which nothing can be compiled.
    """
    import torch._dynamo  # here: it takes a second to import

    if not isinstance(module, ImageModule):
        raise InputError(f"--compile true: {type(module).__name__} has no networks on images; leave it out")
    device = trainer.strategy.root_device
    if device.type == "cpu" or getattr(trainer.strategy, "_start_method", None) != "fork":  # CUDA cannot be forked
        with compile_errors("nothing can be compiled on this machine", Exception):
            torch.compile(lambda x: x.sin() + 1, backend=BACKEND)(torch.ones(8, device=device))
    torch._dynamo.config.optimize_ddp = False  # it would cut the networks where DDP sends gradients, which it does not
    module.compile(fullgraph=True, dynamic=False, backend=BACKEND)


@contextmanager
def compile_errors(happened: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn the errors of torch.compile, and those of further kinds, into an InputError that says what happened."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    try:
        yield
    except (TorchDynamoException, FailOnRecompileLimitHit, *kinds) as error:
        cause = getattr(error, "inner_exception", error)
        said = f"{type(cause).__name__}: {first_line(cause)}"[:200]
        raise InputError(
            f"--compile true: {happened} ({said}); install a C++ compiler (for a GPU also Triton), or leave it out"
        ) from error
