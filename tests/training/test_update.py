"""Optimizer steps and the moving average: pieces add up, a skipped step changes nothing, the clip holds."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from models.training.update import Update


@pytest.mark.parametrize("value", [1.5, math.inf, -math.inf, math.nan])
def test_a_loss_that_is_not_finite_spoils_its_gradient_and_no_other(value):
    weight = torch.tensor([0.3, 0.0], requires_grad=True)
    update = Update(SimpleNamespace(manual_backward=Tensor.backward), None)
    update.pieces = 1
    update.backward((2 * weight).sum() + value, {})
    expected = torch.full((2,), 2.0 if math.isfinite(value) else math.nan)
    torch.testing.assert_close(weight.grad, expected, rtol=0, atol=0, equal_nan=True)
