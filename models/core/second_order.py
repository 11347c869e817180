"""Convolutions and SiLU whose gradient by their input can be differentiated at the cost of a gradient.

PyTorch differentiates the gradient of a convolution through one whose kernel has the size of the image, and that of
SiLU through a dozen elementwise operations. A gradient penalty then spends a quarter of its time there. StyleGAN3's
`conv2d_gradfix` does the same for convolutions on a GPU.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode


class InputGradients(TorchFunctionMode):
    """A context in which `conv2d` and `silu` are the functions of this module, for any network.

    A graph of their gradient (`create_graph`) is one by their inputs alone: weights get none there. PyTorch's own run
    for a single image (C, H, W) and for padding that has a name ("same"). Compiled networks run as they are: what
    torch.compile makes has no second derivative.
    """

    def __enter__(self) -> "InputGradients":
        self.uncompiled = torch.compiler.set_stance("force_eager")
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.uncompiled.__exit__(*error)

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.silu:
            return SiLU.apply(args[0])
        if function is F.conv2d and args and args[0].ndim == 4 and not has_named_padding(*args[4:5], **kwargs):
            return conv2d(*args, **kwargs)
        return function(*args, **kwargs)


def has_named_padding(padding: object = 0, **_: object) -> bool:
    """Return True for the padding `same` or `valid`."""
    return isinstance(padding, str)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """Return torch.nn.functional.conv2d of the same arguments, in autocast's precision."""
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return Convolution.apply(x, weight, bias, (_pair(stride), _pair(padding), _pair(dilation), groups))


def convolution_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, shape: tuple[Any, ...], wanted: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients by input, weight and bias that are wanted, for that by the output.

    The first is linear in `gradient` and `weight`, the second in `gradient` and `x`.
    """
    *spatial, groups = shape
    none = [0, 0]  # output padding, of transposed convolutions
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, [len(weight)], *spatial, False, none, groups, wanted
    )


class Convolution(torch.autograd.Function):
    """conv2d(x, weight, bias) with `shape` = (stride, padding, dilation, groups)."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None, shape: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.shape = shape
        return F.conv2d(x, weight, bias, *shape)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            return InputGradient.apply(gradient, x, weight, ctx.shape), None, None, None
        return *convolution_gradients(gradient, x, weight, ctx.shape, list(ctx.needs_input_grad[:3])), None


class InputGradient(torch.autograd.Function):
    """The gradient of conv2d by its input x, of which it needs the shape alone."""

    @staticmethod
    def forward(ctx: FunctionCtx, gradient: Tensor, x: Tensor, weight: Tensor, shape: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(gradient, weight)
        ctx.shape = shape
        return convolution_gradients(gradient, x, weight, shape, [True, False, False])[0]

    @staticmethod
    def backward(ctx: FunctionCtx, slope: Tensor) -> tuple[Tensor | None, ...]:
        gradient, weight = ctx.saved_tensors
        by_weight = convolution_gradients(gradient, slope, weight, ctx.shape, [False, True, False])[1]
        return F.conv2d(slope, weight, None, *ctx.shape), None, by_weight, None


class SiLU(torch.autograd.Function):
    """x s for s = 1/(1 + exp(-x))."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.silu(x)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        return SiLUGradient.apply(gradient, *ctx.saved_tensors)


class SiLUGradient(torch.autograd.Function):
    """The gradient of SiLU, by its output times s (1 + x (1 - s))."""

    @staticmethod
    def forward(ctx: FunctionCtx, gradient: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(gradient, x)
        return torch.ops.aten.silu_backward(gradient, x)

    @staticmethod
    def backward(ctx: FunctionCtx, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Use the second derivative of x s, which is s (1 - s) (2 + x (1 - 2 s))."""
        gradient, x = ctx.saved_tensors
        s = x.sigmoid()
        rest = 1 - s
        second = (rest - s).mul_(x).add_(2).mul_(s).mul_(rest)
        return torch.ops.aten.silu_backward(slope, x), second.mul_(gradient).mul_(slope)
