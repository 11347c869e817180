"""Draw images from a checkpoint, reconstruct photographs with it, explore or export it; nothing else is needed.

python sample.py runs/demo_gan/last.ckpt --n 64 --seed 0 --out samples.png   # rows mean, std, sample, denoised
python sample.py runs/demo_gan/last.ckpt --n 5000 --out samples/             # single images of the last row
python sample.py runs/demo_gan/last.ckpt --images path/to/faces              # photographs and their reconstructions
python sample.py runs/demo_gan/last.ckpt --interpolate true --steps 60 --out path.webp     # an animation
python sample.py runs/demo_gan/last.ckpt --explore true                      # a page with sliders, on this machine
python sample.py runs/demo_gan/last.ckpt --export portraits.safetensors      # can be used like the checkpoint
torchrun --nproc_per_node 4 -- sample.py runs/demo_gan/last.ckpt --n 5000 --out samples/    # in four processes
"""

from degrain.models.core.threads import set_threads  # before torch: the load is measured from here on

# isort: split
import os

import numpy as np
import torch.distributed as processes
from jsonargparse import auto_cli

from degrain.data.decode import Crop
from degrain.data.photographs import in_words, read_photograph, read_photographs
from degrain.models.core.command_line import OneLineParser, fail_if_known, quiet_ends, tolerant_output
from degrain.models.core.errors import InputError
from degrain.models.inference import drawing
from degrain.models.inference.checkpoint import Card
from degrain.models.inference.drawing import Plan, Sources
from degrain.models.inference.explore import Choice, Explorer
from degrain.models.inference.export import write_export
from degrain.models.inference.options import STEPS, Options, numbers_of
from degrain.models.inference.pipeline import Pipeline, PlainPipeline, load_pipeline
from degrain.models.inference.server import PORT, serve
from degrain.models.inference.writing import Batches, Look, check_panel, is_folder, write_images

DRAWS = {"variations": 4, "interpolate": 2, "traverse": 1}
"""Draws of each mode, unless --n says how many."""


def sample(options: Options) -> None:
    """Draw images from a checkpoint, explore it, or export it.

    Raises:
        InputError: an argument is out of range, the checkpoint unreadable, or a file exists already.
    """
    options.check()
    card, networks = load_networks(options)
    plan = None if options.target is None else planned(options, card, networks)
    look = Look(options.row, options.columns, options.scale, options.labels)
    if plan is not None and options.target.endswith(".png") and not is_folder(options.target):
        check_panel(plan, card.size, look)
    networks.bf16 = options.precision == "bf16"
    if networks.emulates_bf16:
        print("--precision bf16: this processor has no instructions for it; --precision 32 is many times faster")
    if options.explore:
        explore(options, card, networks)
        return
    rank, world = join_processes()  # after the checks: no process may write while others still check what exists
    chosen = set_threads(options.threads, processes=world, own_processes=world)
    if options.export is not None and rank == 0:
        write_export(options.checkpoint, options.export)
    if plan is not None:
        if rank == 0:
            print(chosen)
        write_images(options.target, Batches(plan, options.batch_size, rank, world), look)
    if world > 1:
        processes.destroy_process_group()


def load_networks(options: Options) -> tuple[Card, Pipeline | PlainPipeline]:
    """Load the networks on a device, and refuse a prior or a device that there is not."""
    card, networks = load_pipeline(options.checkpoint)
    networks.check_prior(options.prior, options.checkpoint)
    return card, networks.moved(options.device)


def planned(options: Options, card: Card, networks: Pipeline | PlainPipeline) -> Plan:
    """Return what is drawn; refuse what the checkpoint cannot do."""
    seeds, photographs, n = numbers_of(options.seed, "seed"), None, options.n
    quiet = is_helper()
    if options.images is not None:
        if networks.vae is None:
            raise InputError(f"sample: --images: {options.checkpoint} is a plain GAN's, which has no encoder")
        photographs = read_photographs(options.images, trained_crop(card), card.size, n, quiet)
        n = len(photographs)
    n = n or DRAWS.get("".join(options.modes), 64)
    how = options.prior, options.temperature, options.noise, options.best_of
    sources = Sources(networks, seeds, n, *how, photographs)
    sources.codes([0])  # refuses what the networks do not take
    steps = options.steps or STEPS
    if options.variations is not None:
        plan = drawing.varied(sources, options.variations)
    elif options.interpolate:
        plan = drawing.interpolated(sources, steps)
    elif options.traverse is not None:
        plan = drawing.traversed(sources, latents(options, networks, quiet), steps)
    else:
        plan = drawing.plain(sources)
    if options.row not in (None, *plan.rows):
        has = f"{options.checkpoint} is of stage {card.stage} and has {', '.join(plan.rows)}"
        raise InputError(f"sample: --row {options.row}: {has}")
    return plan


def trained_crop(card: Card) -> Crop | None:
    """Return the crop of the training's images; None if they were drawn."""
    return (card.data or {}).get("crop")


def explore(options: Options, card: Card, networks: Pipeline | PlainPipeline) -> None:
    """Serve a page to explore the checkpoint with, until Ctrl-C."""
    if processes.is_torchelastic_launched():
        raise InputError("sample: --explore: the page is of one process; start it without torchrun")
    print(set_threads(options.threads, processes=1, own_processes=1))

    def read(data: bytes) -> tuple[np.ndarray, str]:
        converted: list[str] = []
        photograph, crop = read_photograph(data, "the photograph", trained_crop(card), card.size, converted)
        return photograph, ", ".join([in_words(crop), f"resized to {card.size}x{card.size} pixels", *converted])

    seed = int(options.seed)
    begin = Choice(seed, seed, options.temperature, options.noise, options.prior)
    serve(Explorer(networks, options.checkpoint, begin, read), PORT if options.port is None else options.port)


def latents(options: Options, networks: Pipeline | PlainPipeline, quiet: bool) -> list[int]:
    """Return the latents to traverse, and print what they tell."""
    ranks = numbers_of(options.traverse, "traverse")
    order, nats = drawing.latents_by_information(networks)
    if max(ranks) >= len(order):
        raise InputError(
            f"sample: --traverse {options.traverse}: there are {len(order)} latents, 0 to {len(order) - 1}"
        )
    if not quiet:
        told = ", ".join(f"{rank} is z[{order[rank]}] ({nats[rank]:.2f} nats)" for rank in ranks)
        print(f"latents by what they tell of an image: {told}")
    return [order[rank] for rank in ranks]


def is_helper() -> bool:
    """Return True for all processes of torchrun but the first, which speaks for them."""
    return processes.is_torchelastic_launched() and os.environ.get("RANK", "0") != "0"


def join_processes() -> tuple[int, int]:
    """Return this process's number and the count; torchrun's processes wait here for each other."""
    if not processes.is_torchelastic_launched():
        return 0, 1
    processes.init_process_group("gloo")  # only pictures are sent
    return processes.get_rank(), processes.get_world_size()


def main(args: list[str] | None = None) -> None:
    """Run a command line; errors of the user end in one line and exit code 2."""
    tolerant_output()
    with quiet_ends():
        try:
            options = auto_cli(Options, args=args, parser_class=OneLineParser, return_instance=True)
            sample(options)
        except Exception as error:
            fail_if_known(error, (InputError,))
            raise


if __name__ == "__main__":
    main()
