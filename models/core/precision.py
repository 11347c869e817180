"""Full float32 for statistics, densities and draws, and processors that can compute bf16 but slowly."""

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


def cpu_emulates_bf16() -> bool:
    """Return whether PyTorch has no kernels for products of bf16 on this processor, and is many times slower with them.

    So it is on x86 processors without AVX-512 (torch 2.14.1): stage 2 at 64 pixels made 1 image/s on AVX2, 12 in
    float32.
    """
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()
