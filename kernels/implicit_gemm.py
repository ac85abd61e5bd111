"""The matrix product that a convolution is, without the matrix: what its kernels share.

Rows are positions of a grid, columns channels, the reduced axis runs over (tap, channel) pairs; see kernels/conv.py.
A block of rows or columns is of one part, or of two where its extent is no power of two, which Triton wants: 96 is 64
and 32. What belongs to a part is an entry of a tuple.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
import triton.language as tl
from torch import Tensor

from kernels import grid, tuning
from kernels.backend import device_function
from kernels.shape import Window


@device_function
def channels(pid, COUNT: tl.constexpr, GROUPS: tl.constexpr, PARTS: tl.constexpr, DOT: tl.constexpr):
    """Program -> what is left of its number, and a block of channels: group, places in it, which exist.

    A block whose extent is no power of two has two PARTS: places and valid are tuples of a vector for each. The
    channels are of one group, whose number is a scalar; without a matrix product each is of its own.
    """
    BLOCK: tl.constexpr = PARTS[0] if len(PARTS) == 1 else PARTS[0] + PARTS[1]
    if DOT:
        blocks = grid.cdiv(COUNT, BLOCK)
        group = pid // blocks % GROUPS
        rest = pid // (blocks * GROUPS)
        places = ()
        valid = ()
        for part in tl.static_range(len(PARTS)):
            place = pid % blocks * BLOCK + part * PARTS[0] + tl.arange(0, PARTS[part])
            places = places + (place,)
            valid = valid + (place < COUNT,)
    else:
        blocks = grid.cdiv(COUNT * GROUPS, BLOCK)
        place = pid % blocks * BLOCK + tl.arange(0, BLOCK)
        group = place // COUNT
        valid = (place < COUNT * GROUPS,)
        rest = pid // blocks
        places = (place % COUNT,)
    return rest, group, places, valid


@device_function
def residue(number, PERIOD: tl.constexpr):
    """Number of a residue of PERIOD (3) -> the residue on each axis."""
    return number // (PERIOD[1] * PERIOD[2]), number // PERIOD[2] % PERIOD[1], number % PERIOD[2]


@device_function
def positions(row, rows, residue, counts, size, PERIOD: tl.constexpr):
    """Positions of one residue -> n, numbers (3) among those of the residue, coordinates (3), which are on the grid.

    All are of the shape of row. Rows are numbered as if every residue had the `counts` of the first; where there are
    fewer, some rows are left out.
    """
    n, u, v, t = grid.unravel(row, counts)
    d = residue[0] + u * PERIOD[0]
    h = residue[1] + v * PERIOD[1]
    w = residue[2] + t * PERIOD[2]
    valid = row < rows
    valid = grid.inside(valid, d, 0, size[0], PERIOD[0] > 1)
    valid = grid.inside(valid, h, 0, size[1], PERIOD[1] > 1)
    valid = grid.inside(valid, w, 0, size[2], PERIOD[2] > 1)
    return n, (u, v, t), (d, h, w), valid


@device_function
def tap_and_channel(start, count, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr):
    """BLOCK of `count` (tap, channel) pairs from number `start` on -> tap, channel, mask. Blocks and parts fill STEPs.

    tap is a scalar where STEP divides CHANNELS and [1, BLOCK] where the window is folded; the others are [1, BLOCK].
    """
    k = start + tl.arange(0, BLOCK)[None, :]
    if CHANNELS % STEP == 0:
        tap = start // CHANNELS
    else:
        tap = k // CHANNELS
    return tap, k - tap * CHANNELS, k < count


@device_function
def multiply_accumulate(
    x_rows, y_rows, weight_columns,  # pointers to tap 0: [BM, 1 or BN], the ReLU outputs that mask x or None, [1, BN]
    origins, size, row_valid, column_valid,  # coordinates (3) of tap 0, [BM, 1], on a grid of `size` (3); which exist
    taps, first, EVERY: tl.constexpr, STEP: tl.constexpr,  # a tap's number is first + j * EVERY, j < taps, at j * STEP
    steps,  # blocks of the reduced axis, or None
    tile, TILE_STRIDE: tl.constexpr, TAP_STRIDE: tl.constexpr, CHANNEL_STRIDE: tl.constexpr,  # tile of tap 0 or None
    WINDOW: tl.constexpr, CHANNELS: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr,
    LIVE: tl.constexpr = None,  # first and end of the taps on the last axis that count, or None for all
    x_box=None, corner=None,  # x as TMA takes it, the first row's n and coordinates of tap 0 and the first channel
):  # fmt: skip
    """(rows under the window) @ (weight columns), [BM, BN]: the product that convolution and its transpose share.

    Whatever has rows or columns is a tuple of an entry for each part of the block, and so is the result: for each part
    of the rows one for each part of the columns.
    """
    accs = ()
    for i in tl.static_range(len(ROWS)):
        for j in tl.static_range(len(COLUMNS)):
            accs = accs + (tl.full((ROWS[i], COLUMNS[j]), 0.0, ACC),)
    # Rows that do not exist are put off the grid, so that one comparison keeps them out, too: by arithmetic, as the
    # compiler does not see of a choice that neighbours can be loaded together.
    FOLDED: tl.constexpr = CHANNELS % BK != 0
    PUT_OFF: tl.constexpr = WINDOW.edges[2] and DOT
    LOWEST: tl.constexpr = -(2**31) if INDEX == tl.int32 else -(2**63)  # what it is added to is off every grid
    last = ()
    for i in tl.static_range(len(ROWS)):
        last = last + (origins[i][2] + (1 - row_valid[i].to(INDEX)) * LOWEST if PUT_OFF else origins[i][2],)
    count = taps[0] * taps[1] * taps[2] * CHANNELS
    for block in range(grid.cdiv(count, BK) if steps is None else steps):
        tap, channel, in_window = tap_and_channel(block * BK, count, CHANNELS, BK, BK)
        d = (tap // (taps[1] * taps[2])).to(INDEX)
        h = tap // taps[2] % taps[1]
        w = tap % taps[2]
        number = (first[0] + d * EVERY[0]) * WINDOW.kernel[1] + first[1] + h * EVERY[1]
        number = number * WINDOW.kernel[2] + first[2] + w * EVERY[2]
        element = number * TAP_STRIDE + channel.to(INDEX) * CHANNEL_STRIDE
        if tile is not None:
            turn = modulo(tile[0] + d * STEP[0], WINDOW.tile[0]) * WINDOW.tile[1]
            turn = (turn + modulo(tile[1] + h * STEP[1], WINDOW.tile[1])) * WINDOW.tile[2]
            element += (turn + modulo(tile[2] + w * STEP[2], WINDOW.tile[2])).to(INDEX) * TILE_STRIDE
        weights = ()  # [BK, BN] each
        for j in tl.static_range(len(COLUMNS)):
            mask = column_valid[j]
            if FOLDED:
                mask = mask & tl.trans(in_window)
            weights = weights + (tl.load(weight_columns[j] + tl.trans(element), mask=mask, other=0.0),)

        d *= STEP[0]
        h *= STEP[1]
        w *= STEP[2]
        shift = ((d * size[1] + h) * size[2] + w) * (WINDOW.groups * CHANNELS) + channel
        sums = ()
        for i in tl.static_range(len(ROWS)):
            if x_box is None:
                mask = grid.within(last[i] + w, size[2]) if PUT_OFF else row_valid[i]
                if FOLDED:
                    mask = mask & in_window
                if not PUT_OFF:
                    mask = grid.inside(mask, last[i], w, size[2], WINDOW.edges[2])
                mask = grid.inside(mask, origins[i][0], d, size[0], WINDOW.edges[0])
                mask = grid.inside(mask, origins[i][1], h, size[1], WINDOW.edges[1])
                x = tl.load(x_rows[i] + shift, mask=mask, other=0.0)  # [BM, BK], or [BM, BN] for one channel each
            else:
                n, at_d, at_h, at_w, first_channel = corner
                at_channel = first_channel + block * BK % CHANNELS
                at = ((at_d + d).to(tl.int32), (at_h + h).to(tl.int32), (at_w + w).to(tl.int32))  # as TMA counts
                x = x_box.load([n.to(tl.int32), at[0], at[1], at[2], at_channel])
                x = tl.reshape(x, (ROWS[i], BK))
            if y_rows is not None:
                y = tl.load(y_rows[i] + shift, mask=mask, other=0.0)
                x = tl.where(y <= 0, 0.0, x)
            if LIVE is not None:
                x = tl.where((w >= LIVE[0]) & (w < LIVE[1]), x, 0.0)
            for j in tl.static_range(len(COLUMNS)):
                acc = accs[i * len(COLUMNS) + j]
                if DOT:
                    acc = tl.dot(x, weights[j], acc, input_precision=PRECISION, out_dtype=ACC)
                else:
                    acc += x.to(ACC) * weights[j].to(ACC)
                sums = sums + (acc,)
        accs = sums
    return accs


@device_function
def has_nan(accs):
    """Whether a sum over all elements is NaN: so if one is, and perhaps where infinities meet."""
    total = tl.sum(accs[0])
    for part in tl.static_range(1, len(accs)):
        total += tl.sum(accs[part])
    return total != total


@device_function
def modulo(a, b):
    """a modulo b, >= 0: the remainder of a kernel has the sign of a."""
    return (a % b + b) % b


def flattened(extents: Sequence[int]) -> tuple[int, ...]:
    """Extents (N, D, H, W, C) as those of a grid of one position, (N, 1, 1, 1, D*H*W*C): of a window that covers it."""
    return extents[0], 1, 1, 1, prod(extents[1:])


def has_few_channels(extents: Sequence[int], itemsize: int, window: Window) -> bool:
    """True if a load of 16 bytes would cross from one tap to the next, which then is its neighbour in memory."""
    aligned = extents[-1] * itemsize % 16 == 0
    return not aligned and window.groups == window.dilation[-1] == window.tiles == 1 and window.kernel[-1] > 1


def over_elements(
    extents: Sequence[int], itemsize: int, window: Window
) -> tuple[Window, tuple[int, ...], tuple[int, int] | None]:
    """The window over lines of elements, (N, D, H, W, C) as (N, D, H, W*C, 1), and the taps that count if not all."""
    *front, width, channels = extents
    window, live = window.over_elements(channels, width, 16 // itemsize)
    return window, (*front, width * channels, 1), None if live == (0, window.kernel[-1]) else live


def unit(extents: Sequence[int]) -> int:
    """Return the number that the compiler is told divides the elements of a line, so that it loads several at once.

    Where there are more channels than one, their number says it. A line of 2**31 elements would not fit the integers
    that a kernel multiplies its units in.
    """
    return 16 if extents[-1] == 1 and extents[-2] % 16 == 0 and extents[-2] < 2**31 else 1


def in_units(size: Sequence[int], unit: int) -> tuple[int, ...]:
    """Return extents (D, H, W) as a kernel takes them, W in units."""
    return grid.odd((*size[:2], size[2] // unit))


def padded_taps(weight: Tensor, padding: tuple[int, int]) -> Tensor:
    """Return channels-last weight [O, C, *kernel] as dense [O, elements of a line of the window], padded with zeros."""
    lines = weight.movedim(1, -1).flatten(-2)
    return F.pad(lines, padding)


def input_precision(x: Tensor, window: Window) -> str:
    """Return how products are made: of float32 in TF32, where the GPU has it and torch.backends allows it.

    A linear layer goes by the rule for matrix products.
    """
    if x.dtype != torch.float32:
        return "ieee"
    rule = torch.backends.cudnn.conv if window.axes else torch.backends.cuda.matmul
    return "tf32" if rule.fp32_precision == "tf32" and tuning.has_tf32(x.device) else "ieee"
