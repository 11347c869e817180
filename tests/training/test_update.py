"""Optimizer steps and the moving average: pieces add up, a skipped step changes nothing, the clip holds."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor, nn

from degrain.models.training.image_module import ImageModule
from degrain.models.training.update import MovingAverage, Update, adam, average_over_processes
from tests.tiny import assert_equal_states
from tests.training.recipes import STEP, fit, module_of, moved, portraits, snapshot
from tests.training.test_divergence import Poison

MODULE = SimpleNamespace(
    manual_backward=Tensor.backward,
    trainer=SimpleNamespace(precision_plugin=SimpleNamespace(scaler=None), world_size=1),
)


class Optimizer:
    """A fused Adam with as much of a LightningOptimizer as an update needs; keeps the flags `sync_grad`."""

    def __init__(self, network: nn.Module) -> None:
        self.optimizer, self.synchronised = adam(network, 0.1), []
        self.param_groups, self.zero_grad = self.optimizer.param_groups, self.optimizer.zero_grad
        self.step = self.optimizer.step

    @contextmanager
    def toggle_model(self, sync_grad: bool) -> Iterator[None]:
        self.synchronised.append(sync_grad)
        yield


def stepped(network: nn.Module, optimizer: Optimizer, pieces: list[Tensor], **options: Tensor | float) -> Update:
    """Take a step on the mean of the network's squared outputs for pieces of a batch, (B, 3) each."""
    update = Update(MODULE, optimizer, options.pop("clip", math.inf))
    for x in update.over(pieces):
        squares = network(x).square().sum(1)  # (B,)
        update.backward(squares.mean(), {"square": squares})
    update.step(**options)
    return update


@pytest.mark.parametrize("value", [1.5, math.inf, -math.inf, math.nan])
def test_a_loss_that_is_not_finite_spoils_its_gradient_and_no_other(value):
    weight = torch.tensor([0.3, 0.0], requires_grad=True)
    update = Update(SimpleNamespace(manual_backward=Tensor.backward), None)
    update.pieces = 1
    update.backward((2 * weight).sum() + value, {})
    expected = torch.full((2,), 2.0 if math.isfinite(value) else math.nan)
    torch.testing.assert_close(weight.grad, expected, rtol=0, atol=0, equal_nan=True)


def test_a_skipped_step_under_a_gradient_scaler_passes_over_parameters_without_gradients():
    network, scaler = nn.Linear(3, 1), torch.amp.GradScaler("cpu")
    network.bias.requires_grad_(False)  # as the denoiser's gain, if it sees no noise
    optimizer = Optimizer(network)
    optimizer.step = lambda: (scaler.step(optimizer.optimizer), scaler.update())
    plugin = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler), world_size=1)
    module = SimpleNamespace(manual_backward=lambda loss: scaler.scale(loss).backward(), trainer=plugin)
    before = snapshot(network)
    update = Update(module, optimizer)
    for x in update.over([torch.ones(2, 3)]):
        update.backward(network(x).mean() * math.inf, {})
    update.step()
    assert update.skipped and moved(network, before) == set() and scaler.get_scale() == 2**15


def test_pieces_have_the_gradient_of_their_mean_and_ddp_sends_none():
    network, x = nn.Linear(3, 2), torch.randn(12, 3)
    optimizer, twin = Optimizer(network), copy.deepcopy(network)
    update = stepped(network, optimizer, list(x.split(4)))
    twin(x).square().sum(1).mean().backward()
    torch.testing.assert_close([p.grad for p in network.parameters()], [p.grad for p in twin.parameters()])
    assert optimizer.synchronised == [False, False, False] and not update.skipped
    assert update.terms["square"].shape == (3, 4) and not update.terms["square"].requires_grad


@pytest.mark.parametrize("unless", [True, False])
def test_a_step_under_unless_changes_no_weight_and_no_moment(unless):
    network, x = nn.Linear(3, 2), torch.randn(4, 3)
    optimizer = Optimizer(network)
    stepped(network, optimizer, [x])
    weights, moments = snapshot(network), copy.deepcopy(optimizer.optimizer.state_dict()["state"])
    update = stepped(network, optimizer, [x], unless=torch.tensor(unless))
    assert bool(update.skipped) == unless and moved(network, weights) == (set() if unless else {"weight", "bias"})
    if unless:
        assert_equal_states(optimizer.optimizer.state_dict()["state"], moments)
    assert all(p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("clip", [0.01, 1e6])
def test_the_clip_is_the_largest_norm_of_the_gradient(clip):
    network, x = nn.Linear(3, 2), torch.randn(4, 3)
    twin = copy.deepcopy(network)
    stepped(twin, Optimizer(twin), [x])
    stepped(network, Optimizer(network), [x], clip=clip)
    norm, unclipped = (nn.utils.get_total_norm([p.grad for p in net.parameters()]) for net in (network, twin))
    torch.testing.assert_close(norm, unclipped.clamp(max=clip), rtol=1e-4, atol=0)


def test_a_moving_average_starts_as_the_network_and_is_none_of_its_parameters():
    network = nn.Linear(3, 2)
    average = MovingAverage(network)
    assert_equal_states(dict(average.module.state_dict()), dict(network.state_dict()))
    assert not any(p.requires_grad for p in average.parameters()) and all(p.requires_grad for p in network.parameters())
    before = snapshot(average)
    network.weight.data.add_(1)
    assert not moved(average, before)


@pytest.mark.parametrize("unless", [None, False, True])
def test_a_moving_average_is_updated_unless_told_otherwise(unless):
    network = nn.Linear(3, 2)
    average = MovingAverage(network)
    before = snapshot(average.module)
    for value in network.parameters():
        value.data.normal_()
    average.update(network, keep=0.75, unless=unless if unless is None else torch.tensor(unless))
    if unless:
        assert_equal_states(dict(average.module.state_dict()), before)
    else:
        want = {name: 0.75 * before[name] + 0.25 * value for name, value in network.state_dict().items()}
        torch.testing.assert_close(dict(average.module.state_dict()), want)


class Norms(pl.Callback):
    """Keep the parts that each step moved and the norm of its gradient, which Adam has unscaled."""

    def __init__(self) -> None:
        self.steps: list[tuple[set[str], float]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: ImageModule, *_) -> None:
        self.before = snapshot(module)

    def on_train_batch_end(self, trainer: pl.Trainer, module: ImageModule, *_) -> None:
        norm = nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
        self.steps.append((moved(module, self.before), norm.item()))


def test_fp16_clips_the_unscaled_gradient_and_skips_a_poisoned_step(trained):
    """Lightning takes bf16 for 16-mixed on a CPU, so the gradient scaler is given as a plugin."""
    plugin, norms = MixedPrecision("16-mixed", "cpu"), Norms()
    scale = plugin.scaler.get_scale()
    module = module_of(trained, "vae", 4, gradient_clip=1e-3)
    fit(module, portraits(trained), Poison(2 * STEP), norms, plugins=[plugin])
    assert [parts for parts, _ in norms.steps] == [{"vae"}, {"vae"}, set(), {"vae"}]
    assert all(norm == pytest.approx(1e-3, rel=1e-3) for parts, norm in norms.steps if parts)
    assert module.skips.tolist() == [1, 0] and plugin.scaler.get_scale() == scale / 2


def test_an_average_over_processes_is_one_message_without_a_barrier(monkeypatch):
    sent = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda values: sent.append(values) or values.mul_(3))
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "barrier", lambda *_, **__: pytest.fail("waited"))
    values = torch.tensor([2.0, -4.0])
    assert average_over_processes(values).tolist() == [3.0, -6.0] and sent[0] is values
