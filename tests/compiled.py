"""Compile every kernel with every tile that is chosen for a GPU, without one, and show what the binaries need.

    python -m tests.compiled [target ...]

It fails where

- a register is spilled (float32 by IEEE's rules on NVIDIA has to be exact, not fast: the table shows its spills),
- shared memory exceeds the target's,
- an address is computed in 64 bits for tensors that do not need it,
- TMA is asked for and does not load,
- a matrix product does not run on tensor cores, or does so in IEEE's float32.

Interpreting and compiling do not mix in one process, so pytest does not run this.
"""

import dataclasses
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial

os.environ.pop("TRITON_INTERPRET", None)  # before the first import of triton

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from kernels import boxes, conv, heuristics, norm, norm_gradient, pool, tuning  # noqa: E402
from kernels.inspect import Compiled, compiling_for  # noqa: E402
from kernels.shape import POINT  # noqa: E402
from kernels.targets import TARGETS  # noqa: E402
from kernels.tile import Tile  # noqa: E402
from tests.kernels.problems import Pooling, Problem  # noqa: E402

PROVED = ("sm_80", "sm_90", "sm_100", "gfx942")
# Torch allows TF32 for convolutions and not for matrix products, unless told otherwise, as the tests on a GPU tell it.
ARITHMETIC = {
    "float16": torch.float16, "bfloat16": torch.bfloat16, "tf32": torch.float32, "float32": torch.float32,
    "float64": torch.float64,
}  # fmt: skip
JOBS = (("float16", "bfloat16"), ("tf32",), ("float64",))
IEEE = ("sm_90", "gfx942")  # targets for "float32", in which no tensor core tells NVIDIA's from each other
ROOMY = 192  # registers of a thread, of 255: the code for bfloat16 takes some more than that for float16, not 64 more
CONVOLUTIONS = {
    "3x3": Problem((28, 28), (3, 3), batch=32, channels=128, outputs=128, padding=1),
    "3x3 stride 2": Problem((28, 28), (3, 3), batch=32, channels=128, outputs=128, stride=2, padding=1),
    "stem": Problem((224, 224), (7, 7), batch=32, channels=3, outputs=64, stride=2, padding=3),
    "stem to few": Problem((51, 32), (6, 3), batch=32, channels=5, outputs=16, stride=(2, 1), padding=(1, 3)),
    "grouped": Problem((28, 28), (3, 3), batch=32, channels=128, outputs=128, padding=1, groups=4),
    "depthwise": Problem((28, 28), (3, 3), batch=32, channels=128, outputs=128, padding=1, groups=128),
    "tiled": Problem((28, 28), (3, 3), batch=32, channels=64, outputs=64, padding=1, tile=(2, 2)),
    "odd channels": Problem((28, 28), (3, 3), batch=32, channels=37, outputs=53, padding=1),
    "3-d": Problem((8, 14, 14), (3, 3, 3), batch=8, channels=32, outputs=32, padding=1),
    "3-d stem": Problem((32, 32, 32), (9, 9, 9), batch=8, channels=3, outputs=64, stride=2, padding=4),
    "linear": Problem((), (), batch=256, channels=512, outputs=1000),
}
POOLINGS = {
    "3x3 stride 2": Pooling((56, 56), (3, 3), stride=2, padding=1, count_include_pad=False, batch=32, channels=64),
    "adaptive": Pooling((13, 13), output=(6, 6), batch=32, channels=256),
    "adaptive 3-d": Pooling((5, 6, 7), output=(7, 4, 5), batch=32, channels=64),
    "small": Pooling((4, 4), (2, 2), batch=1, channels=1),
}
NORMS = {"normal": (32, 64, 28, 28), "one position": (1, 1)}
BOXED = ("3x3", "grouped", "3-d")
BOXED_TILES = (Tile(128, 128, 64, 8, 3, boxes=True), Tile(64, 64, 64, 4, 4, boxes=True))
POOLED = ("3x3", "stem", "grouped", "depthwise")
EXTENTS = (128, 64, 48, 32, 16, 3, 1)  # of channels, for the tiles that are chosen for them


