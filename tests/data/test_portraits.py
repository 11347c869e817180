"""Test portraits: reproducible, complete, and with exactly the planted noise."""

import numpy as np
import pytest

from degrain.data.portraits import REGIONS, PortraitSource, draw_portrait, planted_std
from degrain.models.core.errors import InputError

NOISE = {name: 0.01 * (1 + i) for i, name in enumerate(REGIONS)}


@pytest.fixture(scope="module")
def faces() -> list[dict[str, np.ndarray]]:
    source = PortraitSource()
    return [source.read(item, 64) for item in source.items("train")[:200]]


@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_shapes_and_types(size):
    face = PortraitSource(noise=NOISE).read(0, size)
    assert {name: array.shape for name, array in face.items()} == {
        "image": (size, size, 3),
        "clean": (size, size, 3),
        "regions": (size, size),
    }
    assert all(array.dtype == np.uint8 for array in face.values())
    image, regions = draw_portrait(np.random.default_rng(0), size)
    assert image.dtype == np.float32 and 0 <= image.min() and image.max() <= 1
    assert regions.max() < len(REGIONS)


def test_face_depends_on_seed_and_item_alone():
    one, other = PortraitSource(count=10, noise=NOISE), PortraitSource(count=20, valid_count=5, noise=NOISE)
    other.read(4, 32)
    face, again = one.read(3, 32), other.read(3, 32)
    assert all(np.array_equal(face[name], again[name]) for name in ("image", "clean", "regions"))
    assert not np.array_equal(face["clean"], one.read(4, 32)["clean"])
    assert not np.array_equal(face["clean"], PortraitSource(seed=1, noise=NOISE).read(3, 32)["clean"])


def test_same_person_at_every_size():
    def coarse(item, size):
        image = PortraitSource().read(item, size)["image"].astype(np.float64)
        return image.reshape(8, size // 8, 8, size // 8, 3).mean((1, 3)).ravel()  # texture averages out

    same = [np.corrcoef(coarse(item, 64), coarse(item, 32))[0, 1] for item in range(30)]
    strangers = [np.corrcoef(coarse(item, 64), coarse(item + 1, 32))[0, 1] for item in range(30)]
    assert min(same) > 0.9 > 0.6 > np.mean(strangers)


def test_splits_are_disjoint():
    source = PortraitSource(count=1000, valid_count=100)
    splits = [source.items(split) for split in ("train", "valid", "test")]
    assert [len(split) for split in splits] == [1000, 100, 100]
    assert len(set().union(*splits)) == 1200


def test_fingerprint_changes_with_every_option():
    options = ({}, {"count": 3}, {"seed": 1}, {"noise": {"hair": 0.1}}, {"noise": {"hair": 0.05}})
    assert len({PortraitSource(**each).fingerprint("train") for each in options}) == len(options)
    assert PortraitSource().fingerprint("test") == PortraitSource(count=3).fingerprint("test")
    assert PortraitSource().name == "portraits-s0" != PortraitSource(noise={"hair": 0.1}).name


def test_every_face_is_complete(faces):
    seen = np.stack([np.bincount(face["regions"].ravel(), minlength=len(REGIONS)) > 0 for face in faces])
    share = dict(zip(REGIONS, seen.mean(0), strict=True))
    assert share["background"] == share["skin"] == 1
    assert min(share[name] for name in ("hair", "eyes", "brows", "mouth", "clothes")) > 0.95
    assert 0.1 < share["glasses"] < 0.4


def test_skin_is_smooth_and_hair_and_background_are_not(faces):
    """Compare the median local contrast |a - b - c + d| over 2x2 squares of each region; shading has none."""
    contrast = {}
    for i, name in enumerate(REGIONS):
        values = []
        for face in faces:
            a, b, c, d = _corners(face["image"].astype(np.float64))
            values.append(np.abs(a - b - c + d)[_corners(face["regions"] == i).all(0)])
        contrast[name] = np.median(np.concatenate(values))
    assert contrast["skin"] <= 2 and min(contrast["hair"], contrast["background"]) > 3 * contrast["skin"]


def _corners(array: np.ndarray) -> np.ndarray:
    """Return the four pixels of every 2x2 square, (4, H - 1, W - 1, ...)."""
    return np.stack([array[:-1, :-1], array[:-1, 1:], array[1:, :-1], array[1:, 1:]])


def test_planted_noise_has_the_known_std_and_is_white():
    source = PortraitSource(noise=NOISE)
    faces = [source.read(item, 64) for item in range(300)]
    regions = np.stack([face["regions"] for face in faces])
    residual = np.stack([face["image"].astype(np.float64) - face["clean"] for face in faces])
    for i, std in enumerate(NOISE.values()):
        expected = np.sqrt((255 * std) ** 2 + 1 / 12)  # rounding to 8 bits adds 1/12 of a squared level
        assert residual[regions == i].std() == pytest.approx(expected, rel=0.02)
    white = residual / (255 * planted_std(regions, NOISE)[..., None])
    assert abs(white.mean()) < 0.005
    for axis in (1, 2, 3):  # neighbours above each other, side by side, and in colour
        here, there = np.moveaxis(white, axis, 0)[1:], np.moveaxis(white, axis, 0)[:-1]
        assert abs((here * there).mean()) < 0.005


def test_noise_stays_within_its_region():
    face = PortraitSource(noise={"hair": 0.1}).read(0, 64)
    changed = (face["image"] != face["clean"]).any(-1)
    hair = face["regions"] == REGIONS.index("hair")
    assert not changed[~hair].any() and changed[hair].mean() > 0.99
    assert np.array_equal(planted_std(face["regions"], {"hair": 0.1}), np.float32(0.1) * hair)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count 0 is not in 1"),
        ({"valid_count": -1}, "valid_count -1 is not in 1"),
        ({"seed": -1}, "seed -1 is not in 0"),
        ({"noise": {"nose": 0.1}}, "unknown region 'nose'; choose from background, skin"),
        ({"noise": {"hair": 0.2}}, "noise 0.2 on hair is not in 0..0.1"),
        ({"noise": {"hair": float("nan")}}, "noise nan on hair"),
    ],
)
def test_bad_options_are_refused_in_one_line(options, message):
    with pytest.raises(InputError, match=message) as refusal:
        PortraitSource(**options)
    assert "\n" not in str(refusal.value)


def test_bad_split_and_size_are_refused():
    with pytest.raises(InputError, match="no split 'dev'; choose from train, valid, test"):
        PortraitSource().items("dev")
    with pytest.raises(InputError, match="size 8 is below 16"):
        PortraitSource().read(0, 8)
