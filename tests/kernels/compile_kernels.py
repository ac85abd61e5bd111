"""Compile every kernel for the target named on the command line, and print what was read from the binaries as JSON.

A process of its own, since interpreting and compiling do not mix in one.
"""

import dataclasses
import json
import sys

import torch

from kernels import conv, norm, pool
from kernels.inspect import compiling_for
from tests.kernels.problems import Pooling, Problem

CONVOLUTIONS = {
    "3x3": Problem((28, 28), (3, 3), batch=32, channels=128, outputs=128, padding=1),
    "3x3-stride-2": Problem((28, 28), (3, 3), batch=32, channels=128, outputs=128, stride=2, padding=1),
    "stem": Problem((224, 224), (7, 7), batch=32, channels=3, outputs=64, stride=2, padding=3),
    "grouped": Problem((28, 28), (3, 3), batch=32, channels=128, outputs=128, padding=1, groups=4),
    "odd-channels": Problem((28, 28), (3, 3), batch=32, channels=37, outputs=53, padding=1),
    "linear": Problem((), (), batch=256, channels=512, outputs=1000),
}
POOLINGS = {"3x3-stride-2": Pooling((56, 56), (3, 3), stride=2, padding=1, batch=32, channels=64)}
NORMALIZATIONS = {
    "batch-norm": Pooling((56, 56), (), batch=32, channels=64),
    "batch-norm-of-ones": Pooling((), (), batch=1, channels=1),  # extents of 1 are constants
}
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def on_meta(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def convolve(problem: Problem, dtype: torch.dtype) -> None:
    x = on_meta((problem.batch, problem.channels, *problem.size), dtype)
    weight = on_meta((problem.outputs, problem.channels // problem.groups, *problem.kernel), dtype)
    y = conv.forward(x, weight, on_meta((problem.outputs,), dtype), None, problem.window, True)
    conv.transpose(y, weight, None, y, problem.window, problem.size, False)
    conv.weight_gradient(x, y, y, problem.window, True)


def max_pool(problem: Pooling, dtype: torch.dtype) -> None:
    x = on_meta((problem.batch, problem.channels, *problem.size), dtype)
    y, taps = pool.max_pool(x, problem.window, problem.output_size)
    pool.max_pool_gradient(y, taps, problem.window, problem.size)


def batch_norm(problem: Pooling, dtype: torch.dtype) -> None:
    """In training with all that can be fused, and with running statistics, nothing fused and parameters frozen."""
    x = on_meta((problem.batch, problem.channels, *problem.size), dtype)
    weight = on_meta((problem.channels,), dtype)
    y, mean, var = norm.batch_norm(x, weight, weight, x, None, None, 1e-5, True)
    norm.batch_norm_gradient(y, x, weight, y, mean, var, 1e-5, True, True, True)
    norm.batch_norm(x, None, None, None, mean, var, 1e-5, False)
    norm.batch_norm_gradient(y, x, None, None, mean, var, 1e-5, False, False, False)


def compile_all(target: str) -> list[dict]:
    results = []
    for dtype in DTYPES:
        for run, problems in ((convolve, CONVOLUTIONS), (max_pool, POOLINGS), (batch_norm, NORMALIZATIONS)):
            for name, problem in problems.items():
                with compiling_for(target) as compiled:
                    run(problem, dtype)
                results += [
                    dataclasses.asdict(kernel) | {"problem": name, "dtype": str(dtype).removeprefix("torch.")}
                    for kernel in compiled
                ]
    return results


if __name__ == "__main__":
    print(json.dumps(compile_all(sys.argv[1])))
