"""Derivatives of gradients by an input, against PyTorch's own, in float64."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from degrain.models.core.second_order import InputGradients, SiLU, SiLUGradient

SHAPES = [{"padding": 1}, {"stride": 2, "dilation": 2}, {"groups": 2, "bias": False}, {"padding": (2, 0), "stride": 3}]


def of_penalty(net: nn.Module, x: Tensor, ours: bool) -> list[Tensor]:
    """Return the gradients by input and weights of a network's values and of |grad_x values|^2."""
    net.zero_grad()
    x = x.clone().requires_grad_()
    with InputGradients() if ours else nullcontext():
        values = net(x).square().sum()
        (gradient,) = torch.autograd.grad(values, x, create_graph=True)
    (values + gradient.square().sum()).backward()
    return [gradient.detach(), x.grad, *(parameter.grad for parameter in net.parameters())]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_penalty_on_convolutions_and_silu_has_the_gradients_of_pytorch_s(shape):
    torch.manual_seed(0)
    first = nn.Conv2d(4, 6, 3, **shape)
    net = nn.Sequential(first, nn.SiLU(), nn.Conv2d(6, 3, 1), nn.SiLU(), nn.AvgPool2d(2)).double()
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    for got, want in zip(of_penalty(net, x, True), of_penalty(net, x, False), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("padding, sizes", [("same", (2, 4, 9, 8)), ("valid", (2, 4, 9, 8)), (1, (4, 9, 8))], ids=str)
def test_named_padding_and_a_single_image_have_pytorch_s_gradients(padding, sizes):
    torch.manual_seed(0)
    net, x = nn.Conv2d(4, 6, 3, padding=padding).double(), torch.randn(sizes, dtype=torch.float64)
    for got, want in zip(of_penalty(net, x, True), of_penalty(net, x, False), strict=True):
        torch.testing.assert_close(got, want)


def test_arguments_by_name_are_taken():
    x, weight = torch.ones(1, 1, 3, 3, requires_grad=True), torch.ones(1, 1, 3, 3)
    with InputGradients():
        assert F.conv2d(input=x, weight=weight).item() == 9 == F.conv2d(x, weight, None, 1, "valid").item()


def test_silu_and_its_gradient_match_numerical_derivatives():
    x = torch.linspace(-30, 30, 41, dtype=torch.float64, requires_grad=True)
    gradient = torch.linspace(1, 2, 41, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(SiLU.apply, x)
    assert torch.autograd.gradcheck(SiLUGradient.apply, (gradient, x))


def test_under_autocast_the_context_gives_what_pytorch_gives():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(4, 6, 3), nn.SiLU()), torch.randn(2, 4, 9, 8)
    with torch.autocast("cpu", torch.bfloat16):
        want = net(x)
        with InputGradients():
            got = net(x)
    assert got.dtype == torch.bfloat16 and torch.equal(got, want)
    got.float().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in net.parameters())


def test_outside_of_the_context_pytorch_s_own_functions_run():
    x = torch.ones(1, 1, 3, 3, requires_grad=True)
    with InputGradients():
        assert type(F.silu(x).grad_fn).__name__ == "SiLUBackward" and "Convolution" in str(F.conv2d(x, x).grad_fn)
    assert type(F.silu(x).grad_fn).__name__ == "SiluBackward0"
