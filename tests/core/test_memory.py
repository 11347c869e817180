"""Test that freed memory stays with the process."""

import subprocess
import sys

import pytest

MIB = 2**20
KEPT = """
import ctypes
from models.core.memory import keep_freed_memory

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


def kept(first: str) -> int:
    """Return how many bytes of a freed block of 100 MiB a new process keeps."""
    code = KEPT.format(first=first, size=100 * MIB)
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_a_large_block_is_kept_for_the_next_one():
    assert kept("") < MIB < 99 * MIB < kept("keep_freed_memory()")
