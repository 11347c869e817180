"""Draw images from a checkpoint, which needs nothing but itself, or export what they are drawn with.

python sample.py runs/demo_gan/last.ckpt --n 64 --seed 0 --out samples.png   # rows mean, std, sample, denoised
python sample.py runs/demo_gan/last.ckpt --n 5000 --out samples/             # single images of the last row
python sample.py runs/demo_gan/last.ckpt --n 5000 --out samples.npz --row mean
python sample.py runs/demo_gan/last.ckpt --export portraits.safetensors      # everything takes it like a checkpoint
torchrun --nproc_per_node 4 -- sample.py runs/demo_gan/last.ckpt --n 5000 --out samples/    # the same, shared out
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as processes
from jsonargparse import auto_cli
from PIL import Image
from tqdm import tqdm

from models.core.command_line import OneLineParser, fail_if_known
from models.core.errors import InputError
from models.core.files import replacing
from models.inference.export import SUFFIX
from models.inference.pictures import as_pictures, panel
from models.inference.pipeline import Pipeline, PlainPipeline, exported, load_pipeline
from models.vae.latent_prior import PriorName

Batches = Iterator[tuple[int, dict[str, torch.Tensor]]]


def sample(
    checkpoint: str,
    n: int = 64,
    seed: int = 0,
    out: str | None = None,
    row: Literal["mean", "std", "sample", "denoised", "generated"] | None = None,
    prior: PriorName | None = None,
    batch_size: int = 64,
    device: str = "auto",
    export: str | None = None,
    overwrite: bool = False,
) -> None:
    """Draw images from a checkpoint, or export it.

    Args:
        checkpoint: file of either stage, or of a plain GAN, whose row is `generated`; or an export of one.
        n: number of images.
        seed: image i depends on (seed, i) alone.
        out: FILE.png for a labelled panel of all rows, DIR/ for single images, FILE.npz for `images` (N, H, W, 3);
            by default samples.png, or with --export nothing.
        row: which row is written as single images or arrays, by default the last; std as a heat map from 0 to 0.2.
        prior: `standard`, N(0, I), or in its place `flow`, trained with the VAE; `fitted`, the Gaussian of q(z);
            `learned`, a mixture; by default the best, or the flow.
        batch_size: images decoded at once.
        device: `cpu`, `cuda`, or `auto`; of torchrun's processes each takes a GPU of its own.
        export: FILE.safetensors to write VAE, prior and, of stage 2, the denoiser's moving average to, in half
            precision and without what only training needs. Nothing is drawn unless --out is given, too.
        overwrite: replace what is at `out` and `export`.

    Raises:
        InputError: an argument is out of range, the checkpoint unreadable, or something there already.
    """
    if out is None and export is None:
        out = "samples.png"
    if n < 1 or seed < 0 or batch_size < 1:
        raise InputError(f"sample: --n {n} and --batch_size {batch_size} must be at least 1, --seed {seed} at least 0")
    if out is not None and not single_images(out) and Path(out).suffix not in (".png", ".npz"):
        raise InputError(f"sample: --out {out}: end it in .png, .npz or, for single images, in /")
    if export is not None and Path(export).suffix != SUFFIX:
        raise InputError(f"sample: --export {export}: end it in {SUFFIX}")
    for option, place in (("out", out), ("export", export)):
        if place is not None and occupied(Path(place)) and not overwrite:
            raise InputError(f"sample: {place} exists; choose another --{option} or pass --overwrite true")
    card, pipeline = load_pipeline(checkpoint)
    if row not in (None, *pipeline.rows):
        raise InputError(
            f"sample: --row {row}: {checkpoint} is of stage {card.stage} and has {', '.join(pipeline.rows)}"
        )
    if prior not in (None, *pipeline.priors):
        why = "stage 1 learns its prior when its budget is seen" if pipeline.vae else "a plain GAN has no other"
        if "flow" in pipeline.priors and prior == "standard":
            why = "its VAE was trained with the flow in the place of N(0, I)"
        raise InputError(f"sample: --prior {prior}: {checkpoint} has {', '.join(pipeline.priors)}; {why}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        pipeline.to(device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"sample: --device {device} cannot be used: {error}") from None
    rank, world = share()  # behind the refusals: who begins to write waits for those who still look at what is there
    if export is not None and rank == 0:
        write_export(checkpoint, Path(export))
    if out is not None:
        firsts = range(0, n, batch_size)[rank::world]
        batches = draw_batches(pipeline, firsts, n, seed, prior, batch_size, silent=rank > 0)
        write_images(out, batches, row or pipeline.rows[-1], rank)
    if world > 1:
        processes.destroy_process_group()


def single_images(out: str) -> bool:
    """Whether a place is a folder, or will be."""
    return out.endswith("/") or Path(out).is_dir()


def occupied(place: Path) -> bool:
    """Whether something would be lost by writing there."""
    return any(place.iterdir()) if place.is_dir() else place.exists()


def share() -> tuple[int, int]:
    """This process's number and how many there are, who wait for each other here: one, or those of torchrun."""
    if not processes.is_torchelastic_launched():
        return 0, 1
    processes.init_process_group("gloo")  # no more than pictures pass between them
    return processes.get_rank(), processes.get_world_size()


