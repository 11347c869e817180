"""The file format of an export: weights and their card, half the size of a checkpoint, read without running code.

It is a safetensors file (https://github.com/huggingface/safetensors). Its metadata have one key, `degrain`: the card of
models/inference/checkpoint.py as JSON, with a SHA-256 over card and weights. The weights have a checkpoint's names.
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

SUFFIX = ".safetensors"

WHOLE = "prior.cholesky"
"""Kept in float32: densities need its inverse, whose rounding costs nats where latents are correlated."""

PRECISION = f"float16 but for vectors and {WHOLE}"


def to_bytes(card: dict[str, Any], state: dict[str, Tensor]) -> bytes:
    """Return the content of an export, the same bytes for the same card and weights.

    Args:
        card: in plain types.
        state: the weights by name.
    """
    tensors = {name: packed(name, value) for name, value in state.items()}
    text = json.dumps(card | {"sha256": digest(card, tensors)}, sort_keys=True)
    return save(tensors, {"degrain": text})  # one key: several have another order every time


def packed(name: str, value: Tensor) -> Tensor:
    """Copy a weight, in float16 if it is a matrix or kernel whose numbers all stay in its range."""
    half = value.half()
    halved = value.is_floating_point() and value.ndim > 1 and name != WHOLE and half.isfinite().all()
    return (half if halved else value).clone(memory_format=torch.contiguous_format)


def read(path: Path) -> dict[str, Any]:
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
