"""Freed memory is kept: page faults of repeated allocations, each in a process of its own."""

import os
import subprocess
import sys

import pytest

CODE = """
import resource, sys
import torch
from models.core.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for step in range(6):
    if step == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2**20) for _ in range(8)]  # 4 MiB each
    del tensors
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_memory_that_is_freed_is_not_faulted_in_again():
    faults = {}
    for how in ("kept", "given back"):
        settings = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        done = subprocess.run(
            [sys.executable, "-c", CODE, how], capture_output=True, text=True, env=settings, check=True
        )
        faults[how] = int(done.stdout)
    assert faults["kept"] < 0.3 * faults["given back"]
