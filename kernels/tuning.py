"""Tile shapes: a table of recorded problems, and a heuristic for the rest. Nothing is timed when a layer is called."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources

import torch

from kernels import backend

INTERPRETER = "interpreter"
INTERPRETED_BLOCK = 2**19  # elements; Triton takes at most 2**20
SUM_BLOCK = 1024  # elements that a program of the weight gradient's second pass adds up
INTERPRETED_CALLS = 2**16  # elements that NumPy goes through while it is called for one step


@dataclass(frozen=True)
class Tile:
    """Block of a matrix product: `m` rows and `n` columns of the result, `k` of the reduced axis a step.

    Args:
        warps, stages: warps of a program and depth of its software pipeline; the interpreter ignores both.
        splits: programs that share the reduced axis (weight gradient), or the positions (batch norm).
        dot: multiply matrices. Without, as for depthwise convolution, the channels of a block are each multiplied by a
            weight of their own: k (in the weight gradient n) is 1 whatever it says, and n (m) counts all groups.
    """

    m: int
    n: int
    k: int
    warps: int = 4
    stages: int = 3
    splits: int = 1
    dot: bool = True

    @property
    def constants(self) -> dict[str, object]:
        """As the kernels of convolution take it: without a matrix product, one channel at a time."""
        rows, columns = _parts(self.m), _parts(self.n)
        return {
            "ROWS": rows, "COLUMNS": columns, "BK": self.k, "DOT": self.dot,
            "num_warps": self.warps, "num_stages": self.stages,
        }  # fmt: skip

    def blocks(self, channels: int, groups: int, block: int | None = None) -> int:
        """Blocks of `block` (or n) channels that cover `groups` times `channels` of them."""
        block = block or self.n
        return -(-channels // block) * groups if self.dot else -(-channels * groups // block)


def _parts(extent: int) -> tuple[int, ...]:
    """Powers of two that make up an extent which is one, or one and a half of one: 96 is 64 and 32."""
    largest = 1 << (extent.bit_length() - 1)
    return (largest,) if largest == extent else (largest, extent - largest)


_forced: Tile | None = None


@contextmanager
def use_tile(tile: Tile) -> Iterator[None]:
    """Launch every kernel with `tile` inside a `with` block: to tune, and to test one tile against another."""
    global _forced
    previous, _forced = _forced, tile
    try:
        yield
    finally:
        _forced = previous


def tile(operation: str, dtype: torch.dtype, rows: int, columns: int, depth: int, taps: int, groups: int = 1) -> Tile:
    """The tile for one launch: the recorded one, else the heuristic's.

    Args:
        operation: "forward", "forward_max" (pooled as it is computed), "transpose", "transpose_tiled" (whose kernels
            take turns) or "weight_gradient".
        rows, columns, depth: extents of the product, of one group: (positions, O, C), (positions, C, O), (O, C,
            positions). The window's taps multiply the depth; in the weight gradient, the columns.
    """
    if _forced is not None:
        return _forced
    problem = (operation, str(dtype).removeprefix("torch."), rows.bit_length(), columns, depth, taps, groups)
    return _table(target()).get(problem) or heuristic(target(), operation, dtype, rows, columns, depth, taps, groups)


def pool_tile(positions: int, channels: int) -> Tile:
    """The block of `positions` x `channels` that one program of a pooling kernel works on (m x n; k counts nothing)."""
    if _forced is not None:
        return _forced
    n = _block(channels, 64) if channels > 1 else 1
    if target() == INTERPRETER:
        return Tile(_block(positions, INTERPRETED_BLOCK // n), n, 1)
    return Tile(_rows_block(positions, 1024 // n), n, 1)


def norm_tile(positions: int, channels: int) -> Tile:
    """The block of `positions` x `channels` that a step of a batch norm kernel works on (m x n; k counts nothing).

    `splits` programs share the positions: enough to fill a GPU, and few enough that adding up their shares, which every
    program does for its channels, reads less than its own part of the input (estimated, not timed).
    """
    if _forced is not None:
        return _forced
    if target() == INTERPRETER:
        n = _block(channels, 64)
        return Tile(_block(positions, INTERPRETED_BLOCK // n), n, 1)
    n = _block(channels, 32)
    m = _rows_block(positions, 2048 // n)
    return Tile(m, n, 1, splits=max(1, min(128, 512 // -(-channels // n), positions // (4 * m))))


def heuristic(
    target: str, operation: str, dtype: torch.dtype, rows: int, columns: int, depth: int, taps: int, groups: int = 1
) -> Tile:
    """A tile by rules of thumb for `target`: the interpreter, where a program is dear, or any GPU."""
    if groups > 1 and (depth if operation.startswith("forward") else columns) == 1:
        return _depthwise_tile(target, operation, dtype, rows, columns, depth, groups)
    if target == INTERPRETER:
        return _interpreter_tile(operation, rows, columns, depth, taps)
    return _gpu_tile(operation, dtype, rows, columns, depth, taps)


def target() -> str:
    """What the kernels run on: "interpreter", or the GPU's architecture as in "sm_90" or "gfx942"."""
    if backend.INTERPRETING:
        return INTERPRETER
    properties = torch.cuda.get_device_properties()
    return getattr(properties, "gcnArchName", "").split(":")[0] or f"sm_{properties.major}{properties.minor}"


