"""Measure what a launch costs the host: python -m tests.host_cost

It is measured on Triton's own launch path with a stub driver: kernels are compiled for sm_90 and none runs, so a call's
time is all the host's. Of torch's functions, on CPU tensors, it is that of the arithmetic too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

os.environ.pop("TRITON_INTERPRET", None)  # before the first import of triton

import torch
import triton

import kernels
from experiments.gpu.host_calls import STEP_GOAL, launchers, operators, resnet50_step
from experiments.gpu.stub import stubbed
from kernels import backend

TARGET = "sm_90"
STEPS = 10


def seconds_of(call: Callable[[], object], calls: int = 20, rounds: int = 60) -> float:
    """Return the seconds of a call, the least of many short rounds: what else the machine does only adds."""
    best = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(calls):
            call()
        best = min(best, (time.perf_counter() - started) / calls)
    return best


def report() -> bool:
    """Print what launchers, functions and a step take; return True if all stay within their goals."""
    torch.set_num_threads(1)
    reached = True
    with stubbed(TARGET), kernels.use_backend("triton"):
        print(f"host time of a call, Triton {triton.__version__} on a stub driver, torch {torch.__version__}:")
        for name, call in (launchers("cpu") | operators("cpu", torch.float32)).items():
            microseconds, goal = 1e6 * call.measured(seconds_of), call.goal
            reached &= microseconds <= goal
            print(f"  {name:36} {microseconds:6.1f} us" + (f" (goal {goal:.0f})" if goal < float("inf") else ""))
        step = resnet50_step("cpu")
        step()  # compiles
        before = backend.launch_count()
        seconds = seconds_of(step, calls=1, rounds=STEPS)
        launches = (backend.launch_count() - before) // STEPS
        print(f"  a step of ResNet-50, {launches} launches: {1e3 * seconds:.1f} ms (goal {1e3 * STEP_GOAL:.0f})")
    return reached and seconds <= STEP_GOAL


if __name__ == "__main__":
    raise SystemExit(0 if report() else 1)
