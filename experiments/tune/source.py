"""Where a record comes from: what the choice of a tile depends on besides the problem."""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy
import torch
import triton

import kernels
from kernels.heuristics import INTERPRETER
from kernels.targets import TARGETS

# Modules of `kernels` that a choice depends on, and those that an estimate does besides.
CHOICE = ("conv", "weight_gradient", "implicit_gemm", "grid", "tile", "candidates", "model")
ESTIMATE = ("estimate", "sass", "trips", "pairing", "flow", "targets")


def source_of(target: str, measured: bool) -> dict[str, Any]:
    """Kind, device, versions and date; `versions` says which of them a record is known by."""
    if target == INTERPRETER:
        device = {"device": f"{os.cpu_count()} CPU cores ({_processor()})", "numpy": numpy.__version__}
    elif measured:
        device = {"device": torch.cuda.get_device_name(), "driver": _driver()}
    else:
        rates = TARGETS[target].rates
        device = {"device": rates.device if rates else "none"}
    return {
        "kind": "measured" if measured else "estimate",
        **device,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "kernels": _digest(CHOICE if measured else CHOICE + ESTIMATE),
        "date": datetime.now(UTC).date().isoformat(),
    }


def is_current(found: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether a record stands: from the same versions, or measured where only an estimate could take its place."""
    if found["kind"] == "measured" and now["kind"] == "estimate":
        return True
    return all(found.get(name) == value for name, value in now.items() if name != "date")


def _digest(modules: tuple[str, ...]) -> str:
    """Of the code of modules of `kernels`, whatever its layout and comments."""
    room = Path(kernels.__file__).parent
    code = "\n".join(ast.unparse(ast.parse((room / f"{name}.py").read_text(encoding="utf-8"))) for name in modules)
    return hashlib.sha256(code.encode()).hexdigest()[:12]


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
