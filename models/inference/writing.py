"""Files of drawn images: a panel, single images, an array, an animation; drawn and written by one process or several.

Batches come in the order of their images' numbers, one after the other, so that no more than a batch of each process
is in memory, but for a panel and an animation, which are built in memory.
"""

import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as processes
from einops import rearrange
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from degrain.models.core.errors import InputError
from degrain.models.core.files import folder_made, locked, refuse_unwritable, replacing
from degrain.models.inference.drawing import Plan, Rows
from degrain.models.inference.pictures import as_pictures, enlarged, least_scale, panel

PART, LOCK, IMAGES = ".part-of-images-", ".images.lock", "[0-9]" * 6 + ".png"
"""In a folder of single images: names of the folders that they are written in, of the lock, and of the images."""

SOFTWARE = "degrain"  # text of every single image under the name Software: what lacks it is somebody else's

ANIMATIONS = (".gif", ".webp")
MOST_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # of a panel: with more, PIL takes a file for an attack

FRAME_MS = 80  # duration of a frame: 12 a second


@dataclass(frozen=True)
class Look:
    """How pictures look in a file.

    Args:
        row: the only row of a panel, and that of every other file; None for all of a panel and the last one.
        columns: of a panel; None for its lines, or 16.
        scale: enlargement; None for that of a panel or an animation to 96 pixels at least, and for none of images.
        labels: whether a panel has the rows' names and the scale of the std.
    """

    row: str | None = None
    columns: int | None = None
    scale: int | None = None
    labels: bool = True


def check_panel(plan: Plan, side: int, look: Look) -> None:
    """Refuse a panel that PIL would not open again.

    Args:
        plan: what is drawn.
        side: of an image in pixels.
        look: of the panel.

    Raises:
        InputError: it has more than MOST_PIXELS.
    """
    side *= look.scale or least_scale(side)
    pictures = plan.count * (sum(plan.rows.values()) if look.row is None else plan.rows[look.row])
    if pictures * side**2 > MOST_PIXELS:
        said = f"a panel of {pictures:,} pictures of {side}x{side} pixels is too large"
        raise InputError(f"sample: {said}; draw fewer, give a smaller --scale, or end --out in .npz or /")


def is_folder(out: str) -> bool:
    """Return True for a folder, existing or new, which single images are written to."""
    return out.endswith("/") or Path(out).is_dir()


def is_users(path: Path) -> bool:
    """Return True unless a killed call has left this file or folder."""
    return path.name != LOCK and not path.name.startswith(PART)


def save_single(picture: np.ndarray, path: Path) -> None:
    """Write a picture (H, W, 3) as a PNG that says in its text that sample.py has written it."""
    text = PngInfo()
    text.add_text("Software", SOFTWARE)
    Image.fromarray(picture).save(path, pnginfo=text)


def foreign_image(folder: Path) -> Path | None:
    """Return a file that is called as single images are, but was not written by `save_single`; None without one."""
    for path in folder.glob(IMAGES):
        try:
            with Image.open(path) as image:
                own = image.info.get("Software") == SOFTWARE
        except (OSError, ValueError, SyntaxError):
            own = False
        if not own:
            return path
    return None


