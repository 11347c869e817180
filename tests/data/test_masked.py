"""Test photographs with masks: their images, their merged regions, and refusals."""

import numpy as np
import pytest

from degrain.data.masked import CLASSES, REGIONS, MaskedSource
from degrain.models.core.errors import InputError


def masked(path, count=3, side=8, **replaced):
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    masks = np.tile(np.array([0, 4, 5, 255], np.uint8), (count, side, side // 4))
    np.savez(path, **({"images": images, "masks": masks} | replaced))
    return images, masks


def test_masked_images_come_with_merged_classes(tmp_path):
    images, _ = masked(tmp_path / "faces.npz")
    source = MaskedSource(tmp_path / "faces.npz")
    assert list(source.items("test")) == [0, 1, 2]
    read = source.read(1, 8)
    assert (read["image"] == images[1]).all()
    eyes = REGIONS.index("eyes")
    assert read["regions"][0].tolist() == [REGIONS.index("background"), eyes, eyes, 255] * 2
    assert source.read(1, 4)["image"].shape == (4, 4, 3)


def test_every_class_of_the_masks_belongs_to_one_region():
    assert sorted(c for classes in CLASSES.values() for c in classes) == list(range(19))


@pytest.mark.parametrize(
    "replaced, reason",
    [
        ({"masks": np.zeros((3, 4, 4), np.uint8)}, "must be uint8, .N, S, S, 3. and .N, S, S."),
        ({"images": np.zeros((3, 8, 8, 3), np.float32)}, "must be uint8"),
    ],
)
def test_masked_images_of_the_wrong_form_are_refused(tmp_path, replaced, reason):
    masked(tmp_path / "faces.npz", **replaced)
    with pytest.raises(InputError, match=reason):
        MaskedSource(tmp_path / "faces.npz").items("test")


def test_masked_images_are_for_a_test_alone_and_a_wrong_file_is_named(tmp_path):
    masked(tmp_path / "faces.npz")
    for split in ("train", "valid"):
        with pytest.raises(InputError, match="for `test` only"):
            MaskedSource(tmp_path / "faces.npz").items(split)
    (tmp_path / "not.npz").write_text("<html>")
    for name in ("absent.npz", "not.npz"):
        with pytest.raises(InputError, match=name):
            MaskedSource(tmp_path / name).items("test")
    with pytest.raises(InputError, match="absent.npz: No such file or directory; correct --data.root"):
        MaskedSource(tmp_path / "absent.npz").fingerprint("test")
