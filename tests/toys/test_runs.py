"""The toys as runs of train.py: configs, metrics, resuming, and what they refuse."""

import json
from pathlib import Path

import pytest
import torch
import yaml

import train
from degrain.models.core.errors import InputError
from degrain.models.inference.pipeline import load_vae
from degrain.models.toys import ToyGANModule, ToyGridModule, ToyMixtureModule, ToyTwinsModule, ToyVectorsModule

CONFIGS = Path(__file__).parent.parent.parent / "configs"


def options(root: Path, *more: str) -> list[str]:
    return [f"--runs={root}", "--wandb=off", "--trainer.accelerator=cpu", "--trainer.devices=1", *more]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("toy_*.yaml")), ids=lambda path: path.stem)
def test_every_toy_config_says_its_command_and_its_name(path):
    text = path.read_text()
    assert text.startswith(f"# python train.py fit -c configs/{path.name}\n")
    assert yaml.safe_load(text)["name"] == path.stem


def test_a_run_leaves_its_metrics_and_goes_on_as_if_never_stopped(tmp_path, capsys):
    few = ["fit", "-c", str(CONFIGS / "toy_gaussian.yaml"), "--data.batch_size=16", "--model.validate_every=64"]
    whole = [*few, "--model.budget=192", "--model.decay=0"]
    train.main([*whole, *options(tmp_path, "--name=whole")])
    assert "max_error_abc" in capsys.readouterr().out
    train.main([*few, "--model.budget=64", "--model.decay=0", *options(tmp_path, "--name=parts")])
    train.main([*whole, *options(tmp_path, "--name=parts", "--ckpt_path=last")])
    one, other = (torch.load(tmp_path / n / "last.ckpt", weights_only=True)["state_dict"] for n in ("whole", "parts"))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)
    metrics = json.loads((tmp_path / "whole/metrics.json").read_text())
    assert {"toy/max_error_abc", "toy/max_error_abc_sampled", "toy/beta_0_b", "images_seen"} < set(metrics)
    with pytest.raises(InputError, match="is a toy's"):
        load_vae(tmp_path / "whole/last.ckpt")
    with pytest.raises(SystemExit):
        train.main(["test", *few[1:], *options(tmp_path, "--name=whole")])
    assert "test: ToyGridModule has no held-out images" in capsys.readouterr().err
    with pytest.raises(SystemExit):  # other data than the checkpoint's
        train.main(
            [*whole, "--data.std=[1,2,4]", *options(tmp_path, "--name=parts", "--ckpt_path=last", "--model.budget=256")]
        )
    assert "the checkpoint's data were" in capsys.readouterr().err


@pytest.mark.parametrize(
    "call, reason",
    [
        (lambda: ToyGridModule(betas=[1, -0.5]), "beta = -0.5"),
        (lambda: ToyGridModule(start=0), "a start off 0"),
        (lambda: ToyVectorsModule(std=[0.0]), "data std t = 0"),
        (lambda: ToyVectorsModule(std=[1, 2], kl_weight=[1, 1, 1]), "lists of one length"),
        (lambda: ToyVectorsModule(sigma="shared", kl_weight=[0.5]), "KL weight = 0.5 with a learned sigma"),
        (lambda: ToyVectorsModule(sigma="pixel", floor=1.0), "floor 1.0"),
        (lambda: ToyGANModule(penalty_weight=-1.0), "penalty_weight"),
        (lambda: ToyMixtureModule(penalty_weight=-1.0), "penalty_weight"),
        (lambda: ToyMixtureModule(std_start=0.001), "std_floor < std_start"),
        (lambda: ToyTwinsModule(32, beta=0.0), "beta = 0"),
    ],
)
def test_invalid_input_is_refused_with_the_reason(call, reason):
    with pytest.raises(InputError, match=reason):
        call()
