"""The options of sample.py: what they mean, and which of them do not fit together."""

import re
from collections.abc import Iterator
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Literal

from degrain.models.core.errors import InputError
from degrain.models.inference.checkpoint import SUFFIX
from degrain.models.inference.writing import ANIMATIONS, foreign_image, is_folder, is_users
from degrain.models.vae.latent_prior import PriorName

ENDINGS = (".png", ".npz", *ANIMATIONS)

MOST = 1_000_000  # numbers in a list of them

MOST_ENLARGED, MOST_PICTURES = 64, 1_000  # side of an enlarged pixel; pictures that one image becomes

HOW = ("prior", "temperature", "noise", "best_of", "columns", "scale", "labels", "batch_size", "precision")
DRAWN = ("n", "seed", "row", "images", "variations", "interpolate", "traverse", *HOW)  # not what --export alone does

STEPS = 9  # by default, of a path or a traversal: an odd number has the middle


@dataclass(frozen=True)
class Options:
    """Draw images from a checkpoint, reconstruct photographs with it, explore it on a page, or export it.

    Args:
        checkpoint: file of either stage, or of a plain GAN, whose row is `generated`; or an export of one, also
            hf://USER/NAME on the Hugging Face Hub.
        n: number of draws of each seed, by default 64, with a mode 4 (interpolate 2, traverse 1); or of photographs, by
            default all.
        seed: a number, or several, as in 3,7,10-20; image i depends on (seed, i) alone.
        out: FILE.png for a labelled panel of all rows, DIR/ for single images, FILE.npz for `images` (N, H, W, 3),
            FILE.gif or FILE.webp for an animation; by default samples.png, or with --export nothing.
        row: the row of single images, arrays and animations, by default the last, and of a panel, by default all;
            std as a heat map from 0 to 0.2.
        images: a photograph or a folder of them to reconstruct instead of drawing from the prior.
        variations: K; denoise each z with K noises, beside their std and the decoder's.
        interpolate: whether to go from each image to the next, on an arc in units of the Gaussian of q(z).
        traverse: latents to move from -3 to 3 std, such as 0 or 0-4; 0 is the one that tells most of an image.
        steps: images of each path or traversal, both ends included; by default 9.
        prior: `standard`, N(0, I), or instead of it `flow`, trained with the VAE; `fitted`, the Gaussian of q(z);
            `learned`, a mixture; `diffusion`; by default the best, or the flow.
        temperature: scale of z around the mean of q(z), with --images of its noise.
        noise: scale of the noise of the pixels.
        best_of: K; choose each draw of K by how clear its mean stands beside its std: more whole faces, less variety.
        columns: pictures in a line of a panel, by default 16, or the steps.
        scale: enlarge each pixel to so many; by default panels and animations to 96 pixels or more.
        labels: whether a panel has the rows' names and the scale of the std.
        batch_size: images decoded at once; on a CPU more are slower, on a GPU faster.
        device: `cpu`, `cuda`, or `auto`; each process of torchrun takes its own GPU.
        export: FILE.safetensors to write VAE, prior and, for stage 2, the denoiser's moving average to, in half
            precision and without what only training needs; or DIR/ for a folder with a model card, as the Hugging Face
            Hub wants it. Images are then drawn only if --out is given, too.
        explore: whether to serve a page, to this machine alone, with sliders for latents and scales, until Ctrl-C.
        port: of that page, by default 8000; 0 for any free one.
        overwrite: replace existing files at `out` and `export`; never --images, nor single images that no call wrote.
        precision: of the networks' products. `bf16` is faster where the processor has it, and changes about a quarter
            of the 8-bit values, nearly all by one level (docs/speed.md).
        threads: of each process; by default OMP_NUM_THREADS, or one for each free core.
    """

    checkpoint: str
    n: int | None = None
    seed: int | str = 0
    out: str | None = None
    row: str | None = None
    images: str | None = None
    variations: int | None = None
    interpolate: bool = False
    traverse: int | str | None = None
    steps: int | None = None
    prior: PriorName | None = None
    temperature: float = 1.0
    noise: float = 1.0
    best_of: int = 1
    columns: int | None = None
    scale: int | None = None
    labels: bool = True
    batch_size: int = 32
    device: str = "auto"
    export: str | None = None
    explore: bool = False
    port: int | None = None
    overwrite: bool = False
    precision: Literal["32", "bf16"] = "32"
    threads: int | None = None

    @property
    def target(self) -> str | None:
        """Where images are written to; None if there are none to draw."""
        return "samples.png" if self.out is None and self.export is None and not self.explore else self.out

    @property
    def modes(self) -> list[str]:
        """The modes that are asked for, of which there may be one."""
        asked = {"variations": self.variations, "interpolate": self.interpolate or None, "traverse": self.traverse}
        return [name for name, value in asked.items() if value is not None]

    def check(self) -> None:
        """Refuse what is out of range or does not fit together, and files that would be lost.

        Raises:
            InputError: the first of them, in one line.
        """
        for wrong, reason in self.errors():
            if wrong:
                raise InputError(f"sample: {reason}")
        for option, target in (("out", self.target), ("export", self.export)):
            if target is None:
                continue
            if self.overwrite:
                self.refuse_loss(option, Path(target))
                continue
            if any(map(is_users, Path(target).iterdir())) if Path(target).is_dir() else Path(target).exists():
                raise InputError(f"sample: {target} exists; choose another --{option} or pass --overwrite true")

    def refuse_loss(self, option: str, target: Path) -> None:
        """Refuse to replace photographs: those of `images`, and single images in a folder that no call has written.

        Raises:
            InputError: they would be lost.
        """
        if self.images is not None:
            given, path = Path(self.images).resolve(), target.resolve()
            if path in (given, given.parent) or path.is_file() and given in path.parents:
                said = f"--{option} {target} would replace what --images {self.images} reads"
                raise InputError(f"sample: {said}; choose another")
        foreign = foreign_image(target) if option == "out" else None
        if foreign is not None:
            said = f"{target} holds images that sample.py has not written ({foreign.name})"
            raise InputError(f"sample: {said}; choose another --out")

    def errors(self) -> Iterator[tuple[bool, str]]:
        """Yield (whether it is so, what is wrong)."""
        sizes = {"n": self.n, "batch_size": self.batch_size, "columns": self.columns, "scale": self.scale}
        for name, value in sizes.items():
            yield value is not None and value < 1, f"--{name} {value} must be at least 1"
        yield self.steps is not None and self.steps < 2, f"--steps {self.steps} must be at least 2, the ends"
        for name, most in {"scale": MOST_ENLARGED, "steps": MOST_PICTURES, "variations": MOST_PICTURES}.items():
            value = getattr(self, name)
            yield value is not None and value > most, f"--{name} {value} must be at most {most:,}"
        yield from self.explore_errors()
        if self.explore:
            return
        if self.target is None:
            drawing = [option.name for option in fields(self) if option.name in DRAWN and self.is_given(option)]
            yield bool(drawing), f"--{' and --'.join(drawing)} with --export alone: nothing is drawn; give --out, too"
        elif is_folder(self.target):
            yield from self.misplaced("", "folder")
        else:
            ending = Path(self.target).suffix
            endings = f"{', '.join(ENDINGS)} or, for single images, in /"
            yield ending not in ENDINGS, f"--out {self.target}: end it in {endings}"
            yield from self.misplaced(ending, "file")
        yield (
            self.export is not None and not is_folder(self.export) and Path(self.export).suffix != SUFFIX,
            f"--export {self.export}: end it in {SUFFIX} or, for a folder with a model card, in /",
        )
        yield len(self.modes) > 1, f"--{' and --'.join(self.modes)}: one call does one of them"
        paths = self.interpolate or self.traverse is not None
        yield self.steps is not None and not paths, "--steps are those of --interpolate or --traverse; give one of them"
        yield (
            self.images is not None and self.prior is not None,
            f"--prior {self.prior} with --images: their z comes from q(z|x); leave one of them out",
        )
        yield (
            self.images is not None and self.best_of != 1,
            f"--best_of {self.best_of} with --images: it chooses among draws; leave one of them out",
        )

    def is_given(self, option: Field) -> bool:
        """Return whether an option has another value than by default."""
        return getattr(self, option.name) != option.default

    def explore_errors(self) -> Iterator[tuple[bool, str]]:
        """Yield what does not fit the page."""
        if not self.explore:
            yield self.port is not None, f"--port {self.port} is that of the page; give --explore true, too"
            return
        page = ("checkpoint", "explore", "port", "seed", "prior", "temperature", "noise", "device", "precision")
        for option in fields(self):
            if option.name not in (*page, "threads") and self.is_given(option):
                yield True, f"--{option.name} with --explore: the page writes no files; leave one of them out"
        yield not str(self.seed).isdecimal(), f"--seed {self.seed} with --explore: give one number, 0 or more"
        yield self.port is not None and not 0 <= self.port < 2**16, f"--port {self.port} must be from 0 to 65535"

    def misplaced(self, ending: str, kind: str) -> Iterator[tuple[bool, str]]:
        """Yield what only another kind of file can have."""
        other = f"of a panel, and {self.target} is none; end --out in .png or leave it out"
        yield ending != ".png" and self.columns is not None, f"--columns {self.columns} is {other}"
        yield ending != ".png" and not self.labels, f"--labels false is {other}"
        yield (
            ending == ".npz" and self.scale is not None,
            f"--scale {self.scale}: arrays are not enlarged; leave it out",
        )


def numbers_of(given: int | str, option: str) -> list[int]:
    """Return the numbers of a list such as 3,7,10-20, ranges with both ends.

    Raises:
        InputError: another text, negative numbers, one of them twice, or more than a million.
    """
    wrong = InputError(f"sample: --{option} {given}: give numbers, 0 or more, such as 3 or 3,7,10-20")
    numbers: dict[int, None] = {}
    for part in str(given).split(","):
        found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if found is None:
            raise wrong
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first or len(numbers) + last - first >= MOST:
            raise wrong if last < first else InputError(f"sample: --{option} {given}: more than {MOST:,} numbers")
        twice = next((number for number in range(first, last + 1) if number in numbers), None)
        if twice is not None:
            raise InputError(f"sample: --{option} {given}: names {twice} twice; name each number once")
        numbers |= dict.fromkeys(range(first, last + 1))
    return list(numbers)
