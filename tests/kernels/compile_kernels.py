"""Compile every kernel for the target named on the command line, and print what was read from the binaries as JSON.

A process of its own, since interpreting and compiling do not mix in one.
"""

import dataclasses
import json
import sys

import torch

from kernels import conv, pool
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
POOLINGS = {
    "3x3-stride-2": Pooling((56, 56), (3, 3), stride=2, padding=1, count_include_pad=False, batch=32, channels=64),
    "adaptive": Pooling((13, 13), output=(6, 6), batch=32, channels=256),
    "adaptive-3-d": Pooling((5, 6, 7), output=(7, 4, 5), batch=32, channels=64),
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


def pooling(problem: Pooling, dtype: torch.dtype) -> None:
    x = on_meta((problem.batch, problem.channels, *problem.size), dtype)
    y, taps = pool.max_pool(x, problem.window, problem.output_size)
    pool.max_pool_gradient(y, taps, problem.window, problem.size)
    pool.average_pool(x, problem.window, problem.output_size, 0, problem.count_include_pad)
    pool.average_pool_gradient(y, problem.window, problem.size, 0, problem.count_include_pad)


def compile_all(target: str) -> list[dict]:
    results = []
    for dtype in DTYPES:
        for run, problems in ((convolve, CONVOLUTIONS), (pooling, POOLINGS)):
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
