"""The view that a step has of its run: device, rehearsal or not, earlier records, and a way to record a result."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MARK = "RECORD "  # before a record, on a line of the output of a step
REHEARSAL = os.environ.get("CONVNETS_GPU_REHEARSAL") == "1"
DEVICE = "cpu" if REHEARSAL else "cuda"
TARGET = "sm_90"  # that a rehearsal compiles for
LONGEST = 600.0 if REHEARSAL else 45.0  # seconds after which a kernel is taken to hang
MOST_CORES = 16  # processes that each may hold a context of the GPU


def interpret_in_rehearsal() -> None:
    """Have Triton interpret in a rehearsal; to be called before the first import of triton."""
    if REHEARSAL:
        os.environ["TRITON_INTERPRET"] = "1"


def record(**fields: Any) -> None:
    """Give a result to the report. Numbers that are not finite become null, as JSON has no others."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields.items()
    }
    sys.stdout.write(MARK + json.dumps(finite) + "\n")
    sys.stdout.flush()


def earlier(step: str) -> list[dict[str, Any]]:
    """Return the records of a step so far, from the report in the environment."""
    path = os.environ.get("CONVNETS_GPU_REPORT")
    if path is None:
        return []
    with open(path, encoding="utf-8") as file:
        return list(json.load(file)["steps"].get(step, {}).get("records", []))


def reason(error: BaseException) -> str:
    """Return the last line of an error, where a compiler says what it means; of CUDA's the first, advice follows.

    Of ptxas, whose command comes last, it is the line by which it ended.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" ^")]
    telling = [line for line in lines[:1] if line.startswith("CUDA")]
    telling += [line for line in lines if line.startswith("ptxas fatal")]
    said = next(iter(telling), lines[-1] if lines else "")
    return f"{type(error).__name__}: {said[:200]}".rstrip(": ")


def cores() -> int:
    """Return the number of processes to start: of cores that this one may use, as a container may be one of many."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no such file, or no quota: "max"
        pass
    return max(1, min(count, MOST_CORES))


def device_is_lost() -> bool:
    """Return True if all that CUDA has left for this process is errors, as after an access out of bounds."""
    if DEVICE == "cpu":
        return False
    import torch

    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def go_on(step: str, *arguments: object) -> int:
    """Do the rest of a step in a new process, which has the device again; return its exit code."""
    return subprocess.run(rest_of(step, *arguments)).returncode


def rest_of(step: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", f"experiments.gpu.steps.{step}", *map(str, arguments)]


@contextmanager
def unless_it_hangs(report: Callable[..., None], command: Sequence[str]) -> Iterator[None]:
    """Report what takes longer than LONGEST inside a `with` block, and have `command` take the place of this process.

    With it ends its context, and so the kernel that hangs.
    """

    def give_up() -> None:
        report(fault=f"took more than {LONGEST:.0f} s: the rest is done by another process")
        os.execvp(command[0], list(command))

    timer = threading.Timer(LONGEST, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
