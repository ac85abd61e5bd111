"""GPUs to compile for, by the names that Triton's compiler knows them by, and Triton's drivers that stand for them."""

from __future__ import annotations

import re
import shutil
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from kernels.inspect import OfflineDriver

NAMES = "sm_90 (NVIDIA), gfx942 (AMD) and the like"


def gpu_target(name: str) -> GPUTarget:
    """Return what Triton's compiler is told of a GPU: "sm_90" or "gfx942", known to the tuner or not.

    Raises:
        ValueError: the name is of another form.
    """
    if re.fullmatch(r"sm_\d{2,3}", name):
        return GPUTarget("cuda", int(name[3:]), 32)
    if re.fullmatch(r"gfx[0-9a-f]{3,4}", name):
        return GPUTarget("hip", name, 64 if name.startswith("gfx9") else 32)
    raise ValueError(f"--target must be a GPU's architecture, as {NAMES}, got {name!r}")


def builds_launchers(target: str) -> bool:
    """Return True if Triton runs gcc for the launcher of each signature, as before 3.7, and this can be done here."""
    old = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7)
    return old and target.startswith("sm_") and shutil.which("gcc") is not None


def compiling_driver(target: str) -> Any:
    """Return the driver by which a process compiles; the stub of libcuda where it also builds launchers."""
    if not builds_launchers(target):
        return OfflineDriver(gpu_target(target))
    from experiments.gpu.stub import driver_for

    return driver_for(target)
