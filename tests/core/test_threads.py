"""The number of threads: what was asked for, or a thread for each free core."""

from pathlib import Path

import pytest
import torch

from degrain.models.core import threads
from degrain.models.core.errors import InputError
from degrain.models.core.threads import Moment, choose_threads, free_cores, quota


@pytest.mark.parametrize(
    "most, free, processes, expected",
    [
        (2, 2.0, 1, 2),
        (2, 1.8, 1, 2),
        (2, 1.6, 1, 1),  # half a thread would be waited for
        (2, 0.0, 1, 1),  # beside two busy processes
        (16, 15.9, 1, 16),
        (16, 12.2, 1, 12),
        (8, 16.0, 1, 8),  # cores of two hardware threads each: PyTorch takes one
        (16, 16.0, 2, 8),
        (16, 11.0, 4, 2),
        (2, 2.0, 4, 1),
    ],
)
def test_a_thread_for_each_free_core(most, free, processes, expected):
    number, reason = choose_threads(most, free, processes)
    assert number == expected
    assert reason == f"{free:.1f} cores are free" + (f" for {processes} processes" if processes > 1 else "")


def test_the_option_is_before_the_variable_and_the_variable_before_the_load():
    assert choose_threads(2, 2.0, asked=5, fixed=True) == (5, "--threads")
    assert choose_threads(3, 0.0, fixed=True) == (3, "OMP_NUM_THREADS")
    assert choose_threads(2, 2.0, asked=1024) == (1024, "--threads")
    for asked in (0, -1, 1025, 2**31):  # OpenMP ends the process, and PyTorch raises from 2^31 on
        with pytest.raises(InputError, match=f"--threads {asked}: must be from 1 to 1024"):
            choose_threads(2, 2.0, asked=asked)


@pytest.mark.parametrize(
    "free, before, expected, said",
    [(4.0, 2, 2, "the run had as many"), (1.0, 2, 1, "the run had 2, and results now differ"), (4.0, 0, 4, "free")],
)
def test_a_run_that_is_gone_on_with_keeps_its_number_if_so_many_cores_are_free(free, before, expected, said):
    number, reason = choose_threads(4, free, before=before)
    assert number == expected and said in reason


def test_another_number_than_the_runs_is_said_whoever_chose_it():
    for given in ({"asked": 1}, {"fixed": True}):
        number, reason = choose_threads(1, 4.0, before=2, **given)
        assert number == 1 and "--threads 2 keeps them" in reason
    assert choose_threads(4, 4.0, asked=2, before=2) == (2, "--threads")


def test_free_is_what_was_idle_and_what_this_run_used():
    start, end = Moment(10.0, 1.0, 100.0), Moment(14.0, 4.0, 101.0)
    assert free_cores(start, end, 2) == (3.0 + 1.0) / 4.0
    assert free_cores(start, end, 2, own_processes=3) == 2  # (9 + 1) / 4, but there are no more
    assert free_cores(start, Moment(14.0, 1.0, 99.5), 2) == 0
    assert free_cores(None, end, 2) == free_cores(start, start, 2) == 2


def test_the_limit_of_a_container(tmp_path):
    file: Path = tmp_path / "cpu.max"
    assert quota(file) == float("inf")
    for text, cores in {"max 100000\n": float("inf"), "150000 100000\n": 1.5}.items():
        file.write_text(text)
        assert quota(file) == cores


def test_threads_are_set_here_and_for_processes_that_are_started(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads.set_threads(asked=2) == "threads: 2 (--threads)"
    assert torch.get_num_threads() == 2 and threads.os.environ["OMP_NUM_THREADS"] == "1"
    assert threads.set_threads(asked=3, processes=2) == "threads: 3 (--threads)"
    assert threads.os.environ["OMP_NUM_THREADS"] == "3"
    torch.set_num_threads(1)
    for variable in ("1", " 1 ", "1,2"):
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
        assert threads.set_threads() == "threads: 1 (OMP_NUM_THREADS)"


@pytest.mark.parametrize("variable", [None, "", " ", "abc", "0", "2.5"])
def test_a_busy_machine_leaves_one_thread_also_where_openmp_ignores_the_variable(monkeypatch, variable):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setattr(threads, "START", Moment(0.0, 0.0, 0.0))
    monkeypatch.setattr(threads, "now", lambda: Moment(10.0, 4.0, 0.5))
    assert threads.set_threads() == "threads: 1 (0.5 cores are free)"
