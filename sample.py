"""Draw images from a checkpoint, or export the weights that they are drawn with; nothing else is needed.

python sample.py runs/demo_gan/last.ckpt --n 64 --seed 0 --out samples.png   # rows mean, std, sample, denoised
python sample.py runs/demo_gan/last.ckpt --n 5000 --out samples/             # single images of the last row
python sample.py runs/demo_gan/last.ckpt --n 5000 --out samples.npz --row mean
python sample.py runs/demo_gan/last.ckpt --export portraits.safetensors      # can be used like the checkpoint
torchrun --nproc_per_node 4 -- sample.py runs/demo_gan/last.ckpt --n 5000 --out samples/    # in four processes
"""

from degrain.models.core.threads import set_threads  # before torch: the load is measured from here on

# isort: split
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as processes
from jsonargparse import auto_cli
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from degrain.models.core.command_line import OneLineParser, fail_if_known, quiet_ends, tolerant_output
from degrain.models.core.errors import InputError
from degrain.models.core.files import folder_made, locked, refuse_unwritable, replacing
from degrain.models.inference.checkpoint import SUFFIX
from degrain.models.inference.export import write_export
from degrain.models.inference.pictures import as_pictures, panel
from degrain.models.inference.pipeline import Pipeline, PlainPipeline, load_pipeline
from degrain.models.vae.latent_prior import PriorName

PART, LOCK, IMAGES = ".part-of-images-", ".images.lock", "[0-9]" * 6 + ".png"
"""In a folder of single images: names of the folders that they are written in, of the lock, and of the images."""

Batches = Iterator[tuple[int, dict[str, Tensor]]]
"""(number of the first image, its batch by row), for every batch."""

Draw = Callable[[range], dict[str, Tensor]]
"""From numbers of images to their rows."""


def sample(
    checkpoint: str,
    n: int = 64,
    seed: int = 0,
    out: str | None = None,
    row: Literal["mean", "std", "sample", "denoised", "generated"] | None = None,
    prior: PriorName | None = None,
    batch_size: int = 32,
    device: str = "auto",
    export: str | None = None,
    overwrite: bool = False,
    precision: Literal["32", "bf16"] = "32",
    threads: int | None = None,
) -> None:
    """Draw images from a checkpoint, or export it.

    Args:
        checkpoint: file of either stage, or of a plain GAN, whose row is `generated`; or an export of one, also
            hf://USER/NAME on the Hugging Face Hub.
        n: number of images.
        seed: image i depends on (seed, i) alone.
        out: FILE.png for a labelled panel of all rows, DIR/ for single images, FILE.npz for `images` (N, H, W, 3);
            by default samples.png, or with --export nothing.
        row: which row is written as single images or arrays, by default the last; std as a heat map from 0 to 0.2.
        prior: `standard`, N(0, I), or instead of it `flow`, trained with the VAE; `fitted`, the Gaussian of q(z);
            `learned`, a mixture; by default the best, or the flow.
        batch_size: images decoded at once; on a CPU more are slower, on a GPU faster.
        device: `cpu`, `cuda`, or `auto`; each process of torchrun takes its own GPU.
        export: FILE.safetensors to write VAE, prior and, for stage 2, the denoiser's moving average to, in half
            precision and without what only training needs; or DIR/ for a folder with a model card, as the Hugging Face
            Hub wants it. Images are then drawn only if --out is given, too.
        overwrite: replace existing files at `out` and `export`.
        precision: of the networks' products. `bf16` is faster where the processor has it, and changes about a quarter
            of the 8-bit values, nearly all by one level (docs/speed.md).
        threads: of each process; by default OMP_NUM_THREADS, or one for each free core.

    Raises:
        InputError: an argument is out of range, the checkpoint unreadable, or a file exists already.
    """
    out = "samples.png" if out is None and export is None else out
    check_arguments(n, seed, batch_size, out, export, overwrite)
    networks = load_networks(checkpoint, row, prior, device)
    networks.bf16 = precision == "bf16"
    draw = partial(networks.draw, seed, prior=prior)
    write(checkpoint, export, out, draw, n, batch_size, row or networks.rows[-1], threads)


def write(
    checkpoint: str,
    export: str | None,
    out: str | None,
    draw: Draw,
    n: int,
    batch_size: int,
    row: str,
    threads: int | None,
) -> None:
    """Write the export and the images; torchrun's processes share the images."""
    rank, world = join_processes()  # after the checks: no process may write while others still check what exists
    chosen = set_threads(threads, processes=world, own_processes=world)
    if export is not None and rank == 0:
        write_export(checkpoint, export)
    if out is not None:
        if rank == 0:
            print(chosen)
        batches = [range(n)[first : first + batch_size] for first in range(0, n, batch_size)[rank::world]]
        write_images(out, draw_batches(draw, batches, silent=rank > 0), row, rank)
    if world > 1:
        processes.destroy_process_group()


