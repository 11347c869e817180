"""Full float32 for statistics, densities and draws, whatever precision the networks beside them have."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

PRODUCTS = (
    torch.backends.cuda.matmul,
    torch.backends.cudnn.conv,
    torch.backends.mkldnn.matmul,
    torch.backends.mkldnn.conv,
)
"""Where PyTorch may compute products of float32 numbers in TF32 or bf16; convolutions on a GPU do so by default."""


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute products of float32 numbers in float32: without autocast, TF32 and bf16. Also a decorator."""
    before = [place.fp32_precision for place in PRODUCTS]
    try:
        for place in PRODUCTS:
            place.fp32_precision = "ieee"
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        for place, precision in zip(PRODUCTS, before, strict=True):
            place.fp32_precision = precision
