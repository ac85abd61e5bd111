"""Compile kernels in processes of their own; what they make is kept in Triton's cache."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import Any

from triton.runtime import driver

from experiments.compile_pool import CompilePool, start_server
from experiments.gpu.step import reason
from experiments.precompile.cache import LIBRARIES, cache_folder, recording_libraries
from experiments.precompile.collect import Kernel, collecting
from experiments.precompile.target import builds_launchers, compiling_driver
from experiments.progress import progress

_shared_libraries: list[str] = []  # of all kernels, in a process that builds launchers


@dataclass(frozen=True)
class Outcome:
    """The outcome for the kernels of a computation.

    Args:
        kernels: all of them.
        faults: of those that did not compile, a line each.
        seconds: what it took.
    """

    kernels: Sequence[Kernel]
    faults: Sequence[str]
    seconds: float

    @property
    def cached(self) -> int:
        return sum(kernel.is_cached for kernel in self.kernels)

    @property
    def compiled(self) -> int:
        return len(self.kernels) - self.cached - len(self.faults)

    def __str__(self) -> str:
        parts = [f"{self.compiled} compiled", f"{self.cached} found in the cache"]
        if self.faults:
            parts.append(f"{len(self.faults)} not compiled ({self.faults[0]})")
        return f"{len(self.kernels)} kernels, {', '.join(parts)}, in {self.seconds:.1f} s"


def compile_ahead(target: str, compute: Callable[[], object], processes: int | None = None) -> Outcome:
    """Compile for `target` the kernels that `compute` launches, which runs on tensors without values.

    Raises:
        ValueError: for a target that is none, or by `compute`.
    """
    started = time.perf_counter()
    with collecting(target, on_missing=start_server) as found:
        compute()
    kernels = list(found.values())
    missing = [kernel for kernel in kernels if not kernel.is_cached]
    faults: list[str] = []
    if missing:
        with progress() as bar:
            line = bar.add_task(f"compiling for {target}", total=len(missing))
            for fault in compile_each(target, missing, processes):
                faults += filter(None, [fault])
                bar.advance(line)
    return Outcome(kernels, faults, time.perf_counter() - started)


def compile_or_warn(target: str, compute: Callable[[], object]) -> None:
    """Compile ahead, and say what was compiled; a failure is a warning, as a launch compiles what is missing."""
    try:
        outcome = compile_ahead(target, compute)
    except Exception as error:  # of whatever `compute` runs
        warnings.warn(f"kernels are compiled as they are launched, not ahead: {error}", stacklevel=2)
        return
    if outcome.compiled or outcome.faults:
        print(f"compiled ahead: {outcome}", flush=True)


def compile_each(target: str, kernels: Sequence[Kernel], processes: int | None = None) -> Iterator[str]:
    """Compile kernels, the longest first; gives for each, as it is done, what is wrong with it, or ""."""
    ordered = sorted(kernels, key=effort, reverse=True)
    with CompilePool(partial(compile_kernel, target), processes) as pool:
        for number, fault in pool.run(ordered):
            yield f"{ordered[number].name.strip('_')}: crashes the compiler" if fault is None else fault


def effort(kernel: Kernel) -> int:
    """Return a number that grows with the time to compile a kernel: elements of a block that a thread works on."""
    names = ("ROWS", "COLUMNS") if "ROWS" in kernel.constants else ("BM", "BN")
    extents = [kernel.constants.get(name, 1) for name in names]
    return prod(sum(each) if isinstance(each, tuple) else each for each in extents)


@cache
def _prepare(target: str) -> None:
    """Compile for `target` from now on. What is to be said is left to the parent."""
    if os.environ.get("CONVNETS_DEBUG") != "1":
        for stream in (1, 2):  # what Triton and MLIR say of an error, all of the machine code too
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    with recording_libraries() as libraries:
        driver.set_active(compiling_driver(target))
    _shared_libraries[:] = libraries


def compile_kernel(target: str, kernel: Kernel) -> str:
    """Compile a kernel into the cache, and where that is needed its launcher; return what is wrong, or ""."""
    _prepare(target)
    try:
        with recording_libraries() as libraries:
            binary: Any = kernel.function.warmup(*kernel.arguments, grid=(1,), **kernel.constants)
            if builds_launchers(target):
                binary._init_handles()
                record = cache_folder() / kernel.key / LIBRARIES
                record.write_text(json.dumps([*_shared_libraries, *libraries]))
        folders = {Path(path).parent.name for path in binary.metadata_group.values()}
        return "" if folders == {kernel.key} else f"{kernel.name.strip('_')}: its launch would not find it in the cache"
    except Exception as error:  # of the compiler, which has many kinds
        return f"{kernel.name.strip('_')}: {reason(error)}"
