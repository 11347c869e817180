"""Load and train from JPEG files beside torchvision's CelebA class with two workers, in core seconds.

    python -m tests.benchmarks.loading                          # drawn portraits, written as JPEG of 178x218
    python -m tests.benchmarks.loading --root DIR               # DIR/img_align_celeba/ has CelebA's own

The files get CelebA's official layout in a temporary folder. Theirs is torchvision.datasets.CelebA, CenterCrop(148),
Resize(64), RandomHorizontalFlip and ToTensor in a DataLoader that shuffles and has two workers; ours is the data module
that configs name, whose first epoch builds the cache. All end in float32 batches, (B, 3, 64, 64).

The training of theirs is the shortest loop: the same networks, likelihood and precision, and Adam, with no clipping,
checks or logging. Ours is the command `train.py fit -c configs/vae_celeba64.yaml`, in this process, without W&B.

Core seconds are those of this process, one thread, and of its workers: what a busy machine has to give. Waiting is the
share of the wall time between two batches, and depends on how many cores are free. The table has medians of the rounds.
"""

import contextlib
import io
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytorch_lightning as pl
import torch
from jsonargparse import auto_cli
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

import train
from data.datamodule import CelebA
from data.portraits import PortraitSource
from models.core.gaussian import kl_to_standard_normal
from models.core.layers import PyramidConfig
from models.vae.likelihood import log_bin_probability
from models.vae.network import VAE, VAEConfig

CONFIG = Path(__file__).parents[2] / "configs" / "vae_celeba64.yaml"
SIZE, CROP, VALID, DRAWN, EPOCHS = 64, 148, 16, 100, 5
LISTS = {"list_attr_celeba.txt": 1, "identity_CelebA.txt": 0, "list_bbox_celeba.txt": 1}
LISTS |= {"list_landmarks_align_celeba.txt": 1}  # file -> whether it has a header, of what torchvision wants to read


@dataclass(frozen=True)
class Net:
    """A network of stage 1 and the batch that it is trained with."""

    latent: int
    widths: tuple[int, ...]
    batch: int

    def vae(self) -> VAE:
        pyramid = PyramidConfig(widths=self.widths, patch=4)
        return VAE(SIZE, VAEConfig(latent=self.latent, encoder=pyramid, decoder=pyramid))

    def options(self) -> list[str]:
        """Return its options on the command line."""
        named = {"latent": self.latent, "encoder.widths": list(self.widths), "decoder.widths": list(self.widths)}
        return [part for name, value in named.items() for part in (f"--model.net.{name}", str(value))]


BATCH, WORKERS = 16, 2
ROWS = ("torchvision's CelebA", "ours, first epoch", "ours, fifth epoch")
NETS = {"small": Net(256, (64, 128, 192), BATCH), "tiny": Net(32, (8, 8), 128)}


@dataclass(frozen=True)
class Epoch:
    """What an epoch cost: core seconds, and seconds in which the training waited for data, of all seconds."""

    core: float
    waiting: float = 0.0
    wall: float = 1.0


class Waits:
    """Batches of a loader; `seconds` were spent in waiting for them."""

    def __init__(self, loader: DataLoader) -> None:
        self.loader, self.seconds = loader, 0.0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator:
        batches = iter(self.loader)
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.seconds += time.perf_counter() - start
            if batch is None:
                return
            yield batch


class Timed(CelebA):
    """Our data module, which says what each epoch of the run in progress cost.

    Attributes:
        epochs: of the last run. The first one begins before the cache is built.
    """

    epochs: list[Epoch] = []
    start: tuple[float, float, float]

    def prepare_data(self) -> None:
        Timed.epochs, self.waits = [], None
        self.start = self.now()
        super().prepare_data()

    def train_dataloader(self) -> Waits:
        self.waits = Waits(super().train_dataloader())
        return self.waits

    def now(self) -> tuple[float, float, float]:
        return core_seconds(), self.waits.seconds if self.waits else 0.0, time.perf_counter()

    def end_epoch(self) -> None:
        """Count an epoch."""
        now = self.now()
        Timed.epochs.append(Epoch(*(b - a for a, b in zip(self.start, now, strict=True))))
        self.start = now


