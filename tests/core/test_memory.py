"""Test that freed memory stays with the process."""

import os
import subprocess
import sys

import pytest

MIB = 2**20
KEPT = """
import ctypes
from degrain.models.core.memory import keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

{first}
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
block, before = library.malloc(ctypes.c_size_t({size})), resident()
ctypes.memset(block, 1, {size})
library.free(ctypes.c_void_p(block))
print(resident() - before)
"""


def kept(first: str, **variables: str) -> int:
    """Return how many bytes of a freed block of 100 MiB a new process keeps, with these variables of malloc's alone."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | variables
    code = KEPT.format(first=first, size=100 * MIB)
    command = [sys.executable, "-c", code]
    return int(subprocess.run(command, env=settings, capture_output=True, check=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_a_large_block_is_kept_for_the_next_one():
    assert kept("") < MIB < 99 * MIB < kept("keep_freed_memory()")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_settings_of_the_environment_stay():
    """tests/benchmarks/memory.py sets them, or freed blocks would count as used."""
    assert kept("keep_freed_memory()", MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="0") < MIB
