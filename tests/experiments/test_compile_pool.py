"""Processes that compile, and what becomes of the jobs where some are killed."""

import os
import signal

import pytest

pytest.importorskip("triton")

from experiments.compile_pool import CompilePool  # noqa: E402
from experiments.inspection import work  # noqa: E402
from experiments.tune import compiling  # noqa: E402

LAYER = ("--channels", "16", "--size", "8", "8", "--kernel_size", "3")


def double(number: int) -> tuple[int, int]:
    if number < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number, os.getpid()


def killed(job: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class KilledAtTheStart:
    """Work that ends the process which receives it, before that can ask for a job."""

    def __call__(self, job: object) -> None:
        raise AssertionError("no process comes to this")

    def __reduce__(self):
        return killed, (None,)


def test_a_process_that_is_killed_takes_only_its_job_with_it():
    with CompilePool(double, 2) as pool:
        found = dict(pool.run([1, -1, 2, -2, 3, 4]))
        assert {number: result and result[0] for number, result in found.items()} == {
            0: 2, 1: None, 2: 4, 3: None, 4: 6, 5: 8,
        }  # fmt: skip
        ((number, again),) = pool.run([5])
        assert number == 0 and again[0] == 10
        assert again[1] in {result[1] for result in found.values() if result}  # processes are kept for the next jobs


def test_processes_that_are_killed_at_their_start_do_not_hang():
    with CompilePool(KilledAtTheStart(), 2) as pool:
        assert sorted(pool.run(["a", "b", "c"])) == [(0, None), (1, None), (2, None)]


def test_no_process_is_left():
    with CompilePool(double, 2) as pool:
        jobs = pool.run([1] * 4)
        next(jobs)
    assert [worker.exitcode for worker in pool._workers] == [-signal.SIGTERM] * 2


def test_inspect_says_in_a_line_that_its_process_was_killed(convnets, monkeypatch):
    monkeypatch.setattr(work, "inspected_or_fault", killed)
    error = convnets("inspect", "--target", "sm_80", *LAYER, "--operation", "forward").error
    assert error == "forward of 3x3 16 -> 16 at 8x8, N 32, float16: its process ended, perhaps for want of memory"


def test_tune_says_in_a_line_that_its_processes_were_killed(convnets, monkeypatch):
    monkeypatch.setattr(compiling, "work", killed)
    arguments = ("--outputs", "16", "--operation", "forward", "--table", "t.json", "--candidates", "2")
    outcome = convnets("tune", "--target", "sm_80", *LAYER, *arguments)
    assert outcome.code == 1 and not outcome.err
    assert "not tuned, 3 of 3 tiles: crashes the compiler" in outcome.out
