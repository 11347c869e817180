"""Convolutional VAEs on images: the twins, and collapse at a fixed std."""

import pytest
import pytorch_lightning as pl
import torch

from degrain.data.datamodule import Portraits
from degrain.models.toys import CollapseModule, ToyTwinsModule
from degrain.models.vae.network import VAEConfig
from tests.tiny import NET
from tests.toys.tools import steps, train_on


def test_twins_take_one_path_with_the_density_and_two_with_the_bin_likelihood(tmp_path):
    """Only float32 rounding and Adam's epsilon separate them: tolerance 1e-4 of the distance from the start."""

    class Noise(pl.LightningDataModule):
        def train_dataloader(self):
            rng = torch.Generator().manual_seed(0)
            images = torch.randint(0, 256, (12, 4, 3, 32, 32), generator=rng, dtype=torch.uint8)
            return torch.utils.data.DataLoader([{"image": batch} for batch in images], batch_size=None)

    pyramid = VAEConfig().encoder.__class__(**{**NET, "widths": (8, 8)})
    module = ToyTwinsModule(32, VAEConfig(4, pyramid, pyramid), warmup=0.0, decay=0.0, **steps(12, 4))
    found = train_on(module, Noise(), tmp_path).metrics()
    assert found["distance_density"] < 1e-4
    assert found["distance_bin"] > 0.05


def test_the_collapse_sweep_counts_live_latents_beside_the_eigenvalues_above_the_variance(tmp_path):
    pyramid = VAEConfig().encoder.__class__(**{**NET, "widths": (8, 8)})
    net, data = VAEConfig(4, pyramid, pyramid), Portraits(64, 4, size=32, batch_size=8, cache=str(tmp_path))
    torch.manual_seed(0)
    module = CollapseModule(32, net, std=[20.0, 0.02], images=64, warmup=0.02, **steps(40, 8))
    found = train_on(module, data, tmp_path)
    assert found.std.tolist() == pytest.approx([0.02, 20.0])
    eigenvalues = found.measured()["eigenvalues"]
    flat = torch.cat([b["image"] for b in data.encode_dataloader(64)]).double().flatten(1) / 255
    expected = torch.linalg.eigvalsh(torch.cov(flat.T)).flip(0)[:4]
    torch.testing.assert_close(eigenvalues, expected, rtol=1e-3, atol=0)
    live, rate = found.theory(eigenvalues)
    assert live.tolist() == [4, 0] and rate[1] == 0
    assert found.metrics()["live_at_0.02"] > found.metrics()["live_at_20"] == 0
    assert (tmp_path / "collapse.png").exists()
