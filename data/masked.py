"""Read photographs with masks from one .npz file, to measure by region: CelebAMask-HQ's classes, merged."""

import json
import zipfile
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from degrain.data.decode import ENLARGED
from degrain.data.files import root_tag, shown, slug
from degrain.models.core.errors import InputError

CLASSES = {
    "background": (0,),
    "skin": (1,),
    "nose": (2,),
    "glasses": (3,),
    "eyes": (4, 5),
    "brows": (6, 7),
    "ears": (8, 9, 15),
    "mouth": (10, 11, 12),
    "hair": (13,),
    "hat": (14,),
    "neck": (16, 17),
    "cloth": (18,),
}
"""Region -> the classes of CelebAMask-HQ that it merges. Pixels outside the photograph belong to no region."""

REGIONS = tuple(CLASSES)


class MaskedSource:
    """Provide `images` (N, S, S, 3) and `masks` (N, S, S), uint8, of one .npz file, to measure but not to train on."""

    def __init__(self, path: str) -> None:
        self.path, self.converted = Path(path), []
        self.name = f"masked-{slug(self.path.resolve().stem)}-{root_tag(self.path)}"

    @cached_property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return images (N, S, S, 3) and masks (N, S, S), uint8."""
        try:
            with np.load(self.path, allow_pickle=False) as file:
                images, masks = file["images"], file["masks"]
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            wanted = "give --data.root a .npz file with images (N, S, S, 3) and masks (N, S, S), uint8"
            raise InputError(f"masked images {shown(self.path)}: {error}; {wanted}") from None
        if images.shape != (*masks.shape, 3) or images.dtype != np.uint8 or masks.dtype != np.uint8:
            found = f"images {images.dtype} {images.shape} and masks {masks.dtype} {masks.shape}"
            raise InputError(
                f"masked images {shown(self.path)}: {found}; they must be uint8, (N, S, S, 3) and (N, S, S)"
            )
        return images, masks

    def items(self, split: str) -> range:
        """Return the numbers of the images. InputError for another split than "test": nothing is chosen on them."""
        if split != "test":
            raise InputError(
                f"masked images {shown(self.path)}: for `test` only; train and choose on a folder or CelebA"
            )
        return range(len(self.arrays[0]))

    def fingerprint(self, split: str) -> str:
        """Return the classes and the file's size and time as one line of JSON."""
        try:
            about = self.path.stat()
        except OSError as error:
            raise InputError(f"masked images {shown(self.path)}: {error.strerror}; correct --data.root") from None
        return json.dumps(["masked", CLASSES, about.st_size, about.st_mtime_ns])

    def read(self, item: int, size: int) -> dict[str, np.ndarray]:
        """Return image `item`, uint8: "image" (size, size, 3), "regions" (size, size), where 255 is none of REGIONS."""
        images, masks = self.arrays
        image, mask = Image.fromarray(images[item]), Image.fromarray(masks[item])
        if min(image.size) < size:
            self.converted.append(ENLARGED)
        lookup = np.full(256, 255, np.uint8)
        for region, classes in enumerate(CLASSES.values()):
            lookup[list(classes)] = region
        return {
            "image": np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)),
            "regions": lookup[np.asarray(mask.resize((size, size), Image.Resampling.NEAREST))],
        }

    def remarks(self) -> list[str]:
        """Return nothing: every image is used."""
        return []
