"""Named calls of every public launcher, with all that can be fused, for tests of how kernels are launched."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels import conv, norm, norm_gradient, pool, tuning
from kernels.checks import make_window
from kernels.shape import POINT, Window
from kernels.tile import Tile
from tests.kernels.problems import Pooling, Problem, lay_out

SMALL = Tile(16, 16, 16, 1, 1)  # compiled in a moment
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
Case = Callable[[], object]


def window(kernel: tuple[int, ...], stride: int = 1, padding: int = 0, groups: int = 1, **more: Any) -> Window:
    return make_window("launch_cases", kernel, stride, padding, 1, groups, **more)


def draw(*shape: int, dtype: torch.dtype = torch.float16, layout: str = "contiguous") -> Tensor:
    return lay_out(torch.zeros(shape, dtype=dtype), layout)


def convolutions(problem: Problem, dtype: torch.dtype, layout: str, tile: Tile, mask: bool = True) -> None:
    """The three operations, with all that can be fused into them but pooling, and with nothing."""
    window = problem.window
    x = draw(problem.batch, problem.channels, *problem.size, dtype=dtype, layout=layout)
    weight = draw(window.tiles * problem.outputs, problem.channels // problem.groups, *problem.kernel, dtype=dtype)
    y, bias = draw(*problem.output_shape, dtype=dtype, layout=layout), draw(len(weight), dtype=dtype)
    with tuning.use_tile(tile):
        for full in (True, False):
            given = (bias, y) if full else (None, None)
            conv.forward(x, weight, *given, window, full)
            y_of_relu = y if full and mask else None
            conv.transpose(y, weight, x.new_zeros(x.shape[1]) if full else None, y_of_relu, window, problem.size, full)
            conv.weight_gradient(x, y, y_of_relu, window, full)


def largest(pooling: Window, maxout: int, size: tuple[int, int], dtype: torch.dtype = torch.float16) -> None:
    x, weight = draw(2, 16, 8, 8, dtype=dtype), draw(16, 16, 3, 3, dtype=dtype)
    with tuning.use_tile(SMALL):
        conv.forward_max(x, weight, draw(16, dtype=dtype), window((3, 3), padding=1), True, pooling, size, maxout)


def poolings(problem: Pooling, dtype: torch.dtype) -> None:
    x, sizes = draw(problem.batch, problem.channels, *problem.size, dtype=dtype), (problem.output_size, problem.size)
    x = lay_out(x, problem.layout)
    y, taps = pool.max_pool(x, problem.window, sizes[0])
    pool.max_pool_gradient(y, taps, problem.window, sizes[1])
    pool.average_pool(x, problem.window, sizes[0], 0, False)
    pool.average_pool_gradient(y, problem.window, sizes[1], 0, False)


def norms(shape: tuple[int, ...], dtype: torch.dtype, layout: str, parameters: bool, mode: str) -> None:
    """A batch norm by running statistics, by those of the batch, or by these while tracking them; and its gradient."""
    x, dy = (draw(*shape, dtype=dtype, layout=layout) for _ in range(2))
    weight, bias, residual = (draw(shape[1], dtype=dtype), draw(shape[1], dtype=dtype), x) if parameters else [None] * 3
    running = [None] * 2 if mode == "batch" else [draw(shape[1], dtype=dtype) for _ in range(2)]
    momentum = 0.1 if mode == "tracking" else None
    y, *batch = norm.batch_norm(x, weight, bias, residual, *running, momentum, 1e-5, parameters)
    statistics = running if mode == "running" else batch
    mask = y if parameters else None
    norm_gradient.batch_norm_gradient(dy, x, weight, mask, *statistics, 1e-5, mode != "running", parameters, parameters)


def cases() -> dict[str, Case]:
    """Return calls of the public launchers by name; each makes tensors of its own."""
    plain = Problem((6, 6), (3, 3), padding=1, channels=16, outputs=16)
    problems = {
        "stride": Problem((7, 7), (3, 3), padding=1, stride=2, channels=16, outputs=16),
        "stem": Problem((16, 16), (7, 7), stride=2, padding=3, channels=3, outputs=16),
        "groups": Problem((6, 6), (3, 3), padding=1, channels=32, outputs=32, groups=2),
        "tiled": Problem((6, 6), (3, 3), padding=1, tile=(2, 2), channels=16, outputs=16),
        "covering": Problem((4, 4), (4, 4), channels=8, outputs=16),
        "linear": Problem((), (), channels=32, outputs=10),
        "1-d": Problem((17,), (4,), stride=3, padding=2, channels=5),
        "3-d": Problem((4, 5, 6), (3, 3, 3), padding=1, channels=16, outputs=16),
    }
    found: dict[str, Case] = {}
    for dtype in DTYPES:
        found[f"convolution {dtype}"] = partial(convolutions, plain, dtype, "contiguous", SMALL)
    for name, problem in problems.items():
        found[name] = partial(convolutions, problem, torch.float16, "contiguous", SMALL)
    for layout in ("channels_last", "expanded", "strided"):
        found[layout] = partial(convolutions, plain, torch.float16, layout, SMALL)
    depthwise = Problem((6, 6), (3, 3), padding=1, channels=16, outputs=16, groups=16)
    single = Tile(16, 16, 16, 1, 1, dot=False)
    found["depthwise"] = partial(convolutions, depthwise, torch.float16, "channels_last", single)
    splits = Tile(16, 16, 16, 1, 1, splits=3)
    found["splits"] = partial(convolutions, plain, torch.float16, "channels_last", splits)
    found["boxes"] = partial(convolutions, plain, torch.float16, "channels_last", Tile(64, 16, 16, 4, 2, boxes=True))
    wide = Problem((6, 6), (3, 3), padding=1, channels=64, outputs=64)
    boxed = Tile(64, 64, 32, 4, 2, boxes=True)
    found["boxes, no mask"] = partial(convolutions, wide, torch.float16, "channels_last", boxed, mask=False)
    found["max"] = partial(largest, window((2, 2), 2), 1, (4, 4))
    found["maxout"] = partial(largest, POINT, 4, (8, 8))
    found["max and maxout"] = partial(largest, window((2, 2), 2), 2, (4, 4), torch.float32)
    found |= {
        f"pooling {dtype}": partial(poolings, Pooling((9, 7), (3, 3), stride=2, padding=1), dtype) for dtype in DTYPES
    }
    found["pooling of 289 taps"] = partial(poolings, Pooling((18, 18), (17, 17), stride=1), torch.float16)
    found["adaptive"] = partial(poolings, Pooling((9, 7), output=(4, 3), layout="channels_last"), torch.float16)
    found["pooling 3-d"] = partial(poolings, Pooling((4, 5, 6), (2, 2, 2), layout="expanded"), torch.float16)
    for dtype, mode in itertools.product(DTYPES, ("running", "batch", "tracking")):
        found[f"norm {mode} {dtype}"] = partial(norms, (2, 16, 6, 6), dtype, "channels_last", True, mode)
    for mode in ("running", "batch", "tracking"):
        found[f"norm {mode} alone"] = partial(norms, (2, 16, 6, 6), torch.float16, "expanded", False, mode)
    found["norm of splits"] = partial(norms, (64, 32, 16, 16), torch.float16, "contiguous", True, "tracking")
    found["norm of no grid"] = partial(norms, (33, 7), torch.float32, "contiguous", True, "batch")
    return found
