"""A user's feature network by its import path: found, tried, and refused in one line when it is wrong."""

import sys
from pathlib import Path

import pytest
import torch

from degrain.models.core.errors import InputError
from degrain.models.evaluation.feature_net import features_of
from degrain.models.evaluation.features import feature_net, feature_nets
from tests.evaluation.test_features import random_images

MODULE = """
import torch
from torch import nn

class Colours(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.drop = nn.Parameter(torch.ones(3)), nn.Dropout()
    def forward(self, images):
        return self.drop(images.double().mean((2, 3)) * self.scale)

def colours():
    return Colours()

def plain():
    def mean(images):
        x = images.half().mean((2, 3))
        images.zero_()
        return x
    return mean

def lazy():
    def later(images):
        from {module}_helper import double
        return double(images.float().mean((2, 3)))
    return later

number = 3
fails = lambda: 1 / 0
returns_none = lambda: None
raises = lambda: lambda images: images @ images.float()
numpy = lambda: lambda images: images.numpy()
maps = lambda: lambda images: images.float()
few = lambda: lambda images: images.float().mean((2, 3))[:1]
integers = lambda: lambda images: images.sum((2, 3))
nans = lambda: lambda images: images.float().mean((2, 3)).log() * torch.nan
empty = lambda: lambda images: images.float().mean((2, 3))[:, :0]
random = lambda: lambda images: torch.rand(len(images), 3)
batchwise = lambda: lambda images: images.float().mean((2, 3)) - images.float().mean()
needs_arguments = lambda size: None
by_size = lambda: lambda images: images.float()[:, 0, 0]
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a module into the current folder, which is not on Python's path; return its name."""
    name = f"eyes_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(MODULE.replace("{module}", name))
    (tmp_path / f"{name}_helper.py").write_text("def double(x):\n    return 2 * x\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def test_a_module_or_a_callable_of_the_current_folder_is_a_network(module):
    images = random_images(3)
    before = images.clone()
    means = images.float().mean((2, 3))
    nets = feature_nets([f"{module}:colours", f"{module}:plain", f"{module}:lazy"])
    for net, factor in zip(nets, (1, 1, 2), strict=True):
        found = features_of(net.train(), images)
        torch.testing.assert_close(found, factor * means, rtol=2e-3, atol=0)
        assert found.dtype == torch.float32 and net.dimension == 3 and not found.requires_grad
    assert images.equal(before)  # `plain` clears its input
    assert [net.name for net in nets] == [f"{module}:colours", f"{module}:plain", f"{module}:lazy"]
    assert len({net.identity for net in nets}) == 3


def test_two_versions_of_a_factory_have_different_identities(module, tmp_path):
    first, again = (feature_net(f"{module}:colours").identity for _ in range(2))
    assert first == again
    source = tmp_path / f"{module}.py"
    source.write_text(source.read_text().replace("torch.ones(3)", "torch.full((3,), 1.5)") + "\n")
    del sys.modules[module]
    second = feature_net(f"{module}:colours").identity
    assert second != first and second.startswith(f"{module}:colours-")


WRONG = {
    "number": "number in .* is of type int, not a function",
    "colors": "no colors in .*; did you mean colours",
    "fails": "the factory fails: ZeroDivisionError: division by zero",
    "returns_none": "the factory returns NoneType, not a callable",
    "needs_arguments": "the factory fails: TypeError: .*size",
    "raises": r"the network on images \(4, 3, 64, 64\) fails: RuntimeError",
    "numpy": r"returns ndarray, not a tensor \(B, D\)",
    "maps": r"features \(4, 3, 64, 64\) of 4 images are not \(B, D\)",
    "empty": r"features \(4, 0\) of 4 images are not",
    "few": "1 rows of features for 4 images",
    "integers": "features of torch.int64; must be floats",
    "nans": "12 of 12 features are not finite",
    "random": "other features at a second call",
    "batchwise": "other features alone than among others",
    "": "must be package.module:factory",
    "a:b": "must be package.module:factory",
}


@pytest.mark.parametrize("attribute", WRONG)
def test_a_wrong_network_is_refused_in_one_line(module, attribute):
    with pytest.raises(InputError, match=WRONG[attribute]) as error:
        feature_net(f"{module}:{attribute}")
    assert f"`{module}:{attribute}`" in str(error.value) and "\n" not in str(error.value)


def test_a_network_of_other_dimension_on_other_images_is_refused(module):
    net = feature_net(f"{module}:by_size")
    with pytest.raises(InputError, match="64 features per image, and 32 on other images"):
        net(random_images(2))


def test_a_module_that_cannot_be_imported_is_refused_in_one_line(module, tmp_path):
    with pytest.raises(InputError, match="no module missing_one neither in .* nor among the installed packages"):
        feature_net("missing_one:net")
    with pytest.raises(InputError, match=rf"no module {module}.deeper"):
        feature_net(f"{module}.deeper:net")
    (tmp_path / f"{module}_needs.py").write_text("import missing_one\n")
    with pytest.raises(InputError, match="its module needs missing_one; install it"):
        feature_net(f"{module}_needs:net")
    (tmp_path / f"{module}_broken.py").write_text("def net(:\n")
    with pytest.raises(InputError, match="cannot be imported: SyntaxError") as error:
        feature_net(f"{module}_broken:net")
    assert "\n" not in str(error.value)
