"""Describe the GPU, and measure the rates that it reaches: copies and matrix products."""

from __future__ import annotations

import functools
import platform
import shutil
import subprocess
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from experiments.gpu.step import DEVICE, REHEARSAL, interpret_in_rehearsal, record

interpret_in_rehearsal()

import torch  # noqa: E402

from experiments.gpu.timing import timed  # noqa: E402

PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "torchvision",
    "lightning",
    "jsonargparse",
    "pytest",
    "hypothesis",
    "matplotlib",
)
QUERY = (
    "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu,ecc.mode.current"
)
GIGA, TERA = 1e9, 1e12


def describe() -> None:
    """Record the device, the driver, versions and clocks."""
    found: dict[str, object] = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    found["cudnn"] = torch.backends.cudnn.version()
    found["Python.h"] = str(Path(sysconfig.get_path("include"), "Python.h").exists())
    found["C compiler"] = shutil.which("gcc") or shutil.which("clang") or "missing"  # which Triton needs, before 3.7
    if DEVICE == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found["device"] = properties.name
        found["capability"] = f"{properties.major}.{properties.minor}"
        found["processors"] = properties.multi_processor_count
        found["L2_bytes"] = properties.L2_cache_size
        found["memory_bytes"] = properties.total_memory
    else:
        found["device"] = f"none: a rehearsal on {platform.machine()}"
    if shutil.which("nvidia-smi") and not REHEARSAL:
        command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader", "--id=0"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
            found["nvidia-smi"] = dict(zip(QUERY.split(","), answer.strip().split(", "), strict=False))
        except (OSError, subprocess.TimeoutExpired):
            pass  # what follows does not need it
    record(what="machine", **found)


def bandwidth() -> None:
    """Record the rate of copies, read and write together."""
    elements = 2**16 if REHEARSAL else 2**29
    x = torch.zeros(elements, dtype=torch.float16, device=DEVICE)
    y = torch.empty_like(x)
    timing = timed([lambda: y.copy_(x)])
    record(what="copy", bytes=2 * x.numel() * 2, seconds=timing.device, gigabytes=4 * elements / timing.device / GIGA)


def products() -> None:
    """Record the rate of square matrix products by torch's library."""
    side = 64 if REHEARSAL else 8192
    for name, dtype, tf32 in (
        ("float16", torch.float16, False), ("bfloat16", torch.bfloat16, False), ("tf32", torch.float32, True),
        ("float32", torch.float32, False),
    ):  # fmt: skip
        torch.backends.cuda.matmul.allow_tf32 = tf32
        extent = side if name != "float32" else side // 2
        a, b = (torch.randn(extent, extent, device=DEVICE, dtype=dtype) for _ in range(2))
        c = torch.empty_like(a)
        timing = timed([functools.partial(torch.mm, a, b, out=c)])
        teraflops = 2 * extent**3 / timing.device / TERA
        record(what="product", arithmetic=name, extent=extent, seconds=timing.device, teraflops=teraflops)
    torch.backends.cuda.matmul.allow_tf32 = False


def main() -> int:
    describe()
    bandwidth()
    products()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
