"""The tests of the kernels, compiled: shares in as many processes as there are cores, what matters most first."""

from __future__ import annotations

import os
import subprocess
import sys

from experiments.gpu.step import REHEARSAL, cores

FILES = (
    "test_conv.py", "test_boxes.py", "test_pool.py", "test_norm.py", "test_epilogues.py", "test_product.py",
    "test_connectivity.py", "test_norm_layers.py", "test_functional.py", "test_ops.py", "test_layers.py",
    "test_properties.py", "test_backend.py", "test_large.py", "test_conversion.py", "test_conversion_changes.py",
    "test_conversion_parts.py", "test_conversion_safety.py", "test_conversion_code.py", "test_conversion_state.py",
    "test_torch_fallback.py",
)  # fmt: skip
REHEARSED = ("test_boxes.py", "test_backend.py")


def main() -> int:
    """Run the shares; the exit code is 1 if any of them could not be run. Tests that fail are records."""
    files = [f"tests/kernels/{name}" for name in (REHEARSED if REHEARSAL else FILES)]
    shares = 2 if REHEARSAL else cores()
    command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += ["-p", "experiments.gpu.pytest_records", *files]
    running = [
        subprocess.Popen(command, env=os.environ | {"CONVNETS_GPU_SHARE": f"{share}/{shares}"})
        for share in range(shares)
    ]
    codes = [process.wait() for process in running]
    return int(any(code not in (0, 1, 5) for code in codes))  # 1: tests failed, 5: a share had none


if __name__ == "__main__":
    raise SystemExit(main())
