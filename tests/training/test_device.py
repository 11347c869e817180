"""What a run asks of its device: compiled networks, training images on a GPU, precision of products, cuDNN."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch._dynamo
import yaml
from jsonargparse import Namespace
from torch._dynamo.utils import counters

from degrain.data import datamodule
from degrain.models.core.randomness import Noise
from degrain.models.training import device
from degrain.models.training.image_module import ImageModule
from degrain.models.training.trainer_options import trainer_options
from degrain.models.vae.flow import FlowConfig
from degrain.models.vae.network import VAEConfig
from degrain.models.vae.pixel_decoder import PixelConfig
from tests import tiny
from tests.training.recipes import TINY, attached, fit, module_of, portraits, vae

ROOMY, FULL = 2**40, 2**10  # bytes of a GPU's memory
TOY = Path(__file__).parents[2] / "configs/toy_gaussian.yaml"

# --- compiled networks


@pytest.fixture(autouse=True)
def settings_of_torch() -> Iterator[None]:
    """Put back what a run sets for the whole process."""
    optimize_ddp, precision = torch._dynamo.config.optimize_ddp, torch.get_float32_matmul_precision()
    yield
    torch._dynamo.config.optimize_ddp = optimize_ddp
    torch.set_float32_matmul_precision(precision)
    torch._dynamo.reset()
    counters.clear()


def compiled(module: ImageModule, backend: str) -> ImageModule:
    """Compile the module's networks without graph breaks, and return it."""
    module.compile(fullgraph=True, dynamic=False, backend=backend)
    return module


