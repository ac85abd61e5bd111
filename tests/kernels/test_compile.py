"""Every kernel compiles for real GPUs, without one: no spills, within shared memory, on tensor cores."""

import json
import os
import subprocess
import sys

import pytest

from kernels import backend
from kernels.targets import TARGETS

pytestmark = pytest.mark.skipif(not backend.AVAILABLE, reason="triton is not installed")


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx90a", "gfx942"])
def test_every_kernel_compiles(target):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.compile_kernels", target]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    kernels = json.loads(result.stdout)
    assert len(kernels) == 4 * (3 * 6 + 4 * 3)
    for kernel in kernels:
        assert kernel["registers"] > 0 and kernel["spills"] == 0, kernel
        assert kernel["shared_memory"] <= TARGETS[target].shared_memory, kernel
        # torch allows TF32 for convolutions and not for matrix products, unless told otherwise; AMD multiplies both.
        ieee = kernel["dtype"] == "float32" and kernel["problem"] == "linear" and target.startswith("sm")
        assert kernel["tensor_cores"] == ("_pool" not in kernel["name"] and not ieee), kernel


def test_an_interpreting_process_refuses_to_compile():
    if not backend.INTERPRETING:
        pytest.skip("this process compiles")
    from kernels.inspect import compiling_for

    with pytest.raises(RuntimeError, match="unset TRITON_INTERPRET"), compiling_for("sm_90"):
        pass
    with pytest.raises(ValueError, match="target must be one of sm_80, .* got 'sm_1'"), compiling_for("sm_1"):
        pass