class EpochEnds(pl.Callback):
    """Tells the data module of every `steps` steps.

    Args:
        steps: of an epoch.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: pl.Trainer, *args) -> None:
        if (args[-1] + 1) % self.steps == 0:
            trainer.datamodule.end_epoch()


class Theirs(datasets.CelebA):
    """torchvision's class without its check that the lists are those of all 202,599 photographs."""

    def _check_integrity(self) -> bool:
        return True


def core_seconds() -> float:
    """Return the core seconds of this process and of its workers that have ended."""
    workers = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + workers.ru_utime + workers.ru_stime


def write_celeba(folder: Path, root: str | None, count: int) -> None:
    """Write CelebA's layout with `count` images to train on and VALID to validate on; portraits if there is no root."""
    images = folder / "celeba" / "img_align_celeba"
    images.mkdir(parents=True)
    names = [f"{number:06}.jpg" for number in range(1, count + VALID + 1)]
    if root:
        files = sorted(Path(root, "img_align_celeba").resolve().glob("*.jpg"))[: len(names)]
        if len(files) < len(names):
            raise SystemExit(
                f"error: {root}/img_align_celeba has {len(files)} images; take --count {len(files) - VALID}"
            )
    else:
        source, files = PortraitSource(), []
        for number in range(DRAWN):
            face = Image.fromarray(source.read(number, 256)["image"]).crop((39, 19, 39 + 178, 19 + 218))
            files.append(folder / f"{number}.jpg")
            face.save(files[-1])
        files = [files[number % DRAWN] for number in range(len(names))]
    for name, file in zip(names, files, strict=True):
        (images / name).symlink_to(file)
    partition = "".join(f"{name} {int(number >= count)}\n" for number, name in enumerate(names))
    (images.parent / "list_eval_partition.txt").write_text(partition)
    for file, header in LISTS.items():
        (images.parent / file).write_text("0\nvalue\n" * header + "".join(f"{name} 1\n" for name in names))


def their_loader(folder: Path, batch: int) -> DataLoader:
    """Return torchvision's images, as its users load them."""
    steps = [transforms.CenterCrop(CROP), transforms.Resize(SIZE), transforms.RandomHorizontalFlip()]
    images = Theirs(str(folder), transform=transforms.Compose([*steps, transforms.ToTensor()]))
    return DataLoader(images, batch_size=batch, shuffle=True, num_workers=WORKERS, drop_last=True)


def our_data(folder: Path, cache: Path, batch: int) -> CelebA:
    """Return our data module as a Trainer sets it up, for an epoch of whole batches; builds the cache."""
    data = CelebA(str(folder), f"c{CROP}", size=SIZE, batch_size=batch, cache=str(cache))
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(strategy=strategy, global_rank=0, world_size=1)
    data.setup("fit")
    images = len(data.datasets["train"])
    data.trainer.lightning_module = SimpleNamespace(images_seen=0, leg_end=images - images % batch)
    return data


def photographs(batch: dict[str, Tensor]) -> Tensor:
    """Convert a batch as the training step does."""
    return batch["image"].to(torch.float32, memory_format=torch.channels_last) / 255


def loading(folder: Path, batch: int) -> dict[str, float]:
    """Return the core milliseconds of an image in an epoch of loading alone, of theirs and ours."""
    start, images = core_seconds(), 0
    for x, _ in their_loader(folder, batch):
        images += len(x)
    marks = [start, core_seconds()]
    with tempfile.TemporaryDirectory() as cache, quiet():
        data = our_data(folder, Path(cache), batch)
        for _ in range(2):
            for loaded in data.train_dataloader():
                photographs(loaded)
            marks.append(core_seconds())
    costs = [1e3 * (b - a) / images for a, b in zip(marks, marks[1:], strict=False)]
    return dict(zip(ROWS, costs, strict=True))