class Graphs(pl.Callback):
    """Count the compiled graphs after every step and at the end."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def count(self, *_: Any) -> None:
        self.counts.append(counters["stats"]["unique_graphs"])

    on_train_batch_end = on_train_end = count


def test_compiled_networks_of_stage_2_train_alike(trained):
    """With the backend in which a compiled D has no second derivative; validations compile nothing."""
    graphs = Graphs()
    eager = fit(module_of(trained, "gan", 3), portraits(trained))
    ours = fit(compiled(module_of(trained, "gan", 3), "aot_eager"), portraits(trained), graphs)
    assert 0 < graphs.counts[0] < graphs.counts[1] == graphs.counts[2] == graphs.counts[3]
    assert ours.state_dict().keys() == eager.state_dict().keys()
    torch.testing.assert_close(dict(ours.state_dict()), dict(eager.state_dict()), rtol=1e-4, atol=1e-6)


def test_compiled_networks_of_stage_1_have_the_same_gradients_with_all_their_parts():
    flow = FlowConfig(1, 8)
    net = VAEConfig(4, TINY, TINY, posterior=flow, prior=flow, pixels=PixelConfig(blocks=1))
    x, found = torch.randint(0, 256, (4, 3, 32, 32)) / 255, []
    for change in (lambda module: module, lambda module: compiled(module, "eager")):
        module = change(attached(vae(net)))
        loss, _ = module.loss(x, Noise(0, 0))
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in module.parameters() if p.grad is not None)])
    assert counters["stats"]["unique_graphs"] == 3  # encoder, decoder, likelihood
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_compiled_networks_train_alike_under_ddp(trained, root, monkeypatch, capsys):
    monkeypatch.setattr(device, "BACKEND", "eager")
    options = ("--compile", "true", "--trainer.strategy", "ddp", "--float32_matmul_precision", "highest")
    ours, theirs = (tiny.checkpoint(run) for run in (tiny.run(root, "vae", "--name", "mine", *options), trained.vae))
    assert "compile: the networks" in capsys.readouterr().out
    assert not torch._dynamo.config.optimize_ddp  # it would cut larger networks into parts
    torch.testing.assert_close(ours["state_dict"], theirs["state_dict"], rtol=1e-4, atol=1e-5)


def failing(calls: int) -> Any:
    """Return a backend of torch.compile that fails after so many calls."""

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise RuntimeError("no g++ here\nand more")
        return graph.forward

    return backend


def test_a_machine_without_a_compiler_is_named_before_anything_is_written(root, monkeypatch, capsys):
    monkeypatch.setattr(device, "BACKEND", failing(0))
    error = tiny.error_of(capsys, lambda: tiny.run(root, "vae", "--name", "mine", "--compile", "true"))
    assert "--compile true: nothing can be compiled on this machine (RuntimeError: no g++ here)" in error
    assert not (root / "runs/mine").exists()


def test_a_network_that_cannot_be_compiled_ends_the_run_in_one_line(root, monkeypatch, capsys):
    monkeypatch.setattr(device, "BACKEND", failing(1))
    error = tiny.error_of(capsys, lambda: tiny.run(root, "vae", "--name", "mine", "--compile", "true"))
    assert "--compile true: torch.compile failed (RuntimeError: no g++ here)" in error


def test_a_toy_has_nothing_to_compile(tmp_path, capsys):
    options = ("--runs", str(tmp_path), "--trainer.accelerator", "cpu", "--compile", "true")
    assert "ToyGridModule has no networks on images" in tiny.fit_error(capsys, TOY, *options)


# --- training images on a GPU, for which a CPU stands here


def test_images_that_fit_are_kept_on_the_device_and_a_resumed_run_is_the_same(trained, root, monkeypatch, capsys):
    monkeypatch.setattr(datamodule, "free_memory", lambda device: ROOMY)
    assert tiny.stopped(root, "vae", "Kill", 64, "--checkpoint_minutes", "0") == 130
    tiny.run(root, "vae", "--name", "mine", "--ckpt_path", "last")
    tiny.assert_same_run(root / "runs/mine", trained.vae)
    assert capsys.readouterr().out.count("of the 1024.0 GiB free on the GPU: kept there, and flipped there") == 2


@pytest.mark.parametrize(("free", "share", "kept"), [(ROOMY, 0.25, True), (FULL, 0.25, False), (ROOMY, 0.0, False)])
def test_a_step_in_pieces_is_the_same_wherever_the_images_are(trained, monkeypatch, capsys, free, share, kept):
    host = fit(module_of(trained, "vae", 2), portraits(trained, micro_batch_size=8))
    monkeypatch.setattr(datamodule, "free_memory", lambda device: free)
    data = portraits(trained, micro_batch_size=8, device_share=share, num_workers=1 if kept else 0)
    ours = fit(module_of(trained, "vae", 2), data)
    tiny.assert_equal_states(dict(ours.state_dict()), dict(host.state_dict()))
    said = "kept there, and flipped there" if kept else "each batch is copied there from pinned memory"
    said += "; --data.num_workers 1 has nothing to load\n" if kept else "\n"
    assert capsys.readouterr().out.count(said) == 1
    assert isinstance(data.training_images, datamodule.DeviceImages) == kept


# --- products and cuDNN


@pytest.mark.parametrize(
    ("asked", "emulated", "taken"),
    [
        ("bf16-mixed", True, "32-true"),
        ("16-mixed", True, "32-true"),  # of which Lightning makes bf16 on a CPU
        ("bf16", True, "32-true"),
        ("32-true", True, "32-true"),
        ("bf16-mixed", False, "bf16-mixed"),
    ],
)
def test_a_processor_without_instructions_for_bf16_trains_in_float32(root, monkeypatch, capsys, asked, emulated, taken):
    monkeypatch.setattr(device, "cpu_emulates_bf16", lambda: emulated)
    tiny.run(root, "vae", "--name", "here", "--model.budget=16", "--trainer.precision", asked)
    assert yaml.safe_load((root / "runs/here/config.yaml").read_text())["trainer"]["precision"] == taken
    said = f"trainer.precision: {taken} instead of {asked}, for which this processor has no instructions (far slower)"
    assert (said in capsys.readouterr().out) == (asked != taken)


@pytest.mark.parametrize("accelerator", ["cuda", "gpu", "mps"])
def test_only_a_cpu_is_asked_whether_it_has_bf16(monkeypatch, accelerator):
    monkeypatch.setattr(device, "cpu_emulates_bf16", lambda: True)
    options = Namespace(accelerator=accelerator, precision="bf16-mixed")
    device.avoid_emulation(options)
    assert options.precision == "bf16-mixed"


@pytest.mark.parametrize(("gpu", "taken"), [(True, "bf16-mixed"), (False, "32-true")])
def test_an_accelerator_is_looked_for_where_none_is_named(monkeypatch, gpu, taken):
    monkeypatch.setattr(device, "cpu_emulates_bf16", lambda: True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu)
    options = Namespace(accelerator="auto", precision="bf16-mixed")
    device.avoid_emulation(options)
    assert options.precision == taken


@pytest.mark.parametrize(
    ("kind", "asked", "set_to"),
    [("cpu", None, "highest"), ("cuda", None, "high"), ("cuda", "highest", "highest"), ("cpu", "medium", "medium")],
)
def test_products_on_a_gpu_have_tf32_unless_told_otherwise(kind, asked, set_to):
    line = device.set_products(torch.device(kind), asked)
    assert torch.get_float32_matmul_precision() == set_to
    assert line is None if kind == "cpu" else f"products: {set_to} (--float32_matmul_precision)" in line


@pytest.mark.parametrize(
    ("given", "benchmark"),
    [({}, True), ({"deterministic": True}, None), ({"benchmark": False}, False), ({"benchmark": True}, True)],
    ids=str,
)
def test_cudnn_chooses_by_timing_unless_results_are_to_be_equal(given, benchmark):
    defaults = {name: option.default for name, option in inspect.signature(pl.Trainer).parameters.items()}
    assert trainer_options(defaults | given, Path(), [], [], fits=True)["benchmark"] is benchmark
