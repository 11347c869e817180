"""Values of a run: which are there, and what they are means of."""

import json
import math

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from degrain.data.datamodule import Portraits
from degrain.data.drawing import REGIONS
from degrain.models.training.image_module import ImageModule
from tests.training.recipes import STEP, fit, gan, portraits, vae

TERMS = {
    "vae": {"distortion", "rate", "bits_per_dimension", "squared_error", "std", "at_floor"},
    "gan": {"margin", "d_loss", "g_loss", "r1", "r2", "spread", "variance_ratio"},
}
DIAGNOSTICS = {"rmse", "active_units", "prior_gap", "marginal_variance", "marginal_variance_gap"}
DIAGNOSTICS |= {f"coverage_{share}" for share in (50, 90, 99)} | {f"{k}/{r}" for k in ("std", "rmse") for r in REGIONS}
HELD_OUT = {
    "vae": TERMS["vae"] | DIAGNOSTICS | {"rate_fitted"},
    "gan": {"margin", "margin_train", "standardised_error", "standardised_error_of_data"}
    | {f"{name}{of}" for name in ("variance_ratio", "shift") for of in ("", *(f"/{region}" for region in REGIONS))},
}


@pytest.mark.parametrize("stage", ["vae", "gan"])
def test_every_value_has_its_path_in_metrics_json(trained, stage):
    metrics = json.loads((getattr(trained, stage) / "metrics.json").read_text())
    norms = {"vae": ["gradient_norm"], "gan": ["d_gradient_norm", "g_gradient_norm"]}[stage]
    paths = {f"train/{name}" for name in (*TERMS[stage], "skipped_steps", "learning_rate", *norms)}
    paths |= {f"val/{name}" for name in HELD_OUT[stage]}
    assert metrics.keys() == paths | {"images_seen"}
    assert all(math.isfinite(value) for value in metrics.values())


def held_out(data: Portraits) -> Tensor:
    return torch.from_numpy(data.datasets["valid"].arrays["image"].copy()).permute(0, 3, 1, 2).float() / 255


def test_held_out_values_are_means_over_images_and_not_over_batches(trained):
    data = portraits(trained)  # 20 held-out images in batches of 12 and 8
    module = fit(vae(), data)
    x = held_out(data)
    mean = module.pipeline().reconstruct(module.schedule.seed, range(20), x)["mean"]
    got, want = module.trainer.callback_metrics, (mean - x).square().mean()
    torch.testing.assert_close(got["val/squared_error"], want, rtol=1e-5, atol=0)
    torch.testing.assert_close(got["val/rmse"], want.sqrt(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("count", [5, 12, 15, 100])
def test_the_variance_ratio_is_over_the_first_images_whatever_the_batches(trained, monkeypatch, count):
    data, seen = portraits(trained), []
    module = gan(trained, budget=STEP, ratio_images=count, ratio_draws=4)
    draws = module.ema.module.draws

    def counted(noise: Tensor, p) -> Tensor:
        seen.append(tuple(noise.shape[:2]))
        return draws(noise, p)

    monkeypatch.setattr(module.ema.module, "draws", counted)
    fit(module, data)
    assert all(k == 4 for k, _ in seen) and sum(b for _, b in seen) == min(count, 20)
    assert module.trainer.callback_metrics["val/variance_ratio"] > 0


def test_the_variance_ratio_is_there_from_the_first_validation(trained):
    class First(pl.Callback):
        values: dict[str, float] | None = None

        def on_validation_end(self, trainer: pl.Trainer, module: ImageModule) -> None:
            self.values = self.values or {name: float(value) for name, value in trainer.callback_metrics.items()}

    first = First()
    fit(gan(trained, budget=4 * STEP, validate_every=STEP), portraits(trained), first)
    assert first.values["val/variance_ratio"] >= 0 and first.values["train/variance_ratio"] >= 0


def test_the_margins_of_training_and_held_out_images_are_one_quantity(trained):
    """Of the same images they are the same number, and it is that of dequantised images and of G itself."""
    data = portraits(trained)
    data.setup("fit")
    data.datasets["train"] = data.datasets["valid"]
    data.setup = lambda stage: None
    module = fit(gan(trained, budget=4 * STEP), data)
    found = module.trainer.callback_metrics
    torch.testing.assert_close(found["val/margin"], found["val/margin_train"], rtol=1e-5, atol=1e-7)
    batch = {"image": torch.from_numpy(data.datasets["valid"].arrays["image"].copy()).permute(0, 3, 1, 2)}
    scene = module.held_out_scene(batch | {"index": torch.arange(20)})
    levels = (scene.real * scene.p.std + scene.p.mean) * 255
    assert (levels - batch["image"]).abs().max() < 0.51 and (levels - batch["image"]).abs().mean() > 0.2
    with torch.no_grad():
        margin = module.margins(scene)["margin"].mean()
    torch.testing.assert_close(found["val/margin"], margin, rtol=1e-4, atol=1e-6)
