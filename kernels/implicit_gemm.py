"""The matrix product that a convolution is, without the matrix: what its kernels share.

Rows are positions of a grid, columns channels, the reduced axis runs over (tap, channel) pairs; see kernels/conv.py.
"""

import triton.language as tl

from kernels import grid
from kernels.backend import device_function


@device_function
def channels(pid, COUNT: tl.constexpr, GROUPS: tl.constexpr, BLOCK: tl.constexpr, DOT: tl.constexpr):
    """Program -> what is left of its number, and a block of channels: group, place in it, which exist, all [BLOCK].

    The channels are of one group, whose number is a scalar; without a matrix product each is of its own.
    """
    place = tl.arange(0, BLOCK)
    if DOT:
        blocks = grid.cdiv(COUNT, BLOCK)
        place += pid % blocks * BLOCK
        group = pid // blocks % GROUPS
        valid = place < COUNT
        rest = pid // (blocks * GROUPS)
    else:
        blocks = grid.cdiv(COUNT * GROUPS, BLOCK)
        place += pid % blocks * BLOCK
        group = place // COUNT
        valid = place < COUNT * GROUPS
        rest = pid // blocks
        place = place % COUNT
    return rest, group, place, valid


@device_function
def residue(number, size, PERIOD: tl.constexpr):
    """Number of a residue of PERIOD (3) -> the residue on each axis, and how many positions of a grid have it."""
    d = number // (PERIOD[1] * PERIOD[2])
    h = number // PERIOD[2] % PERIOD[1]
    w = number % PERIOD[2]
    counts = (
        grid.cdiv(size[0] - d, PERIOD[0]), grid.cdiv(size[1] - h, PERIOD[1]), grid.cdiv(size[2] - w, PERIOD[2])
    )  # fmt: skip
    return (d, h, w), counts


@device_function
def tap_and_channel(block, count, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """Block number `block` of the reduced axis of `count` (tap, channel) pairs -> tap, channel and mask.

    tap is a scalar where BLOCK divides CHANNELS and [1, BLOCK] where the window is folded; the others are [1, BLOCK].
    """
    k = block * BLOCK + tl.arange(0, BLOCK)[None, :]
    if CHANNELS % BLOCK == 0:
        tap = block * BLOCK // CHANNELS
    else:
        tap = k // CHANNELS
    return tap, k - tap * CHANNELS, k < count


@device_function
def multiply_accumulate(
    acc,  # [BM, BN]
    x_row, y_row, weight_row,  # pointers to tap 0: [BM, 1 or BN], the ReLU output that masks x or None, [BN, 1]
    origin, size, row_valid, column_valid,  # coordinates (3) of tap 0, [BM, 1], on a grid of `size` (3); which exist
    taps, first, EVERY: tl.constexpr, STEP: tl.constexpr,  # a tap's number is first + j * EVERY, j < taps, at j * STEP
    steps,  # blocks of the reduced axis, or None
    tile, TILE_STRIDE: tl.constexpr, TAP_STRIDE: tl.constexpr, CHANNEL_STRIDE: tl.constexpr,  # tile of tap 0 or None
    WINDOW: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    DOT: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """acc + (rows under the window) @ (weight rows)^T: the product that convolution and its transpose share."""
    count = taps[0] * taps[1] * taps[2] * CHANNELS
    for block in range(grid.cdiv(count, BK) if steps is None else steps):
        tap, channel, in_window = tap_and_channel(block, count, CHANNELS, BK)
        d = (tap // (taps[1] * taps[2])).to(INDEX)
        h = tap // taps[2] % taps[1]
        w = tap % taps[2]

        mask = row_valid
        weight_mask = column_valid
        if CHANNELS % BK != 0:
            mask = row_valid & in_window
            weight_mask = column_valid & in_window
        mask = grid.inside(mask, origin[0], d * STEP[0], size[0], WINDOW.edges[0])
        mask = grid.inside(mask, origin[1], h * STEP[1], size[1], WINDOW.edges[1])
        mask = grid.inside(mask, origin[2], w * STEP[2], size[2], WINDOW.edges[2])
        shift = ((d * STEP[0] * size[1] + h * STEP[1]) * size[2] + w * STEP[2]) * (WINDOW.groups * CHANNELS) + channel
        x = tl.load(x_row + shift, mask=mask, other=0.0)  # [BM, BK], or [BM, BN] for one channel each
        if y_row is not None:
            y = tl.load(y_row + shift, mask=mask, other=0.0)
            x = tl.where(y <= 0, 0.0, x)

        number = (first[0] + d * EVERY[0]) * WINDOW.kernel[1] + first[1] + h * EVERY[1]
        number = number * WINDOW.kernel[2] + first[2] + w * EVERY[2]
        element = number * TAP_STRIDE + channel.to(INDEX) * CHANNEL_STRIDE
        if tile is not None:
            turn = modulo(tile[0] + d * STEP[0], WINDOW.tile[0]) * WINDOW.tile[1]
            turn = (turn + modulo(tile[1] + h * STEP[1], WINDOW.tile[1])) * WINDOW.tile[2]
            element += (turn + modulo(tile[2] + w * STEP[2], WINDOW.tile[2])).to(INDEX) * TILE_STRIDE
        weight = tl.load(weight_row + element, mask=weight_mask, other=0.0)  # [BN, BK]
        if DOT:
            acc = tl.dot(x, tl.trans(weight), acc, input_precision=PRECISION, out_dtype=acc.dtype)
        else:
            acc += x.to(acc.dtype) * tl.trans(weight).to(acc.dtype)
    return acc


@device_function
def modulo(a, b):
    """a modulo b, >= 0: the remainder of a kernel has the sign of a."""
    return (a % b + b) % b
