"""Kernels of all kinds, compiled for GPUs and estimated; printed as JSON, for tests in a process that interprets.

python -m tests.kernels.compiled_estimates
"""

import dataclasses
import json
import os
from collections.abc import Callable
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # before the first import of triton

import torch  # noqa: E402

from kernels import backend, conv, norm, pool, tuning  # noqa: E402
from kernels.inspect import Compiled, compiling_for  # noqa: E402
from kernels.problem import OPERATIONS, Problem  # noqa: E402
from kernels.shape import Window  # noqa: E402
from tests.kernels import matrix_products  # noqa: E402

SIDE = 8192
LAYER = Problem(32, 128, 128, (28, 28), Window((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)))
TILE = tuning.Tile(128, 128, 32, 4, 4)


def on_meta(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def product(kernel: Any, target: str, block: tuple[int, int, int], warps: int, programs: int = 0, **more: Any) -> dict:
    m, n, k = block
    a = on_meta(SIDE, SIDE)
    grid = (programs or (SIDE // m) * (SIDE // n),)
    with compiling_for(target) as compiled:
        backend.launch(
            kernel, grid, a, on_meta(SIDE, SIDE), on_meta(SIDE, SIDE), SIDE, SIDE, SIDE,
            BM=m, BN=n, BK=k, GROUP=8, num_warps=warps, num_stages=3, **more,
        )  # fmt: skip
    return figures(compiled[0], 2 * SIDE**3)


def figures(kernel: Compiled, flops: int) -> dict:
    """The estimate, or why there is none, and the work of both kinds of code, which must be the same."""
    try:
        found = kernel.estimate(flops, kernel.tensor_bytes)
    except ValueError as error:
        return {"error": str(error)}
    repeated = sum(
        int(loop.trips.sum()) * dot.products * dot.passes * dot.repeats
        for loop in kernel.loops.nest()
        for dot in loop.dots
    )
    computed = sum(loop.trips * loop.products for loop in found.loops)
    return dataclasses.asdict(found) | {"of_ir": repeated, "of_code": computed, "bytes": kernel.tensor_bytes}


def run(target: str, launch: Callable[[], Any], tile: tuning.Tile | None = None, flops: int = 0) -> list[dict]:
    with compiling_for(target) as compiled:
        if tile is None:
            launch()
        else:
            with tuning.use_tile(tile):
                launch()
    return [figures(kernel, flops) for kernel in compiled]


def everything() -> dict[str, Any]:
    found: dict[str, Any] = {}
    tensors = LAYER.tensors("meta")
    for target in ("sm_80", "sm_90", "sm_100"):
        for operation in OPERATIONS:
            launches = run(target, lambda operation=operation: LAYER.run(operation, *tensors), TILE, LAYER.flops)
            found[f"{target} {operation}"] = launches[0]
    x, weight = on_meta(32, 64, 28, 28), on_meta(64, 64, 3, 3)
    two = Window((2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1))
    found["pooled"] = run(
        "sm_80", lambda: conv.forward_max(x, weight, None, Window((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)), True, two,
                                          (14, 14), 1)
    )[0]  # fmt: skip
    found["split"] = run(
        "sm_80", lambda: LAYER.run("weight_gradient", *tensors), dataclasses.replace(TILE, splits=10), LAYER.flops
    )
    found["max pool"] = run(
        "sm_90", lambda: pool.max_pool(x, Window((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1)), (14, 14))
    )
    parameter = on_meta(64, dtype=torch.float32)
    found["norm"] = run("sm_90", lambda: norm.batch_norm(x, parameter, parameter, None, None, None, None, 1e-5, True))
    for target in ("sm_80", "sm_90"):
        found[f"{target} product"] = product(matrix_products.pointers, target, (128, 256, 64), 8)
    found["persistent"] = product(matrix_products.persistent, "sm_80", (128, 128, 32), 4, programs=216)
    found["descriptors"] = product(matrix_products.descriptors, "sm_90", (128, 256, 64), 8, SPECIALISED=False)
    found["specialised"] = product(matrix_products.descriptors, "sm_100", (128, 256, 64), 4, SPECIALISED=True)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(everything()))
