"""Checkpoints: the card that describes their networks, reading one, and exporting one.

Every checkpoint has its card under the key `degrain`, so that it loads without its config. It is what training wrote,
or an export of that: the weights that images are drawn with, half the size, read without running code. An export is a
safetensors file (https://github.com/huggingface/safetensors) whose metadata have one key, `degrain`: the card as JSON,
with a SHA-256 over card and weights.
"""

import json
import pickle
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.core.layers import PyramidConfig
from degrain.models.core.randomness import shown
from degrain.models.inference.artifact import local_checkpoint
from degrain.models.inference.hub import SCHEME, WEIGHTS, downloaded
from degrain.models.vae.flow import FlowConfig
from degrain.models.vae.network import VAEConfig
from degrain.models.vae.pixel_decoder import PixelConfig

PREFIXES = {"vae": "vae.", "prior": "prior.", "denoiser": "ema.module.", "generator": "ema.module."}
"""Prefix of each network's weights in a state dict; for G those of its moving average, which images are drawn with."""

SUFFIX = ".safetensors"  # of exports
FLOAT32 = "prior.cholesky"  # exports keep it in float32: densities need its inverse, whose rounding costs nats

UNREADABLE = (RuntimeError, EOFError, OSError, LookupError, TypeError, ValueError, pickle.PickleError, SafetensorError)
"""Errors that the readers raise for files that are damaged or of another kind."""


@dataclass(frozen=True)
class Card:
    """Description of a checkpoint's networks and of the training behind them.

    Args:
        stage: `vae`, `gan`, `plain_gan` or `toy`.
        size: image side in pixels.
        images_seen: training images seen in this stage.
        vae: fields of the VAEConfig; empty for a plain GAN and a toy.
        denoiser: fields of the denoiser's PyramidConfig, after stage 2.
        data: the data module's description of its data.
        tracked_run: id of the run in W&B, which training continues.
        exported: content of an export, in words.
        warm_from: images seen when the learning rate last rose from 0: not 0 after an export or a finished run.
        budget: training images to see in all.
        noise: whether the denoiser sees the draw's noise.
        loss: of the denoiser or the generator: `relativistic`, `classic` or `l2`.
        generator: fields of a plain GAN's GeneratorConfig.
        skipped_steps: training steps that were skipped because they were not finite.
        skipped_in_a_row: skipped steps since the last step that was taken.
        settings: a toy's settings.
        prior_note: why stage 1 has no fitted or no learned prior, in words.
        threads: of the process that trained; 0 if nobody knows.
    """

    stage: str
    size: int
    images_seen: int
    vae: dict[str, Any]
    denoiser: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    tracked_run: str | None = None
    exported: str | None = None
    warm_from: int = 0
    budget: int = 0
    noise: bool = True
    loss: str = "relativistic"
    generator: dict[str, Any] | None = None
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    settings: dict[str, Any] | None = None
    prior_note: str | None = None
    threads: int = 0

    def vae_config(self) -> VAEConfig:
        """Return the VAE's architecture."""
        pyramids = {half: PyramidConfig(**self.vae[half]) for half in ("encoder", "decoder")}
        kinds = {"posterior": FlowConfig, "prior": FlowConfig, "pixels": PixelConfig}  # older cards have none of them
        variants = {name: kind(**self.vae[name]) for name, kind in kinds.items() if name in self.vae}
        return VAEConfig(**self.vae | pyramids | variants)

    def with_defaults(self) -> "Card":
        """Fill in fields that were added after the checkpoint was written."""
        return replace(self, vae=asdict(self.vae_config())) if self.stage in ("vae", "gan") else self


