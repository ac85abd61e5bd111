"""What a binary needs is read from it: `python -m tests.compiled` does so for every kernel, in processes of its own."""

import os
import subprocess
import sys

import pytest

from kernels import backend

pytestmark = pytest.mark.skipif(not backend.AVAILABLE, reason="triton is not installed")

SCRIPT = """
import torch
from kernels import conv
from kernels.inspect import compiling_for
from kernels.shape import Window
from kernels.tuning import Tile, use_tile
window = Window((3,), (1,), ((1, 1),), (1,))
x, weight = (torch.empty(s, dtype={dtype}, device="meta") for s in ((8, 64, {length}), (64, 64, 3)))
with compiling_for("{target}") as kernels, use_tile(Tile(128, 64, 32)):
    conv.forward(x, weight, None, None, window, relu=True)
(kernel,) = kernels
print(kernel.name, kernel.block, kernel.registers > 0, kernel.spills, kernel.tensor_cores, kernel.wide)
"""


@pytest.mark.parametrize(
    ("target", "dtype", "length", "expected"),
    [
        ("sm_90", "torch.float16", 100, "_forward_kernel (128, 64, 32) True 0 True False"),
        ("gfx942", "torch.bfloat16", 100, "_forward_kernel (128, 64, 32) True 0 True False"),
        ("sm_80", "torch.float16", 2**26, "_forward_kernel (128, 64, 32) True 0 True True"),
    ],
)
def test_a_kernel_is_compiled_without_a_gpu(target, dtype, length, expected):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = SCRIPT.format(target=target, dtype=dtype, length=length)
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == expected


def test_an_interpreting_process_refuses_to_compile():
    if not backend.INTERPRETING:
        pytest.skip("this process compiles")
    from kernels.inspect import compiling_for

    with pytest.raises(RuntimeError, match="unset TRITON_INTERPRET"), compiling_for("sm_90"):
        pass
    with pytest.raises(ValueError, match="target must be one of sm_80, .* got 'sm_1'"), compiling_for("sm_1"):
        pass
