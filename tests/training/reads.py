"""Note in `found[-1]` where the host reads values of a device: each is a wait on an accelerator."""

import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from degrain.models.core import images
from degrain.models.training import image_module

ASKING = (images, image_module)
"""Modules that read more on a CPU; with another `readable` they do there as on an accelerator."""

READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero", "aten::masked_select"}
METHODS = {Tensor.tolist, Tensor.item, Tensor.cpu, Tensor.numpy, Tensor.__array__}  # on a CPU some call no operator

found: list[list[str]] = []
"""Where values were read, step by step."""


def place() -> str:
    """Return the lines of ours or of the Trainer that read the value, innermost first."""
    frames = [f for f in traceback.extract_stack() if f.filename != __file__ and "/torch/" not in f.filename]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[:-4:-1])


class Operators(TorchDispatchMode):
    """Note the operators that read values; those that backward passes and libraries call, too."""

    def __torch_dispatch__(
        self, operator: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if operator.name().partition(".")[0] in READS:
            found[-1].append(f"{operator.name()}: {place()}")
        return operator(*args, **(kwargs or {}))


class Methods(TorchFunctionMode):
    """Note the methods that read values."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function in METHODS and not (where := place()).startswith("stream.py"):  # batches are made on the host
            found[-1].append(f"{function.__name__}: {where}")
        return function(*args, **(kwargs or {}))
