"""Rows of a product that are a box of the grid, which NVIDIA's tensor memory accelerator (TMA) loads at once.

A block's rows are output positions. Where these are a box, with extents on (N, D, H, W), and no stride pulls their
inputs apart, the inputs of each tap are a box too, shifted by the tap: one instruction of one thread copies it to
shared memory, with zeros for what is off the grid. No thread computes addresses or bounds. Elsewhere, or where a target
has no TMA, the same kernels load by addresses.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import triton.language as tl
from torch import Tensor

from kernels import grid, tuning
from kernels.backend import device_function
from kernels.heuristics import INTERPRETER
from kernels.shape import Window, cdiv, remembered
from kernels.tile import Tile

LONGEST = 128  # bytes of a row of a box, that shared memory holds side by side
LARGEST = 256  # positions along an axis of a box


class Descriptor:
    """Makes what TMA reads a channels-last tensor by, of any tensor of these extents."""

    def __init__(self, extents: Sequence[int], block: Sequence[int]) -> None:
        self._extents, self._block = list(extents), list(block)
        self._fields: dict[str, object] = {}

    def __call__(self, x: Tensor) -> object:
        from triton.tools.tensor_descriptor import TensorDescriptor

        if not self._fields:  # once with Triton's checks
            strides = [prod(self._extents[axis + 1 :]) for axis in range(len(self._extents))]
            self._fields = vars(TensorDescriptor(x, self._extents, strides, self._block)) | {"base": None}
        descriptor = TensorDescriptor.__new__(TensorDescriptor)
        vars(descriptor).update(self._fields, base=x)
        return descriptor


class Rows(NamedTuple):
    """The rows of a launch, how they are counted (divisors of D, H, W), and where they are boxes: their extents
    (N, D, H, W), of which then `counts` are the numbers along D, H, W, and what makes the input's descriptor."""

    count: int
    counts: tuple[int, ...]
    extents: tuple[int, ...] | None = None
    descriptor: Descriptor | None = None


def rows(
    tile: Tile, window: Window, extents: Sequence[int], x: Tensor, counts: Sequence[int], size: Sequence[int],
    alone: bool,
) -> Rows:  # fmt: skip
    """Return rows for the outputs (N, *size) of x (N, D, H, W, C): boxes, or N * prod(counts) of a tile or phase."""
    boxed = boxes(tile, window, extents, x, size, alone) if tile.boxes else None
    return boxed or Rows(extents[0] * prod(counts), grid.divisors(counts))


def boxes(
    tile: Tile, window: Window, extents: Sequence[int], x: Tensor, size: Sequence[int], alone: bool
) -> Rows | None:
    """Rows that are boxes, or None where x is loaded by addresses.

    Args:
        alone: whether x is loaded for its own sake only: without a mask, and for one candidate of a pooling; and its
            address is a multiple of 16.
    """
    channels = extents[-1] // window.groups
    row = tile.k * x.element_size()
    regular = alone and tile.dot and not window.strided and window.tiles == 1 and channels % tile.k == 0
    if not (regular and row <= LONGEST and prod(extents) and has_tma(tuning.target(x.device))):
        return None
    box_extents = box(tile.m, (extents[0], *size))
    numbers = tuple(map(cdiv, (extents[0], *size), box_extents))
    descriptor = Descriptor(extents, [*box_extents, tile.k])
    return Rows(prod(numbers) * tile.m, grid.divisors(numbers[1:]), box_extents, descriptor)


def has_tma(target: str) -> bool:
    """Whether a target copies boxes of a tensor by itself: NVIDIA's from sm_90 on. The interpreter does as they do."""
    return target == INTERPRETER or (target.startswith("sm_") and int(target[3:]) >= 90)


@remembered
def box(rows: int, grid: Sequence[int]) -> tuple[int, ...]:
    """Extents, powers of two, of a box of `rows` positions: of those of which the fewest cover `grid` a compact one."""
    powers = [2**exponent for exponent in range(rows.bit_length()) if 2**exponent <= LARGEST]
    shapes = (shape for shape in itertools.product(powers, repeat=4) if prod(shape) == rows)
    return min(shapes, key=lambda shape: (prod(map(cdiv, grid, shape)), max(shape), sum(shape), shape))


@device_function
def locate(number, batch, counts, size, BOX: tl.constexpr):
    """A box by its number -> its first position (n, d, h, w); its rows' n and (d, h, w), [BM, 1]; which exist."""
    n, d, h, w = grid.unravel(number, counts)
    first = (n * BOX[0], d * BOX[1], h * BOX[2], w * BOX[3])
    row = tl.arange(0, BOX[0] * BOX[1] * BOX[2] * BOX[3])[:, None]
    w = first[3] + row % BOX[3]
    h = first[2] + row // BOX[3] % BOX[2]
    d = first[1] + row // (BOX[3] * BOX[2]) % BOX[1]
    n = first[0] + row // (BOX[3] * BOX[2] * BOX[1])
    return first, n, (d, h, w), (n < batch) & (d < size[0]) & (h < size[1]) & (w < size[2])