def on_meta(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def convolve(operation: str, problem: Problem, dtype: torch.dtype, tile: Tile | None = None) -> None:
    """One operation of a convolutional layer, with all that can be fused into it."""
    if tile is not None:
        with tuning.use_tile(tile):
            return convolve(operation, problem, dtype)
    window = problem.window
    x = on_meta((problem.batch, problem.channels, *problem.size), dtype)
    weight = on_meta((window.tiles * problem.outputs, problem.channels // problem.groups, *problem.kernel), dtype)
    bias, y = on_meta(weight.shape[:1], dtype), on_meta(problem.output_shape, dtype)
    if operation == "forward":
        conv.forward(x, weight, bias, y, window, True)
    elif operation == "forward_max":
        maxout = 2 if problem.outputs // problem.groups % 2 == 0 else 1
        conv.forward_max(x, weight, bias, window, True, POINT, y.shape[2:], maxout)
    elif operation.startswith("transpose"):
        conv.transpose(y, weight, on_meta(x.shape[1:2], dtype), y, window, problem.size, True)
    else:
        conv.weight_gradient(x, y, y, window, True)


def convolve_boxes(problem: Problem, dtype: torch.dtype, tile: Tile) -> None:
    """The two operations whose input TMA can load, with what can then be fused."""
    window = problem.window
    x, y = on_meta((problem.batch, problem.channels, *problem.size), dtype), on_meta(problem.output_shape, dtype)
    weight = on_meta((problem.outputs, problem.channels // problem.groups, *problem.kernel), dtype)
    with tuning.use_tile(tile):
        conv.forward(x, weight, on_meta(y.shape[1:2], dtype), y, window, True)
        conv.transpose(y, weight, on_meta(x.shape[1:2], dtype), None, window, problem.size, True)


def pooling(problem: Pooling, dtype: torch.dtype) -> None:
    x = on_meta((problem.batch, problem.channels, *problem.size), dtype)
    y, taps = pool.max_pool(x, problem.window, problem.output_size)
    pool.max_pool_gradient(y, taps, problem.window, problem.size)
    pool.average_pool(x, problem.window, problem.output_size, 0, problem.count_include_pad)
    pool.average_pool_gradient(y, problem.window, problem.size, 0, problem.count_include_pad)


def normalise(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, parameter = on_meta(shape, dtype), on_meta(shape[1:2], dtype)
    y, mean, var = norm.batch_norm(x, parameter, parameter, x, None, None, None, 1e-5, True)
    for momentum in (None, 0.1):
        norm.batch_norm(x, parameter, parameter, x, parameter, parameter, momentum, 1e-5, True)
    norm_gradient.batch_norm_gradient(x, x, parameter, y, mean, var, 1e-5, True, True, True)
    norm_gradient.batch_norm_gradient(x, x, parameter, y, mean, var, 1e-5, False, False, False)
    norm.batch_moments(x)
    norm_gradient.batch_norm_propagate(x, x, parameter, y, mean, var, mean, var, 1e-5, True)


@contextmanager
def arithmetic(name: str) -> Iterator[torch.dtype]:
    """Give the dtype of one of ARITHMETIC, and have convolutions multiply float32 as the name says inside."""
    rule = torch.backends.cudnn.conv
    before, rule.fp32_precision = rule.fp32_precision, "tf32" if name == "tf32" else "ieee"
    try:
        yield ARITHMETIC[name]
    finally:
        rule.fp32_precision = before


def named_runs(target: str, dtype: torch.dtype) -> Iterator[tuple[str, partial[None]]]:
    """Yield every operation of the named problems: all strides, groups, folded windows, epilogues, and TMA."""
    for operation, (name, problem) in itertools.product(OPERATIONS, CONVOLUTIONS.items()):
        if operation == "transpose_tiled" or (operation == "forward_max" and name not in POOLED):
            continue  # the first is chosen by a tiled problem
        yield name, partial(convolve, operation, problem, dtype)
    for name, problem in POOLINGS.items():
        yield name, partial(pooling, problem, dtype)
    for name, shape in NORMS.items():
        yield name, partial(normalise, shape, dtype)
    if boxes.has_tma(target) and dtype.itemsize <= 4:
        for (name, problem), tile in itertools.product(CONVOLUTIONS.items(), BOXED_TILES):
            if name in BOXED:
                tile = dataclasses.replace(tile, k=boxes.LONGEST // dtype.itemsize // 2)
                yield f"boxes, {name}", partial(convolve_boxes, problem, dtype, tile)


def runs_of_tiles(target: str, dtype: torch.dtype) -> Iterator[tuple[str, partial[None]]]:
    """A problem for each tile that may be chosen: of large ones with three axes and a stride, to take registers."""
    seen = set()
    for operation, channels, outputs, size, taps, deep in itertools.product(
        OPERATIONS, EXTENTS, EXTENTS, (64, 4), (3, 1), (False, True)
    ):
        groups = 8 if deep else 1
        if deep and (channels, outputs) != (1, 1):
            continue
        aligned = [extent * dtype.itemsize % 16 == 0 for extent in (channels, outputs)]
        large = dtype.itemsize == 2 and operation != "forward_max" and all(aligned)
        axes = 3 if large else 2
        problem = Problem(
            (size // axes,) * axes, (taps,) * axes, stride=axes - 1, padding=taps // 2, batch=1,
            channels=groups * channels, outputs=groups * outputs, groups=groups,
            tile=(2,) * axes if operation == "transpose_tiled" else (),
        )  # fmt: skip
        with tuning.products_of(target) as products:
            convolve(operation, problem, dtype)
        (product,) = products
        tiles = [heuristics.choose(target, product)] if deep else heuristics.options(target, product)
        for tile in tiles:
            tile = dataclasses.replace(tile, splits=2 if operation == "weight_gradient" else 1)
            key = (operation, tile, product.folds(tile), *(aligned if operation != "forward" else aligned[:1]))
            if key not in seen:
                seen.add(key)
                yield f"{channels} -> {outputs}, {taps}x{taps}", partial(convolve, operation, problem, dtype, tile)


OPERATIONS = ("forward", "forward_max", "transpose", "transpose_tiled", "weight_gradient")


def compile_all(target: str, names: Sequence[str]) -> list[tuple[str, str, Compiled]]:
    """Compile every run in the first of some ARITHMETIC, and in the others what leaves few registers in it."""
    torch.set_num_threads(1)
    results = []
    roomy = set()
    for name in names:
        with arithmetic(name) as dtype:
            for problem, run in itertools.chain(named_runs(target, dtype), runs_of_tiles(target, dtype)):
                key = (problem, run.func, *(value for value in run.args if not isinstance(value, torch.dtype)))
                if key in roomy:
                    continue
                with compiling_for(target) as compiled:
                    run()
                results += [(name, problem, kernel) for kernel in compiled]
                if max((kernel.registers for kernel in compiled), default=0) < ROOMY:
                    roomy.add(key)
    return results


def faults(target: str, arithmetic: str, problem: str, kernel: Compiled) -> Iterator[str]:
    """Yield what is wrong with a kernel that was compiled for a problem."""
    if kernel.shared_memory > TARGETS[target].shared_memory:
        yield f"needs {kernel.shared_memory} bytes of shared memory, the target has {TARGETS[target].shared_memory}"
    if problem.startswith("boxes") and "tt.descriptor_load" not in kernel.asm["ttir"]:
        yield "loads nothing by TMA"
    if kernel.wide:
        yield "computes addresses in 64 bits, which these tensors do not need"
    float32 = arithmetic == "float32" or (arithmetic == "tf32" and problem == "linear")
    ieee = float32 and target.startswith("sm")  # AMD's matrix cores multiply float32 as IEEE has it
    if kernel.spills and not ieee:
        yield f"spills {kernel.spills}"
    product = len(kernel.block) == 3 and 1 not in kernel.block
    if kernel.tensor_cores != (product and not ieee):
        yield f"uses {'' if kernel.tensor_cores else 'no '}tensor cores"


def main(targets: list[str]) -> int:
    jobs = [*itertools.product(targets, JOBS), *((target, ("float32",)) for target in targets if target in IEEE)]
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as executor:
        found = list(zip(jobs, executor.map(compile_all, *zip(*jobs, strict=True)), strict=True))
    results: dict[tuple[str, str], list[tuple[str, Compiled]]] = {}
    for (target, _), kernels in found:
        for name, problem, kernel in kernels:
            results.setdefault((target, name), []).append((problem, kernel))
    table = Table("target", "arithmetic", "kernel", "compiled", "registers", "spills", "shared memory", "tensor cores")
    wrong = []
    for (target, arithmetic), kernels in results.items():
        for name in sorted({kernel.name for _, kernel in kernels}):
            own = [kernel for _, kernel in kernels if kernel.name == name]
            table.add_row(
                target, arithmetic, name.strip("_"), str(len(own)),
                f"{min(k.registers for k in own)}-{max(k.registers for k in own)}", str(max(k.spills for k in own)),
                f"{max(k.shared_memory for k in own):,}", f"{sum(k.tensor_cores for k in own)} of {len(own)}",
            )  # fmt: skip
        wrong += [
            f"{target} {arithmetic} {kernel.name} {kernel.block}, {kernel.warps} warps, for {problem}: {fault}"
            for problem, kernel in kernels
            for fault in faults(target, arithmetic, problem, kernel)
        ]
    Console(width=120).print(table)
    print("\n".join(wrong) or f"{sum(map(len, results.values()))} kernels compiled, none with a fault")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(PROVED)))
