"""Write JPEG files in CelebA's official layout: its own photographs or drawn portraits, also enlarged."""

import sys
from pathlib import Path

from PIL import Image

from degrain.data.portraits import PortraitSource

VALID, DISTINCT = 16, 100  # images to validate on; different ones, where they are drawn or enlarged
LISTS = {
    "list_attr_celeba.txt": True,
    "identity_CelebA.txt": False,
    "list_bbox_celeba.txt": True,
    "list_landmarks_align_celeba.txt": True,
}
"""File that torchvision reads -> whether it has a header."""


def portraits(folder: Path) -> list[Path]:
    """Draw portraits, 178x218, and write them as JPEG."""
    source = PortraitSource()
    files = [folder / f"{number}.jpg" for number in range(DISTINCT)]
    for number, file in enumerate(files):
        Image.fromarray(source.read(number, 256)["image"]).crop((39, 19, 39 + 178, 19 + 218)).save(file)
    return files


def enlarged(picture: Path, scale: int, file: Path) -> Path:
    """Write a picture enlarged."""
    with Image.open(picture) as image:
        image.resize((scale * image.width, scale * image.height), Image.Resampling.BICUBIC).save(file)
    return file


def write_celeba(folder: Path, root: str | None, count: int, scale: int) -> None:
    """Write CelebA's layout with `count` images to train on and VALID to validate on; portraits if there is no root.

    There are fewer different images if the root has fewer, or they are enlarged or drawn.
    """
    images = folder / "celeba" / "img_align_celeba"
    images.mkdir(parents=True)
    names = [f"{number:06}.jpg" for number in range(1, count + VALID + 1)]
    pictures = (
        sorted(Path(root, "img_align_celeba").resolve().glob("*.jpg"))[: len(names)] if root else portraits(folder)
    )
    if not pictures:
        sys.exit(f"error: no images {root}/img_align_celeba/*.jpg")
    if scale > 1:
        pictures = [enlarged(picture, scale, folder / f"large{picture.name}") for picture in pictures[:DISTINCT]]
    files = [pictures[number % len(pictures)] for number in range(len(names))]
    for name, file in zip(names, files, strict=True):
        (images / name).symlink_to(file)
    partition = "".join(f"{name} {int(number >= count)}\n" for number, name in enumerate(names))
    (images.parent / "list_eval_partition.txt").write_text(partition)
    for file, header in LISTS.items():
        (images.parent / file).write_text("0\nvalue\n" * header + "".join(f"{name} 1\n" for name in names))
