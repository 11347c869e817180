"""Fixtures of all tests: one thread, and one tiny run of each stage that is trained once."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from degrain.models.inference.pipeline import load_vae
from degrain.models.training import adversarial, device
from degrain.models.training.cli import CLI
from degrain.models.vae.latent_prior import Mixture
from tests import quick, tiny


@dataclass(frozen=True)
class Trained:
    """Finished runs below `root`, tracked offline; tests read them and write elsewhere."""

    root: Path
    vae: Path
    gan: Path


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Use one thread: small tensors gain nothing by more, and one thread adds in one order."""
    os.environ["OMP_NUM_THREADS"] = "1"  # train.py and sample.py do not choose another number
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def quick_pictures() -> Iterator[None]:
    """Draw little, in every test that does not ask for `figures`."""
    with quick.pictures():
        yield


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw every figure."""
    monkeypatch.setattr(Figure, "savefig", quick.DRAW)


@pytest.fixture(scope="session", autouse=True)
def one_parser() -> Iterator[None]:
    """Build the parser of each subcommand once: the same for every command line, it takes a tenth of a second."""
    made: dict[tuple[str, ...], dict[str, Any]] = {}
    set_up = CLI.setup_parser

    def set_up_once(self: CLI, *args: Any) -> None:
        key = tuple(self.subcommands())
        if key not in made:
            before = set(vars(self))
            set_up(self, *args)
            made[key] = {name: value for name, value in vars(self).items() if name not in before}
        vars(self).update(made[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CLI, "setup_parser", set_up_once)
        yield


@pytest.fixture(scope="session", autouse=True)
def bf16_stays() -> Iterator[None]:
    """Train in bf16 where a test asks for it, on every processor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "cpu_emulates_bf16", lambda: False)
        yield


@pytest.fixture
def small_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the discriminator on features a small frozen network instead of the EfficientNet, which takes seconds."""
    monkeypatch.setattr(adversarial, "EfficientNetLevels", tiny.Levels)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Seed the global stream, which new networks draw their weights from: no test depends on those before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_process_group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """End the process group that a run with a strategy of several processes leaves; forked ones would wait for it.

    Lightning also leaves its variables, by which a command that a later test starts would take itself for one of
    several processes, and wait for the others for ever.
    """
    for variable in ("LOCAL_RANK", "RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(variable, "")  # remembered, so that it is put back
        monkeypatch.delenv(variable)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Train a run of each stage on portraits."""
    root = tmp_path_factory.mktemp("trained")
    return Trained(root, *(tiny.run(root, stage, "--wandb", "offline") for stage in ("vae", "gan")))


@pytest.fixture(scope="session")
def learned(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the checkpoint of stage 1 with a learned prior in it."""
    checkpoint = torch.load(trained.vae / "last.ckpt", weights_only=True)
    _, _, prior = load_vae(trained.vae / "last.ckpt")
    prior.mixture = Mixture(2, 4)
    prior.mixture.means += torch.tensor([[0.5], [-1.0]])
    checkpoint["state_dict"] |= {f"prior.{name}": value for name, value in prior.state_dict().items()}
    path = tmp_path_factory.mktemp("learned") / "last.ckpt"
    torch.save(checkpoint, path)
    return path


def pytest_configure(config: pytest.Config) -> None:
    """Ignore warnings that train.py ignores too, and one about arguments of train.main beside pytest's own."""
    for message in ("LightningCLI's args parameter", ".*LeafSpec", ".*in eval mode"):
        config.addinivalue_line("filterwarnings", f"ignore:{message}")
    config.addinivalue_line("filterwarnings", "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
