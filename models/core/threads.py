"""How many threads a process computes with: as many as there are free cores when it starts.

PyTorch's default is one for each core. Its threads wait for each other several hundred times a training step, and spin
meanwhile: beside busy processes two threads on two cores are several times slower than one (docs/speed.md).

The scripts import this file before PyTorch: the load is measured from then on until the number is chosen.
"""

import os
import time
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from degrain.models.core.errors import InputError

ENOUGH = 0.75
"""Share of a core that must be free for one more thread."""

VARIABLE = "OMP_NUM_THREADS"

MOST = 1024
"""Threads that can be asked for: OpenMP ends the process where the system refuses one."""


@dataclass(frozen=True)
class Moment:
    """Seconds since any fixed time: on the clock, of this process on a core, and that the cores were idle, summed."""

    clock: float
    own: float
    idle: float


def allowed_cores() -> set[int]:
    """Return the numbers of the cores that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def quota(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> float:
    """Return the cores that a container (cgroup v2) may use at a time, infinite without a limit."""
    try:
        most, period = file.read_text().split()
        return float(most) / float(period)
    except (OSError, ValueError):  # there is no limit, or "max 100000"
        return float("inf")


def now() -> Moment | None:
    """Return this moment; None where there is no /proc/stat."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return None
    fields = {words[0]: words for words in map(str.split, lines)}
    cores = (fields.get(f"cpu{core}", ["0"] * 6) for core in allowed_cores())
    ticks = sum(int(core[4]) + int(core[5]) for core in cores)  # idle, and waiting for a disk
    return Moment(time.monotonic(), time.process_time(), ticks / os.sysconf("SC_CLK_TCK"))


START = now()


def free_cores(start: Moment | None, end: Moment | None, cores: float, own_processes: int = 1) -> float:
    """Return how many cores were idle or this process's between two moments; all of them if nobody knows.

    Args:
        start: first moment.
        end: second moment.
        cores: how many this process may use.
        own_processes: processes of this run that were alive, each as busy as this one.
    """
    if start is None or end is None or end.clock <= start.clock:
        return cores
    seconds = end.idle - start.idle + own_processes * (end.own - start.own)
    return min(cores, max(0.0, seconds / (end.clock - start.clock)))  # Linux's time of waiting for a disk may fall


def choose_threads(
    most: int,
    free: float,
    processes: int = 1,
    asked: int | None = None,
    fixed: bool = False,
    before: int = 0,
) -> tuple[int, str]:
    """Return the number of threads of this process and the reason for it, in words.

    Args:
        most: PyTorch's own number: a thread for each core, or what OMP_NUM_THREADS says.
        free: cores that no other program uses.
        processes: processes of this run on this machine, which share the cores.
        asked: the option --threads.
        fixed: whether OMP_NUM_THREADS holds a number.
        before: threads of the run that is gone on with, 0 if there is none. More are not taken, because sums of other
            parts differ in their last bits.

    Raises:
        InputError: fewer than 1 or more than `MOST` asked for.
    """
    if asked is not None and not 1 <= asked <= MOST:
        raise InputError(f"--threads {asked}: must be from 1 to {MOST}; more than the machine has cores are slower")
    if asked is not None:
        threads, reason = asked, "--threads"
    elif fixed:
        threads, reason = most, VARIABLE
    else:
        threads = max(1, min(most, before or most, int((free + 1 - ENOUGH) / processes)))
        reason = f"{free:.1f} cores are free" + (f" for {processes} processes" if processes > 1 else "")
    if before and threads != before:
        reason += f"; the run had {before}, and results now differ in their last bits; --threads {before} keeps them"
    elif before > 0 and asked is None and not fixed:
        reason += "; the run had as many"
    return threads, reason


def is_number_of_threads(variable: str) -> bool:
    """Return True for a value of OMP_NUM_THREADS that OpenMP takes: 4, or 4,2 for nested threads."""
    first = variable.split(",")[0].strip()
    return first.isdecimal() and int(first) > 0


def set_threads(asked: int | None = None, processes: int = 1, own_processes: int = 1, before: int = 0) -> str:
    """Set PyTorch's threads, also those of processes that this one starts, and return a line that says how many.

    Args:
        asked: see `choose_threads`.
        processes: see `choose_threads`.
        own_processes: see `free_cores`.
        before: see `choose_threads`.

    Raises:
        InputError: see `choose_threads`.
    """
    import torch  # here: the load is measured while it is imported

    fixed, cores = is_number_of_threads(os.environ.get(VARIABLE, "")), min(len(allowed_cores()), quota())
    most = torch.get_num_threads() if fixed else min(torch.get_num_threads(), ceil(cores))
    free = free_cores(START, now(), cores, own_processes)
    threads, reason = choose_threads(most, free, processes, asked, fixed, before)
    torch.set_num_threads(threads)
    if processes > 1:
        os.environ[VARIABLE] = str(threads)
    return f"threads: {threads} ({reason})"