def read_checkpoint(path: str | Path) -> tuple[Card, dict[str, Tensor]]:
    """Read the card and the weights of a checkpoint or an export, on the CPU; no code in the file is run.

    Args:
        path: of the file, of a folder with a model.safetensors, hf://USER/NAME (see `hub.downloaded`), or an address in
            W&B (see `artifact.local_checkpoint`).

    Raises:
        InputError: no such file, no checkpoint, truncated, damaged, or not written by degrain.
    """
    if not isinstance(path, str | Path):
        raise InputError(f"checkpoint {shown(path)}: must be a path, such as runs/NAME/last.ckpt")
    path = located(path)
    if path.is_dir():
        raise InputError(f"checkpoint {path}: no such file, it is a folder; give the last.ckpt in it")
    if not path.is_file():
        raise InputError(f"checkpoint {path}: no such file; train it first or correct the path")
    try:
        if path.suffix == SUFFIX:
            checkpoint = read_export(path)
        else:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UNREADABLE as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise InputError(
            f"checkpoint {path}: cannot be read ({why}): truncated or no checkpoint; take a copy or train it anew"
        ) from None
    if not isinstance(checkpoint, dict) or "degrain" not in checkpoint:
        raise InputError(
            f"checkpoint {path}: was not written by degrain (it has no key `degrain`); give the last.ckpt of a run"
        )
    try:
        card, state = Card(**checkpoint["degrain"]).with_defaults(), dict(checkpoint["state_dict"])
        if not all(isinstance(value, Tensor) for value in state.values()):
            raise TypeError("weights must be tensors")
        return card, state
    except (TypeError, KeyError, ValueError):
        raise version_error(path) from None


def located(path: str | Path) -> Path:
    """Return the path of the file that an address or a folder with a model.safetensors means; it may not be there.

    Raises:
        InputError: an address that gives no file.
    """
    path = downloaded(path) if str(path).startswith(SCHEME) else Path(local_checkpoint(path))
    return path / WEIGHTS if (path / WEIGHTS).is_file() else path


def version_error(path: str | Path, part: str = "") -> InputError:
    """Return the error for a checkpoint whose card or weights are not as this version writes them."""
    return InputError(
        f"checkpoint {path}: {part}was written by another version of degrain; take that one or train it anew"
    )


def to_export(card: Card, state: dict[str, Tensor]) -> bytes:
    """Return the content of an export; exporting an export gives the same bytes."""
    card = replace(card, tracked_run=None, warm_from=0, skipped_steps=0, skipped_in_a_row=0, exported=content_of(card))
    fields = asdict(card)
    del fields["settings"], fields["threads"]  # a toy's, which has no export, and the run's
    if card.prior_note is None:
        del fields["prior_note"]
    return to_safetensors(fields, drawing_state(state))


def content_of(card: Card) -> str:
    """Say in words what an export holds."""
    of_stage = {"vae": "VAE and prior", "gan": "VAE, prior and the denoiser's moving average"}
    networks = of_stage.get(card.stage, "the generator's moving average")
    return f"{networks}, nothing else of training; float16 but for vectors and {FLOAT32}"


def to_safetensors(card: dict[str, Any], state: dict[str, Tensor]) -> bytes:
    """Return a safetensors file, the same bytes for the same card (in plain types) and weights."""
    tensors = {name: packed(name, value) for name, value in state.items()}
    text = json.dumps(card | {"sha256": digest(card, tensors)}, sort_keys=True)
    return save(tensors, {"degrain": text})  # one key: several have another order every time


def packed(name: str, value: Tensor) -> Tensor:
    """Copy a weight, in float16 if it is a matrix or kernel whose numbers all stay in its range."""
    half = value.half()
    halved = value.is_floating_point() and value.ndim > 1 and name != FLOAT32 and half.isfinite().all()
    return (half if halved else value).clone(memory_format=torch.contiguous_format)


def read_export(path: Path) -> dict[str, Any]:
    """Read an export under the keys of a checkpoint, in float32; empty for another program's safetensors file.

    Raises:
        SafetensorError, OSError: truncated, or no safetensors file.
        ValueError: card and weights are not those that were written.
    """
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get("degrain")
        if text is None:
            return {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    card = json.loads(text, object_hook=with_tuples)
    if not isinstance(card, dict) or card.pop("sha256", None) != digest(card, tensors):
        raise ValueError("the card and the weights are not those that were written")
    state = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    return {"degrain": card, "state_dict": state}


def digest(card: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the card and of the name, type, shape and values of every tensor."""
    hashed = sha256(json.dumps(card, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        hashed.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        hashed.update(value.numpy().tobytes())
    return hashed.hexdigest()


def with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """Turn JSON's lists back into tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def drawing_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Select the weights of a state dict that images are drawn with."""
    return {name: value for name, value in state.items() if name.startswith(tuple(PREFIXES.values()))}


def substate(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Select the entries of a state dict below a prefix, and strip it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