def their_training(folder: Path, net: Net) -> Epoch:
    """Train for an epoch by the shortest loop."""
    vae = net.vae()
    adam = torch.optim.Adam(vae.parameters(), 2e-4)
    core, wall = core_seconds(), time.perf_counter()
    batches = Waits(their_loader(folder, net.batch))
    for x, _ in batches:
        with torch.autocast("cpu", torch.bfloat16):
            q = vae.encode(x)
            p = vae.decode(q.sample(torch.randn(len(x), net.latent)))
        loss = kl_to_standard_normal(q).sum(1).mean() - log_bin_probability(p, x).sum((1, 2, 3)).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return Epoch(core_seconds() - core, batches.seconds, time.perf_counter() - wall)


def our_training(folder: Path, net: Net, count: int) -> list[Epoch]:
    """Train for EPOCHS epochs by `train.py fit`; the first one builds the cache."""
    steps = count // net.batch
    data = ["--data", f"{Timed.__module__}.Timed", "--data.root", str(folder), "--data.batch_size", str(net.batch)]
    few = ["--model.prior_images", "16", "--model.prior_components", "0", "--trainer.max_steps", str(EPOCHS * steps)]
    ends = ["--trainer.callbacks", f"[{{class_path: {EpochEnds.__module__}.EpochEnds, init_args: {{steps: {steps}}}}}]"]
    with tempfile.TemporaryDirectory() as runs, quiet():
        where = ["--runs", runs, "--data.cache", f"{runs}/cache", "--wandb", "off", "--trainer.accelerator", "cpu"]
        train.main(["fit", "-c", str(CONFIG), *data, *net.options(), *few, *ends, *where])
    return Timed.epochs


def training(folder: Path, net: Net, count: int) -> dict[str, Epoch]:
    """Return what an epoch of training costs, of theirs, and of ours the first and the last."""
    epochs = our_training(folder, net, count)
    return dict(zip(ROWS, (their_training(folder, net), epochs[0], epochs[-1]), strict=True))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what a run prints to itself."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def main(root: str | None = None, rounds: int = 3, count: int = 1024) -> None:
    """Print core time and ratios of loading alone, and of training with it.

    Args:
        root: folder that holds CelebA's img_align_celeba/; by default portraits are drawn.
        rounds: measurements of each row.
        count: images of an epoch.
    """
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    print(f"{count} JPEG files, {SIZE} pixels, {rounds} rounds, one thread and {WORKERS} workers, core seconds")
    print(f"{'':<52}{'ms an image':>12}{'images/s':>10}{'times':>7}{'waiting':>9}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_celeba(folder, root, count)
        alone = [loading(folder, BATCH) for _ in range(rounds)]
        for row in ROWS:
            show(f"loading, {row}", [(run[row], run[ROWS[0]]) for run in alone])
        for name, net in NETS.items():
            runs, images = [training(folder, net, count) for _ in range(rounds)], count // net.batch * net.batch
            for row in ROWS:
                costs = [(1e3 * run[row].core / images, 1e3 * run[ROWS[0]].core / images) for run in runs]
                waiting = statistics.median(run[row].waiting / run[row].wall for run in runs)
                show(f"training {name}, {row}", costs, f"{waiting:>9.1%}")


def show(name: str, costs: list[tuple[float, float]], waiting: str = "") -> None:
    """Print a row: its core milliseconds of an image and those of the first row, in each round."""
    cost = statistics.median(mine for mine, _ in costs)
    times = statistics.median(first / mine for mine, first in costs)
    print(f"{name:<52}{cost:>12.3f}{1e3 / cost:>10,.0f}{times:>7.1f}{waiting}", flush=True)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