def check_arguments(n: int, seed: int, batch_size: int, out: str | None, export: str | None, overwrite: bool) -> None:
    """Refuse numbers out of range, file names without a known ending, and files that would be lost."""
    if n < 1 or seed < 0 or batch_size < 1:
        raise InputError(f"sample: --n {n} and --batch_size {batch_size} must be at least 1, --seed {seed} at least 0")
    if out is not None and not is_folder(out) and Path(out).suffix not in (".png", ".npz"):
        raise InputError(f"sample: --out {out}: end it in .png, .npz or, for single images, in /")
    if export is not None and not is_folder(export) and Path(export).suffix != SUFFIX:
        raise InputError(f"sample: --export {export}: end it in {SUFFIX} or, for a folder with a model card, in /")
    for option, target in (("out", out), ("export", export)):
        if target is None or overwrite:
            continue
        if any(map(is_users, Path(target).iterdir())) if Path(target).is_dir() else Path(target).exists():
            raise InputError(f"sample: {target} exists; choose another --{option} or pass --overwrite true")


def is_folder(out: str) -> bool:
    """Return True for a folder, existing or new, which single images are written to."""
    return out.endswith("/") or Path(out).is_dir()


def is_users(path: Path) -> bool:
    """Return True unless a killed call has left this file or folder."""
    return path.name != LOCK and not path.name.startswith(PART)


def load_networks(checkpoint: str, row: str | None, prior: PriorName | None, device: str) -> Pipeline | PlainPipeline:
    """Load the networks on a device, and refuse a row, a prior or a device that there is not."""
    card, networks = load_pipeline(checkpoint)
    if row not in (None, *networks.rows):
        has = f"{checkpoint} is of stage {card.stage} and has {', '.join(networks.rows)}"
        raise InputError(f"sample: --row {row}: {has}")
    networks.check_prior(prior, checkpoint)
    return networks.moved(device)


def join_processes() -> tuple[int, int]:
    """Return this process's number and the count; torchrun's processes wait here for each other."""
    if not processes.is_torchelastic_launched():
        return 0, 1
    processes.init_process_group("gloo")  # only pictures are sent
    return processes.get_rank(), processes.get_world_size()


def wait() -> None:
    """Wait for the other processes, if there are any."""
    if processes.is_initialized():
        processes.barrier()


def gather(batches: list[tuple[int, Any]]) -> list[Any]:
    """Collect the batches of all processes in the order of the first images' numbers; empty but on the first one."""
    if processes.is_initialized():
        parts = [[] for _ in range(processes.get_world_size())] if processes.get_rank() == 0 else None
        processes.gather_object(batches, parts)
        batches = sum(parts or [], [])
    return [batch for _, batch in sorted(batches, key=lambda numbered: numbered[0])]


def draw_batches(draw: Draw, batches: list[range], silent: bool) -> Batches:
    """Draw this process's batches, on the CPU, with a progress bar if there are several; print the speed at the end."""
    seconds = 0.0
    for numbers in tqdm(batches, "sampling", unit="batch", disable=silent or len(batches) < 2):
        start = time.perf_counter()
        rows = {name: images.cpu() for name, images in draw(numbers).items()}
        seconds += time.perf_counter() - start
        yield numbers.start, rows
    if not silent:
        drawn = sum(map(len, batches))
        print(f"drawn: {drawn:,} images, {drawn / seconds:.1f} images/s")


def write_images(out: str, batches: Batches, row: str, rank: int) -> None:
    """Write one row as single images or as an array, or the panel of all rows, as the ending of `out` says.

    Each process writes its own single images; the first one writes everything else.
    """
    target = Path(out)
    if is_folder(out):
        write_single_images(target, batches, row, rank)
    elif target.suffix == ".npz":
        pictures = gather([(first, as_pictures(row, rows[row])) for first, rows in batches])
        if rank == 0:
            with replacing(target) as part:
                np.savez(part, images=np.concatenate(pictures))
    else:
        drawn = gather(list(batches))
        if rank == 0:
            picture = panel({name: torch.cat([rows[name] for rows in drawn]) for name in drawn[0]})
            with replacing(target) as part:
                picture.save(part)
    if rank == 0:
        print(f"wrote: {out}")


def write_single_images(folder: Path, batches: Batches, row: str, rank: int) -> None:
    """Write one row, one file per image; the images of an earlier call stay until all new ones are on disk."""
    with refuse_unwritable(f"{folder}/"), ExitStack() as stack:
        stack.enter_context(folder_made(folder))
        if rank == 0:
            stack.enter_context(claimed(folder))
        wait()
        part = stack.enter_context(temporary(folder / f"{PART}{rank}"))
        for first, rows in batches:
            for i, picture in enumerate(as_pictures(row, rows[row]), start=first):
                Image.fromarray(picture).save(part / f"{i:06d}.png")
        wait()
        if rank == 0:
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


def main(args: list[str] | None = None) -> None:
    """Run a command line; errors of the user end in one line and exit code 2."""
    tolerant_output()
    with quiet_ends():
        try:
            auto_cli(sample, args=args, parser_class=OneLineParser, description="Draw images from a checkpoint.")
        except Exception as error:
            fail_if_known(error, (InputError,))
            raise


if __name__ == "__main__":
    main()
