"""Keep the C library from giving memory back to the system between the layers of a network."""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MOST, MOST_OF_OLD = 1 << 30, 1 << 25  # bytes; a threshold of blocks to map that glibc takes, since 2.35 and before


def keep_freed_memory() -> None:
    """Let glibc reuse freed memory on a CPU, in this process; do nothing elsewhere, or if a MALLOC_ variable is set.

    By default a tensor of many pixels is fresh memory, whose pages the kernel clears one by one: a tenth to a half of
    the time of a training step, and half of that of features at 224 pixels.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):  # the user's choice, and tests/benchmarks/memory.py's
        return
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(library, "mallopt"):
        for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            if not library.mallopt(parameter, MOST):
                library.mallopt(parameter, MOST_OF_OLD)