def has_tf32() -> bool:
    """Whether the target can multiply float32 as TF32: NVIDIA's GPUs (which do from sm_80 on) and AMD's gfx942."""
    return target() == "gfx942" or target().startswith("sm_")


def _interpreter_tile(operation: str, rows: int, columns: int, depth: int, taps: int) -> Tile:
    """Few programs with large blocks, since NumPy takes long to be called.

    The block on the (tap, channel) axis is the one with the least to go through: where it divides the channels it is
    one tap, with bounds to check for rows only; else the window is folded, with bounds to check for every element.
    """
    gradient = operation == "weight_gradient"
    m = _block(rows, 128) if gradient else 0  # of dy, loaded again for each block
    channels, gathered = (columns, depth) if gradient else (depth, rows)

    def work(block: int) -> int:
        checks = 1 if channels % block == 0 else 3
        return -(-channels * taps // block) * (INTERPRETED_CALLS + gathered * (block * checks + 2 * m))

    folded = min((2**exponent for exponent in range(4, 10)), key=work)
    if gradient:
        return Tile(m, folded, _block(depth, INTERPRETED_BLOCK // max(m, folded)))
    n = _block(columns, 512)
    return Tile(_block(rows, INTERPRETED_BLOCK // max(n, folded)), n, folded)


def _depthwise_tile(
    target: str, operation: str, dtype: torch.dtype, rows: int, columns: int, depth: int, groups: int
) -> Tile:
    """Blocks of positions and of channels of many groups."""
    interpreted = target == INTERPRETER
    most, widest = (INTERPRETED_BLOCK, 512) if interpreted else (8192 // dtype.itemsize, 64)
    if operation == "weight_gradient":
        m = _block(rows * groups, widest)
        k = _block(depth, most // m) if interpreted else most // m
        programs = -(-rows * groups // m)
        return Tile(m, 1, k, splits=1 if interpreted else max(1, min(256 // programs, depth // (8 * k))), dot=False)
    n = _block(columns * groups, widest)
    return Tile(_block(rows, most // n) if interpreted else _rows_block(rows, most // n), n, 1, dot=False)


def _gpu_tile(operation: str, dtype: torch.dtype, rows: int, columns: int, depth: int, taps: int) -> Tile:
    """Tiles whose accumulator and addresses fit the registers of every target that is compiled for.

    The block on the (tap, channel) axis divides the channels, if it can, so that it is one tap; where the window is
    folded instead, each element has an address of its own, and the tile is smaller.
    """
    m, n, k = {2: (128, 64, 32), 4: (64, 64, 32), 8: (32, 32, 16)}[dtype.itemsize]
    if operation == "weight_gradient":
        n = _dividing_block(columns, n) or _block(columns * taps, n)
        folded = columns % n != 0
        m = _rows_block(rows, m // 2 if folded else m)
        programs = -(-rows // m) * -(-columns * taps // n)
        return Tile(m, n, k, 4 if folded else 8, splits=max(1, min(256 // programs, depth // (8 * k))))
    k = _dividing_block(depth, k) or k
    folded = depth % k != 0
    narrow = operation == "transpose_tiled" or (folded and operation == "transpose")
    n = _block(columns, n // 2 if narrow else n)
    return Tile(m // 2 if folded else m, n, k, 4 if operation == "forward" else 8)


def _block(extent: int, most: int) -> int:
    """Smallest power of two >= extent, between 16 (the least that tl.dot takes) and `most`."""
    return max(16, min(most, 1 << max(0, extent - 1).bit_length()))


def _rows_block(rows: int, most: int) -> int:
    """`most`, or a quarter of it where most of it would be empty."""
    return most if rows > most // 2 else max(16, most // 4)


def _dividing_block(channels: int, most: int) -> int | None:
    """Largest power of two from 16 to `most` that divides the channels, so that a step is one tap; else None."""
    largest = min(most, channels & -channels)
    return largest if largest >= 16 else None


@functools.cache
def _table(target: str) -> dict[tuple[str, str, int, int, int, int, int], Tile]:
    """Recorded tiles of kernels/tuned/<target>.json; each record says where its number comes from."""
    file = resources.files("kernels") / "tuned" / f"{target}.json"
    if not file.is_file():
        return {}
    return {
        (r["operation"], r["dtype"], r["rows"].bit_length(), r["columns"], r["depth"], r["taps"], r["groups"]): Tile(
            **r["tile"]
        )
        for r in json.loads(file.read_text())["records"]
    }
