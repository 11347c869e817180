"""DINOv2 as feature network, with random weights."""

import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from degrain.models.core.errors import InputError
from degrain.models.evaluation.features import feature_net
from tests.evaluation.test_features import close, random_images


@pytest.fixture(scope="module")
def dino_weights(tmp_path_factory) -> Path:
    """Write weights as DINOv2 releases them: positions of 518 pixels and a token of the training."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    state = timm.create_model("vit_small_patch14_dinov2", num_classes=0).state_dict()
    assert state["pos_embed"].shape == (1, 1 + 37 * 37, 384)
    path = tmp_path_factory.mktemp("dinov2") / "weights.pth"
    torch.save(state | {"mask_token": torch.zeros(1, 384)}, path)
    return path


def test_dinov2_is_timms_class_token_of_normalised_images_of_224_pixels(dino_weights, tmp_path):
    net, levels = feature_net("dinov2", dino_weights), random_images(2, 224)
    state = torch.load(dino_weights, weights_only=True)
    del state["mask_token"]
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    assert feature_net("dinov2", tmp_path / "model.safetensors").identity == net.identity
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        close(net(levels), net.net((levels / 255 - mean) / std))
    assert net(levels[..., :64, :64]).shape == (2, net.dimension) == (2, 384) and net.name == "dinov2"


def test_dinov2_resamples_positions_smoothly(dino_weights):
    state = torch.load(dino_weights, weights_only=True)
    line = torch.linspace(0, 1, 37)[:, None].expand(37, 37).reshape(1, -1, 1).expand(1, -1, 384)
    state["pos_embed"] = torch.cat([torch.full((1, 1, 384), 7.0), line], 1)
    torch.save(state, path := dino_weights.with_name("line.pth"))
    found = feature_net("dinov2", path).net.pos_embed[0, :, 0]
    assert found[0] == 7
    close(found[1:].reshape(16, 16)[:, 3], ((torch.arange(16) + 0.5) * 37 / 16.1 - 0.5) / 36, atol=0.02)


def test_dinov2_without_its_weights_is_refused(tmp_path, dino_weights):
    with pytest.raises(InputError, match="dinov2: brings no weights; give the file by weights"):
        feature_net("dinov2")
    with pytest.raises(InputError, match="dinov2: no weights .*gone.pth"):
        feature_net("dinov2", tmp_path / "gone.pth")
    for name, content in {"x.pth": b"<html>", "x.safetensors": b"<html>"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"dinov2: weights .*{name} cannot be read"):
            feature_net("dinov2", tmp_path / name)
    for state in (
        {"weight": torch.zeros(2)},
        {"cls_token": torch.zeros(1, 1, 384), "pos_embed": torch.zeros(1, 5, 384)},
    ):
        torch.save(state, tmp_path / "other.pth")
        with pytest.raises(InputError, match="other.pth holds the weights of another network"):
            feature_net("dinov2", tmp_path / "other.pth")


def test_dinov2_without_timm_says_so(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="dinov2: no package timm; pip install timm"):
        feature_net("dinov2", tmp_path / "weights.pth")