class Batches:
    """This process's batches, drawn while they are iterated over.

    Args:
        plan: what is drawn.
        batch_size: pictures of a batch.
        rank: number of this process.
        world: number of processes.

    Attributes:
        seconds: that drawing has taken so far.
    """

    def __init__(self, plan: Plan, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.plan, self.rank, self.seconds = plan, rank, 0.0
        self.batches = plan.batches(batch_size, rank, world)
        self.rounds = len(plan.batches(batch_size, 0, world))  # of the process that has most

    def __iter__(self) -> Iterator[tuple[int, Rows]]:
        """Yield (number of the first image, rows on the CPU), with a progress bar if there are several batches."""
        for numbers in tqdm(self.batches, "sampling", unit="batch", disable=self.rank > 0 or self.rounds < 2):
            start = time.perf_counter()
            rows = {name: images.cpu() for name, images in self.plan.draw(numbers).items()}
            self.seconds += time.perf_counter() - start
            yield numbers.start, rows


def write_images(out: str, batches: Batches, look: Look) -> None:
    """Write what the ending of `out` says; print how many images all processes have drawn, and how fast.

    Each process writes its own single images; the first one writes everything else.
    """
    target, plan, first = Path(out), batches.plan, batches.rank == 0
    row = look.row or plan.last_row
    if is_folder(out):
        write_single_images(target, batches, row, look.scale or 1)
    elif target.suffix == ".png":
        drawn = list(in_order(batches, lambda rows: selected(rows, look.row)))
        if first:
            columns = look.columns or plan.line or 16
            rows = {name: torch.cat([part[name] for part in drawn]) for name in drawn[0]}
            with replacing(target) as part:
                panel(rows, columns, scale=look.scale, labels=look.labels).save(part)
    else:
        pictures, count = in_order(batches, lambda rows: row_pictures(rows, row)), plan.count * plan.rows[row]
        if not first:
            list(pictures)  # none, but they are drawn and sent
        elif target.suffix == ".npz":
            write_array(target, pictures, count)
        else:
            write_animation(target, pictures, look.scale)
    seconds = slowest(batches.seconds)
    if first:
        drawn = plan.count * max(plan.rows.values())
        print(f"drawn: {drawn:,} images, {drawn / seconds:.1f} images/s")
        print(f"wrote: {out}")


def selected(rows: Rows, row: str | None) -> Rows:
    """Return one row, all of its pictures if an image has several, such as `denoised 1` and `denoised 2`; or all."""
    if row is None or row in rows:
        return rows if row is None else {row: rows[row]}
    return {name: images for name, images in rows.items() if name.removeprefix(f"{row} ").isdigit()}


def row_pictures(rows: Rows, row: str) -> np.ndarray:
    """Return the 8-bit pictures of one row (N, H, W, 3); those of one image follow each other."""
    images = torch.stack(list(selected(rows, row).values()))  # (K, B, 3, H, W)
    return as_pictures(row, rearrange(images, "k b c h w -> (b k) c h w"))


def in_order(batches: Batches, taken: Callable[[Rows], Any]) -> Iterator[Any]:
    """Yield what is taken of the batches of all processes, in order, on the first one; nothing on the others."""
    own = iter(batches)
    for _ in range(batches.rounds):
        _, rows = next(own, (0, None))
        parts = [None if rows is None else taken(rows)]
        if processes.is_initialized():
            gathered = [None] * processes.get_world_size() if batches.rank == 0 else None
            processes.gather_object(parts[0], gathered)
            parts = gathered or []
        yield from (part for part in parts if part is not None)
    next(own, None)  # ends the progress bar


def slowest(seconds: float) -> float:
    """Return the largest of the processes' seconds, once all have drawn."""
    value = torch.tensor(seconds, dtype=torch.float64)
    if processes.is_initialized():
        processes.all_reduce(value, processes.ReduceOp.MAX)
    return value.item()


def wait() -> None:
    """Wait for the other processes, if there are any."""
    if processes.is_initialized():
        processes.barrier()


def write_array(target: Path, pictures: Iterator[np.ndarray], count: int) -> None:
    """Write `images`, uint8 (count, H, W, 3), as numpy.savez does, batch by batch."""
    with replacing(target) as part, zipfile.ZipFile(part, "w") as file:
        with file.open("images.npy", "w", force_zip64=True) as member:
            begin = next(pictures)
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, *begin.shape[1:])}
            np.lib.format.write_array_header_1_0(member, header)
            for batch in chain([begin], pictures):
                member.write(batch.tobytes())


def write_animation(target: Path, pictures: Iterator[np.ndarray], scale: int | None) -> None:
    """Write one picture a frame, in a loop without end: exact as .webp, in 256 colours a frame as .gif."""
    begin = next(pictures)
    scale = scale or least_scale(begin.shape[1])
    frames = (Image.fromarray(picture) for batch in chain([begin], pictures) for picture in enlarged(batch, scale))
    with replacing(target) as part:
        exact = {"lossless": True} if target.suffix == ".webp" else {}
        next(frames).save(part, save_all=True, append_images=frames, duration=FRAME_MS, loop=0, **exact)


def write_single_images(folder: Path, batches: Batches, row: str, scale: int) -> None:
    """Write one row, one file per picture; the images of an earlier call stay until all new ones are on disk."""
    with refuse_unwritable(f"{folder}/"), ExitStack() as stack:
        stack.enter_context(folder_made(folder))
        if batches.rank == 0:
            stack.enter_context(claimed(folder))
        wait()
        part = stack.enter_context(temporary(folder / f"{PART}{batches.rank}"))
        for first, rows in batches:
            pictures = enlarged(row_pictures(rows, row), scale)
            for i, picture in enumerate(pictures, start=first * batches.plan.rows[row]):
                save_single(picture, part / f"{i:06d}.png")
        wait()
        if batches.rank == 0:
            for old in folder.glob(IMAGES):  # with another --n the folder would mix two sets
                old.unlink()
        wait()
        for new in part.iterdir():
            new.rename(folder / new.name)
        wait()


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a folder of single images for this call, and clear what a killed one has left in it.

    Raises:
        InputError: another call writes into it.
    """
    with ExitStack() as claim:
        try:
            claim.enter_context(locked(folder / LOCK, wait=False))
        except BlockingIOError:
            raise InputError(f"sample: {folder}/ is being written by another call; choose another --out") from None
        for part in folder.glob(f"{PART}*"):
            clear(part)
        yield


@contextmanager
def temporary(folder: Path) -> Iterator[Path]:
    """Make a folder for new images, and remove it at the end with those that are still in it."""
    folder.mkdir(exist_ok=True)
    try:
        yield folder
    finally:
        clear(folder)


def clear(part: Path) -> None:
    """Remove the images of a folder, and the folder unless it holds something else."""
    for image in part.glob(IMAGES):
        image.unlink()
    with suppress(OSError):
        part.rmdir()