def wait() -> None:
    """For all processes, where there are several."""
    if processes.is_initialized():
        processes.barrier()


def write_images(out: str, batches: Batches, row: str, rank: int) -> None:
    """Write one row as single images or an array, or the panel of all rows, as the end of `out` says.

    Of several processes each writes its own single images; anything else the first one writes.
    """
    target = Path(out)
    if single_images(out):
        write_single_images(target, batches, row, rank)
    elif target.suffix == ".npz":
        pictures = gathered([(first, as_pictures(row, rows[row])) for first, rows in batches])
        if rank == 0:
            with replacing(target) as part:
                np.savez(part, images=np.concatenate(pictures))
    else:
        drawn = gathered(list(batches))
        if rank == 0:
            picture = panel({name: torch.cat([rows[name] for rows in drawn]) for name in drawn[0]})
            with replacing(target) as part:
                picture.save(part)
    if rank == 0:
        print(f"wrote: {out}")


def gathered(drawn: list[tuple[int, Any]]) -> list[Any]:
    """What all processes have drawn, in the order of the first images' numbers; nothing but on the first process."""
    if processes.is_initialized():
        parts = [[] for _ in range(processes.get_world_size())] if processes.get_rank() == 0 else None
        processes.gather_object(drawn, parts)
        drawn = sum(parts or [], [])
    return [what for _, what in sorted(drawn, key=lambda numbered: numbered[0])]


def write_single_images(folder: Path, batches: Batches, row: str, rank: int) -> None:
    """Write one row, an image a file; those of an earlier call stay until all of the new ones are on disk.

    Raises:
        InputError: the disk is full, or the place cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".part-", dir=folder) as part:
            for first, rows in batches:
                for i, picture in enumerate(as_pictures(row, rows[row]), start=first):
                    Image.fromarray(picture).save(Path(part, f"{i:06d}.png"))
            wait()
            if rank == 0:
                for old in folder.glob("[0-9]" * 6 + ".png"):  # of another --n, or the folder would mix two sets
                    old.unlink()
            wait()
            for new in Path(part).iterdir():
                new.rename(folder / new.name)
            wait()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{folder}/: cannot be written ({reason}); make room there or check permissions") from error


def draw_batches(
    pipeline: Pipeline | PlainPipeline,
    firsts: range,
    n: int,
    seed: int,
    prior: PriorName | None,
    batch_size: int,
    silent: bool,
) -> Batches:
    """(number of its first image, rows on the CPU) for every batch, behind a progress bar where there are several; at
    their end a line says how fast this process, where it is not silent, has drawn its own.
    """
    drawn, seconds = 0, 0.0
    for first in tqdm(firsts, "sampling", unit="batch", disable=silent or len(firsts) < 2):
        start = time.perf_counter()
        rows = pipeline.draw(seed, range(first, min(n, first + batch_size)), prior)
        rows = {name: images.cpu() for name, images in rows.items()}
        seconds += time.perf_counter() - start
        drawn += min(n, first + batch_size) - first
        yield first, rows
    if not silent:
        print(f"drawn: {drawn:,} images, {drawn / seconds:.1f} images/s")


def write_export(checkpoint: str, target: Path) -> None:
    """Write the export of a checkpoint and say how large it is."""
    content = exported(checkpoint)
    with replacing(target) as part:
        part.write_bytes(content)
    print(f"exported: {target} ({len(content):,} bytes)")


def main(args: list[str] | None = None) -> None:
    """Run a command line; what the user can mend ends in one line and exit code 2."""
    try:
        auto_cli(sample, args=args, parser_class=OneLineParser, description="Draw images from a checkpoint.")
    except Exception as error:
        fail_if_known(error, (InputError,))
        raise


if __name__ == "__main__":
    main()
