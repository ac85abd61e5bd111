"""The three operations of a convolutional layer, each one Triton kernel, over grids of up to three axes.

    convolution      y[n, p, o] = relu(sum_{t, c} x[n, p * stride - before + t * dilation, c] w[o, t, c] + b[o])
    its transpose    dx[n, i, c] = sum_{t, o} dy[n, (i + before - t * dilation) / stride, o] w[o, t, c], where whole
    weight gradient  dw[o, t, c] = sum_{n, p} dy[n, p, o] x[n, p * stride - before + t * dilation, c]

(Deep Learning, eq. 9.8 to 9.13.) Axes: N batch, C input channels, O output channels of one of G groups; D, H, W input
grid, P, Q, R output grid, t taps of the window. Tensors are channels-last, so a tap's channels are contiguous.

Each is an implicit matrix product: rows are output positions, columns output channels, and the reduced axis runs over
(tap, channel). Where a reduction block divides the channels, a step is one tap and its coordinates are scalars; else
the window is folded into the reduced axis and each of its elements decodes its own tap, so that a 7x7 window over one
channel is one or two steps, not 49.

Fused: bias and ReLU after the product; in both gradients the ReLU's mask (y > 0) as dy is loaded, so that a masked dy
is never written; the bias gradient beside the weight gradient. Nothing is added atomically: results are deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import backend, grid, tuning
from kernels.shape import Window, channels_first, channels_last, memory_format, new_channels_last


class Cost(NamedTuple):
    """Floating-point operations (a multiply and an add are two) and bytes that must be read and written."""

    flops: int
    bytes: int


@backend.device_function
def _tap_and_channel(block, count, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """Block number `block` of the reduced axis of `count` (tap, channel) pairs -> tap, channel and mask.

    tap is a scalar where BLOCK divides CHANNELS and [1, BLOCK] where the window is folded; the others are [1, BLOCK].
    """
    k = block * BLOCK + tl.arange(0, BLOCK)[None, :]
    if CHANNELS % BLOCK == 0:
        tap = block * BLOCK // CHANNELS
    else:
        tap = k // CHANNELS
    return tap, k - tap * CHANNELS, k < count


@backend.device_function
def _multiply_accumulate(
    acc,  # [BM, BN]
    x_row, y_row, weight_row,  # pointers to tap 0: [BM, 1], the ReLU output that masks x or None, [BN, 1]
    origin, size, row_valid, column_valid,  # coordinates (3) of tap 0, [BM, 1], on a grid of `size` (3); which exist
    taps, first, EVERY: tl.constexpr, STEP: tl.constexpr,  # a tap's number is first + j * EVERY, j < taps, at j * STEP
    WINDOW: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """acc + (rows under the window) @ (weight rows)^T: the product that convolution and its transpose share."""
    count = taps[0] * taps[1] * taps[2] * CHANNELS
    for block in range(grid.cdiv(count, BK)):
        tap, channel, in_window = _tap_and_channel(block, count, CHANNELS, BK)
        d = tap // (taps[1] * taps[2])
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
        x = tl.load(x_row + shift, mask=mask, other=0.0)  # [BM, BK]
        if y_row is not None:
            y = tl.load(y_row + shift, mask=mask, other=0.0)
            x = tl.where(y <= 0, 0.0, x)

        number = (first[0] + d * EVERY[0]) * WINDOW.kernel[1] + first[1] + h * EVERY[1]
        number = number * WINDOW.kernel[2] + first[2] + w * EVERY[2]
        weight = tl.load(weight_row + (number * CHANNELS + channel), mask=weight_mask, other=0.0)  # [BN, BK]
        acc = tl.dot(x, tl.trans(weight), acc, input_precision=PRECISION, out_dtype=acc.dtype)
    return acc


@triton.jit
def _forward_kernel(
    x_ptr, weight_ptr, bias_ptr, y_ptr,  # [N, D, H, W, G*C], [G*O, taps, C], [G*O] or None, [N, P, Q, R, G*O]
    positions, x_size, y_size,  # N*P*Q*R, (D, H, W), (P, Q, R)
    WINDOW: tl.constexpr, CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr,  # a Window of three axes, C, O
    RELU: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    # Locate: rows are output positions, columns output channels of one group; neighbours in the grid share rows.
    columns = grid.cdiv(OUTPUTS, BN)
    pid = tl.program_id(0)
    group = pid // columns % WINDOW.groups
    column = pid % columns * BN + tl.arange(0, BN)
    row = pid // (columns * WINDOW.groups) * BM + tl.arange(0, BM)
    row_valid = (row < positions)[:, None]
    n, p, q, r = grid.unravel(row, y_size)
    d = p * WINDOW.stride[0] - WINDOW.padding[0][0]
    h = q * WINDOW.stride[1] - WINDOW.padding[1][0]
    w = r * WINDOW.stride[2] - WINDOW.padding[2][0]

    # Accumulate over taps and input channels.
    acc = _multiply_accumulate(
        tl.full((BM, BN), 0.0, ACC),
        x_ptr + group * CHANNELS + (grid.offset(n.to(tl.int64), d, h, w, x_size) * (WINDOW.groups * CHANNELS))[:, None],
        None,
        weight_ptr + ((group * OUTPUTS + column) * (WINDOW.taps * CHANNELS))[:, None],
        (d[:, None], h[:, None], w[:, None]), x_size, row_valid, (column < OUTPUTS)[:, None],
        WINDOW.kernel, (0, 0, 0), (1, 1, 1), WINDOW.dilation, WINDOW, CHANNELS, PRECISION, BK,
    )  # fmt: skip

    # Epilogue: bias, ReLU.
    output = group * OUTPUTS + column[None, :]
    mask = row_valid & (column < OUTPUTS)[None, :]
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + output, mask=(column < OUTPUTS)[None, :], other=0.0).to(ACC)
    if RELU:
        acc = tl.where(acc < 0, 0.0, acc)  # NaN stays, as in torch

    # Store.
    y_row = y_ptr + row.to(tl.int64)[:, None] * (WINDOW.groups * OUTPUTS)
    tl.store(y_row + output, acc.to(y_ptr.dtype.element_ty), mask=mask)


@backend.device_function
def _phase(residue, size, AXIS: tl.constexpr, WINDOW: tl.constexpr):
    """The inputs i = residue + u * stride of one axis, see Window.common.

    -> their number, the first tap that reaches them, the number of such taps, the output that it reads at u = 0.
    """
    stride: tl.constexpr = WINDOW.stride[AXIS]
    position = residue + WINDOW.padding[AXIS][0]
    first = grid.first_tap(position, AXIS, WINDOW)
    taps = grid.cdiv(WINDOW.kernel[AXIS] - first, WINDOW.every[AXIS])
    return grid.cdiv(size - residue, stride), first, taps, (position - first * WINDOW.dilation[AXIS]) // stride


@triton.jit
def _transpose_kernel(
    dy_ptr, y_ptr, weight_ptr, dx_ptr,  # [N, P, Q, R, G*O], the same or None, [G*C, taps, O], [N, D, H, W, G*C]
    batch, x_size, y_size,  # N, (D, H, W), (P, Q, R)
    WINDOW: tl.constexpr, CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr,  # a Window of three axes, C, O
    ACC: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    # Locate: rows are the inputs of one phase (one residue of the stride on each axis), which share their taps.
    phase = tl.program_id(1)
    residue_d = phase // (WINDOW.stride[1] * WINDOW.stride[2])
    residue_h = phase // WINDOW.stride[2] % WINDOW.stride[1]
    residue_w = phase % WINDOW.stride[2]
    size_d, first_d, taps_d, p = _phase(residue_d, x_size[0], 0, WINDOW)
    size_h, first_h, taps_h, q = _phase(residue_h, x_size[1], 1, WINDOW)
    size_w, first_w, taps_w, r = _phase(residue_w, x_size[2], 2, WINDOW)
    columns = grid.cdiv(CHANNELS, BN)
    pid = tl.program_id(0)
    group = pid // columns % WINDOW.groups
    column = pid % columns * BN + tl.arange(0, BN)
    row = pid // (columns * WINDOW.groups) * BM + tl.arange(0, BM)
    positions = batch * size_d * size_h * size_w
    if pid // (columns * WINDOW.groups) * BM >= positions:
        return
    row_valid = (row < positions)[:, None]
    n, u_d, u_h, u_w = grid.unravel(row, (size_d, size_h, size_w))
    p += u_d
    q += u_h
    r += u_w

    # Accumulate over the phase's taps and output channels.
    dy_row = group * OUTPUTS + (grid.offset(n.to(tl.int64), p, q, r, y_size) * (WINDOW.groups * OUTPUTS))[:, None]
    acc = _multiply_accumulate(
        tl.full((BM, BN), 0.0, ACC),
        dy_ptr + dy_row,
        None if y_ptr is None else y_ptr + dy_row,
        weight_ptr + ((group * CHANNELS + column) * (WINDOW.taps * OUTPUTS))[:, None],
        (p[:, None], q[:, None], r[:, None]), y_size, row_valid, (column < CHANNELS)[:, None],
        (taps_d, taps_h, taps_w), (first_d, first_h, first_w), WINDOW.every, WINDOW.back,
        WINDOW, OUTPUTS, PRECISION, BK,
    )  # fmt: skip

    # Store.
    d = residue_d + u_d * WINDOW.stride[0]
    h = residue_h + u_h * WINDOW.stride[1]
    w = residue_w + u_w * WINDOW.stride[2]
    dx_row = dx_ptr + (grid.offset(n.to(tl.int64), d, h, w, x_size) * (WINDOW.groups * CHANNELS))[:, None]
    mask = row_valid & (column < CHANNELS)[None, :]
    tl.store(dx_row + group * CHANNELS + column[None, :], acc.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _weight_gradient_kernel(
    x_ptr, dy_ptr, y_ptr, dw_ptr, db_ptr,  # as above, then [splits, G*O, taps, C], [splits, G*O] or None
    positions, x_size, y_size,  # N*P*Q*R, (D, H, W), (P, Q, R)
    WINDOW: tl.constexpr, CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr,  # a Window of three axes, C, O
    ACC: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    # Locate: rows are output channels of one group, columns (tap, input channel) pairs; a split is a run of positions.
    COUNT: tl.constexpr = WINDOW.taps * CHANNELS
    blocks = grid.cdiv(COUNT, BN)
    pid = tl.program_id(0)
    tap, channel, column_valid = _tap_and_channel(pid % blocks, COUNT, CHANNELS, BN)
    tap_d = tap // (WINDOW.kernel[1] * WINDOW.kernel[2]) * WINDOW.dilation[0] - WINDOW.padding[0][0]
    tap_h = tap // WINDOW.kernel[2] % WINDOW.kernel[1] * WINDOW.dilation[1] - WINDOW.padding[1][0]
    tap_w = tap % WINDOW.kernel[2] * WINDOW.dilation[2] - WINDOW.padding[2][0]
    shift = ((tap_d * x_size[1] + tap_h) * x_size[2] + tap_w) * (WINDOW.groups * CHANNELS) + channel  # [1, BN]
    output = pid // blocks % grid.cdiv(OUTPUTS, BM) * BM + tl.arange(0, BM)
    output_valid = output < OUTPUTS
    group = pid // (blocks * grid.cdiv(OUTPUTS, BM))
    split = tl.program_id(1)
    run = grid.cdiv(grid.cdiv(positions, tl.num_programs(1)), BK) * BK
    last = tl.minimum(split * run + run, positions)

    # Accumulate over output positions.
    acc = tl.full((BM, BN), 0.0, ACC)
    bias = tl.full((BM,), 0.0, ACC)
    for start in range(split * run, last, BK):
        position = start + tl.arange(0, BK)
        position_valid = position < last
        n, p, q, r = grid.unravel(position, y_size)
        dy_offset = position.to(tl.int64)[None, :] * (WINDOW.groups * OUTPUTS) + group * OUTPUTS + output[:, None]
        dy_mask = position_valid[None, :] & output_valid[:, None]
        dy = tl.load(dy_ptr + dy_offset, mask=dy_mask, other=0.0)  # [BM, BK]
        if y_ptr is not None:
            y = tl.load(y_ptr + dy_offset, mask=dy_mask, other=0.0)
            dy = tl.where(y <= 0, 0.0, dy)
        d = (p * WINDOW.stride[0])[:, None]
        h = (q * WINDOW.stride[1])[:, None]
        w = (r * WINDOW.stride[2])[:, None]
        mask = position_valid[:, None] & column_valid
        mask = grid.inside(mask, d, tap_d, x_size[0], WINDOW.edges[0])
        mask = grid.inside(mask, h, tap_h, x_size[1], WINDOW.edges[1])
        mask = grid.inside(mask, w, tap_w, x_size[2], WINDOW.edges[2])
        x_row = x_ptr + group * CHANNELS + grid.offset(n[:, None].to(tl.int64), d, h, w, x_size) * (WINDOW.groups * CHANNELS)
        x = tl.load(x_row + shift, mask=mask, other=0.0)  # [BK, BN]
        acc = tl.dot(dy, x, acc, input_precision=PRECISION, out_dtype=ACC)
        if db_ptr is not None:
            if pid % blocks == 0:
                bias += tl.sum(dy.to(ACC), axis=1)

    # Store this split's share.
    row = (split * WINDOW.groups + group) * OUTPUTS + output
    mask = output_valid[:, None] & column_valid
    tl.store(dw_ptr + row.to(tl.int64)[:, None] * COUNT + tap * CHANNELS + channel, acc, mask=mask)
    if db_ptr is not None:
        if pid % blocks == 0:
            tl.store(db_ptr + row, bias, mask=output_valid)


@backend.upcasts_bfloat16
def forward(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window, relu: bool) -> Tensor:
    """Convolution of x [N, G*C, *grid] with weight [G*O, C, *kernel], plus bias [G*O], then ReLU -> [N, G*O, *grid]."""
    size = window.output_size(x.shape[2:])
    wide, outputs, channels = window.lifted(), weight.shape[0] // window.groups, weight.shape[1]
    x_last, weight_last = channels_last(x), channels_last(weight)
    y = new_channels_last(x, weight.shape[0], size)
    y_last = channels_last(y)
    positions = x.shape[0] * prod(size)
    tile = tuning.tile("forward", x.dtype, positions, outputs, channels, window.taps)
    programs = triton.cdiv(positions, tile.m) * triton.cdiv(outputs, tile.n) * window.groups
    backend.launch(
        _forward_kernel, (programs,),
        x_last, weight_last, bias, y_last, positions, tuple(x_last.shape[1:4]), tuple(y_last.shape[1:4]),
        WINDOW=wide, CHANNELS=channels, OUTPUTS=outputs, RELU=relu, **_arithmetic(x, window), **tile.constants,
    )  # fmt: skip
    return y.contiguous(memory_format=memory_format(x))


@backend.upcasts_bfloat16
def transpose(dy: Tensor, weight: Tensor, y: Tensor | None, window: Window, size: Sequence[int]) -> Tensor:
    """The transpose of `forward` in x: dy [N, G*O, *grid] -> dx [N, G*C, *size]; dy counts only where y > 0, if given.

    One launch; the second axis of its grid is the phase, a residue of the stride on each axis.
    """
    window = window.without_idle_strides(size, dy.shape[2:])
    wide, outputs, channels = window.lifted(), weight.shape[0] // window.groups, weight.shape[1]
    dy_last = channels_last(dy)
    weight_last = channels_last(weight).unflatten(0, (window.groups, outputs)).movedim(1, -1).movedim(-2, 1)
    dx = new_channels_last(dy, window.groups * channels, size)
    dx_last = channels_last(dx)
    rows = dy.shape[0] * prod(triton.cdiv(extent, stride) for extent, stride in zip(size, window.stride, strict=True))
    tile = tuning.tile("transpose", dy.dtype, rows, channels, outputs, window.taps)
    programs = triton.cdiv(rows, tile.m) * triton.cdiv(channels, tile.n) * window.groups
    backend.launch(
        _transpose_kernel, (programs, prod(window.stride)),
        dy_last, None if y is None else channels_last(y), weight_last.contiguous(), dx_last,
        dy.shape[0], tuple(dx_last.shape[1:4]), tuple(dy_last.shape[1:4]),
        WINDOW=wide, CHANNELS=channels, OUTPUTS=outputs, **_arithmetic(dy, window), **tile.constants,
    )  # fmt: skip
    return dx.contiguous(memory_format=memory_format(dy))


@backend.upcasts_bfloat16
def weight_gradient(x: Tensor, dy: Tensor, y: Tensor | None, window: Window, bias: bool) -> tuple[Tensor, Tensor]:
    """dw [G*O, C, *kernel] and db [G*O] (empty unless `bias`) of `forward`; dy counts only where y > 0, if given.

    The output positions are split among programs, whose shares are summed in a fixed order.
    """
    wide, outputs, channels = window.lifted(), dy.shape[1] // window.groups, x.shape[1] // window.groups
    x_last, dy_last = channels_last(x), channels_last(dy)
    positions = dy.shape[0] * prod(dy.shape[2:])
    tile = tuning.tile("weight_gradient", x.dtype, outputs, channels, positions, window.taps)
    arithmetic = _arithmetic(x, window)
    accumulator = torch.float64 if x.dtype == torch.float64 else torch.float32
    dw = x.new_empty((tile.splits, dy.shape[1], *wide.kernel, channels), dtype=accumulator)
    db = x.new_empty((tile.splits, dy.shape[1] if bias else 0), dtype=accumulator)
    programs = triton.cdiv(outputs, tile.m) * triton.cdiv(window.taps * channels, tile.n) * window.groups
    backend.launch(
        _weight_gradient_kernel, (programs, tile.splits),
        x_last, dy_last, None if y is None else channels_last(y), dw, db if bias else None,
        positions, tuple(x_last.shape[1:4]), tuple(dy_last.shape[1:4]),
        WINDOW=wide, CHANNELS=channels, OUTPUTS=outputs, **arithmetic, **tile.constants,
    )  # fmt: skip
    dw, db = (share.sum(0).to(x.dtype) for share in (dw, db))
    return channels_first(dw, window.axes, memory_format(x)), db


def cost(batch: int, channels: int, outputs: int, size: Sequence[int], window: Window, itemsize: int) -> Cost:
    """Work and compulsory traffic of any one of the three operations: the same products, summed over different axes.

    Args:
        batch, channels, outputs: N, and all input and output channels.
        size: extents of the input grid.
        itemsize: bytes an element.
    """
    positions = batch * prod(window.output_size(size))
    weights = outputs * (channels // window.groups) * window.taps
    return Cost(
        flops=2 * positions * weights,
        bytes=itemsize * (batch * prod(size) * channels + weights + positions * outputs),
    )


def _arithmetic(x: Tensor, window: Window) -> dict[str, object]:
    """Accumulator type and float32 product: TF32 where the GPU has it and torch.backends allows it (linear: matmul)."""
    rule = torch.backends.cudnn.conv if window.axes else torch.backends.cuda.matmul
    tf32 = x.dtype == torch.float32 and rule.fp32_precision == "tf32" and tuning.has_tf32()
    return {"ACC": tl.float64 if x.dtype == torch.float64 else tl.float32, "PRECISION": "tf32" if tf32 else "ieee"}
