"""The three operations of a convolutional layer, each one Triton kernel, over grids of up to three axes.

    convolution      y[n, p, o] = sum_{t, c} x[n, p * stride - before + t * dilation, c] w[o, t, c]
    its transpose    dx[n, i, c] = sum_{t, o} dy[n, (i + before - t * dilation) / stride, o] w[o, t, c], where whole
    weight gradient  dw[o, t, c] = sum_{n, p} dy[n, p, o] x[n, p * stride - before + t * dilation, c]

(Deep Learning, eq. 9.8 to 9.13.) Axes: N batch, C input channels, O output channels of one of G groups; D, H, W input
grid, P, Q, R output grid, t taps of the window. Tensors are channels-last, so a tap's channels are contiguous.

Each is an implicit matrix product: rows are output positions, columns output channels, and the reduced axis runs over
(tap, channel). Where a reduction block divides the channels, a step is one tap and its coordinates are scalars; else
the window is folded into the reduced axis and each of its elements decodes its own tap, so that a 7x7 window over one
channel is one or two steps, not 49. Groups of one channel have no product of matrices to offer: there (DOT false) the
columns are channels of all groups, and a step multiplies each by its own weight.

Tiled convolution has kernels that take turns over the positions, local connection one for each. Rows are then the
positions of one residue, which share a kernel; as the transpose's are inputs of one residue of the stride, which share
their taps.

Fused: bias, residual and ReLU after the product; the maximum over a pooling window or over consecutive channels
(maxout), by computing the product for each candidate in turn, so that the map before pooling is never written; in both
gradients the ReLU's mask (y > 0) as dy is loaded, so that a masked dy is never written either; the bias gradient beside
the weight gradient. Nothing is added atomically: results are deterministic.
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
from kernels import implicit_gemm as gemm
from kernels.shape import (
    AXES,
    POINT,
    Window,
    accumulator_dtype,
    cdiv,
    channels_first,
    channels_last,
    memory_format,
    new_channels_last,
    tap_dtype,
)


class Cost(NamedTuple):
    """Floating-point operations (a multiply and an add are two) and bytes that must be read and written."""

    flops: int
    bytes: int


@triton.jit(do_not_specialize=["steps"])
def _forward_kernel(
    x_ptr, weight_ptr, bias_ptr, residual_ptr,  # [N, D, H, W, G*C], [T*G*O*J, taps, C], [T*G*O*J] and as y, or None
    y_ptr, winner_ptr,  # [N, P, Q, R, G*O], the same or None
    blocks, batch, x_size, full_size, y_size,  # of rows, N, (D, H, W), (P, Q, R) before and after pooling
    steps,  # of a product inside the loop over candidates: not known when compiled, as Triton 3.9 can fail on sm_100
    # where it is one and the inner loop dissolves; None where there is one candidate
    WINDOW: tl.constexpr, POOL: tl.constexpr, MAXOUT: tl.constexpr,  # Windows of three axes, J
    CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr, RELU: tl.constexpr,  # C, O after maxout
    ACC: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    # Locate: rows are output positions of one tile, columns output channels; neighbours in the grid share rows.
    block, group, column, column_valid = gemm.channels(tl.program_id(0), OUTPUTS, WINDOW.groups, BN, DOT)
    tile = block // blocks
    residue, counts = gemm.residue(tile, y_size, WINDOW.tile)
    row = (block % blocks).to(INDEX) * BM + tl.arange(0, BM)
    n, p, q, r = grid.unravel(row, counts)
    row_valid = (n < batch)[:, None]
    p = (residue[0] + p * WINDOW.tile[0])[:, None]
    q = (residue[1] + q * WINDOW.tile[1])[:, None]
    r = (residue[2] + r * WINDOW.tile[2])[:, None]
    n = n[:, None]
    channel = group * CHANNELS
    load_valid = row_valid
    if not DOT:
        channel = channel[None, :]
        load_valid = row_valid & column_valid[None, :]

    # For each candidate of the pooling, accumulate over taps and input channels; keep the largest.
    CANDIDATES: tl.constexpr = POOL.taps * MAXOUT
    best = tl.full((BM, BN), float("-inf"), ACC)
    winner = tl.full((BM, BN), -1 if CANDIDATES > 1 else 0, tl.int32)
    for candidate in range(CANDIDATES):
        tap = candidate // MAXOUT
        p_full = p * POOL.stride[0] - POOL.padding[0][0] + tap // (POOL.kernel[1] * POOL.kernel[2]) * POOL.dilation[0]
        q_full = q * POOL.stride[1] - POOL.padding[1][0] + tap // POOL.kernel[2] % POOL.kernel[1] * POOL.dilation[1]
        r_full = r * POOL.stride[2] - POOL.padding[2][0] + tap % POOL.kernel[2] * POOL.dilation[2]
        d = p_full * WINDOW.stride[0] - WINDOW.padding[0][0]
        h = q_full * WINDOW.stride[1] - WINDOW.padding[1][0]
        w = r_full * WINDOW.stride[2] - WINDOW.padding[2][0]
        output = ((tile * WINDOW.groups + group) * OUTPUTS + column) * MAXOUT + candidate % MAXOUT
        acc = gemm.multiply_accumulate(
            tl.full((BM, BN), 0.0, ACC),
            x_ptr + grid.offset(n, d, h, w, x_size) * (WINDOW.groups * CHANNELS) + channel,
            None,
            weight_ptr + (output.to(INDEX) * (WINDOW.taps * CHANNELS))[:, None],
            (d, h, w), x_size, load_valid, column_valid[:, None],
            WINDOW.kernel, (0, 0, 0), (1, 1, 1), WINDOW.dilation, steps,
            None, 0, CHANNELS, 1, WINDOW, CHANNELS, PRECISION, INDEX, DOT, BK if DOT else 1,
        )  # fmt: skip
        if bias_ptr is not None:
            acc += tl.load(bias_ptr + output, mask=column_valid, other=0.0).to(ACC)[None, :]
        if CANDIDATES == 1:
            best = acc
        else:
            inside = grid.inside(row_valid, p_full, 0, full_size[0], POOL.edges[0])
            inside = grid.inside(inside, q_full, 0, full_size[1], POOL.edges[1])
            inside = grid.inside(inside, r_full, 0, full_size[2], POOL.edges[2])
            better = inside & ((acc > best) | (acc != acc) | (winner < 0))
            best = tl.where(better, acc, best)
            winner = tl.where(better, candidate, winner)

    # Epilogue: residual, ReLU; then store.
    element = grid.offset(n, p, q, r, y_size) * (WINDOW.groups * OUTPUTS) + (group * OUTPUTS + column)[None, :]
    mask = row_valid & column_valid[None, :]
    if residual_ptr is not None:
        best += tl.load(residual_ptr + element, mask=mask, other=0.0).to(ACC)
    if RELU:
        best = tl.where(best < 0, 0.0, best)  # NaN stays, as in torch
    tl.store(y_ptr + element, best.to(y_ptr.dtype.element_ty), mask=mask)
    if winner_ptr is not None:
        tl.store(winner_ptr + element, winner.to(winner_ptr.dtype.element_ty), mask=mask)


@backend.device_function
def _phase(residue, AXIS: tl.constexpr, WINDOW: tl.constexpr):
    """The inputs i = residue + u * stride * tile of one axis, see Window.common.

    -> the first tap that reaches them, the number of such taps, the output that it reads at u = 0.
    """
    position = residue + WINDOW.padding[AXIS][0]
    first = grid.first_tap(position, AXIS, WINDOW)
    taps = grid.cdiv(WINDOW.kernel[AXIS] - first, WINDOW.every[AXIS])
    return first, taps, (position - first * WINDOW.dilation[AXIS]) // WINDOW.stride[AXIS]


@triton.jit
def _transpose_kernel(
    dy_ptr, y_ptr, weight_ptr, bias_ptr,  # [N, P, Q, R, G*O], the same or None, [T*G*O, taps, C], [G*C] or None
    dx_ptr,  # [N, D, H, W, G*C]
    blocks, batch, x_size, y_size,  # of rows, N, (D, H, W), (P, Q, R)
    WINDOW: tl.constexpr, CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr, RELU: tl.constexpr,  # a Window, C, O
    ACC: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    # Locate: rows are the inputs of one phase (one residue of stride * tile on each axis), which share their taps.
    block, group, column, column_valid = gemm.channels(tl.program_id(0), CHANNELS, WINDOW.groups, BN, DOT)
    residue, counts = gemm.residue(block // blocks, x_size, WINDOW.period)
    if block % blocks * BM >= batch * counts[0] * counts[1] * counts[2]:
        return
    first_d, taps_d, p = _phase(residue[0], 0, WINDOW)
    first_h, taps_h, q = _phase(residue[1], 1, WINDOW)
    first_w, taps_w, r = _phase(residue[2], 2, WINDOW)
    row = (block % blocks).to(INDEX) * BM + tl.arange(0, BM)
    n, u_d, u_h, u_w = grid.unravel(row, counts)
    row_valid = (n < batch)[:, None]
    n = n[:, None]
    u_d = u_d[:, None]
    u_h = u_h[:, None]
    u_w = u_w[:, None]
    channel = group * OUTPUTS
    load_valid = row_valid
    if not DOT:
        channel = channel[None, :]
        load_valid = row_valid & column_valid[None, :]

    # Accumulate over the phase's taps and output channels.
    origin = (p + u_d * WINDOW.tile[0], q + u_h * WINDOW.tile[1], r + u_w * WINDOW.tile[2])
    dy_row = grid.offset(n, origin[0], origin[1], origin[2], y_size) * (WINDOW.groups * OUTPUTS) + channel
    weight_row = (group.to(INDEX) * (OUTPUTS * WINDOW.taps * CHANNELS) + column)[:, None]
    acc = gemm.multiply_accumulate(
        tl.full((BM, BN), 0.0, ACC),
        dy_ptr + dy_row,
        None if y_ptr is None else y_ptr + dy_row,
        weight_ptr + weight_row,
        origin, y_size, load_valid, column_valid[:, None],
        (taps_d, taps_h, taps_w), (first_d, first_h, first_w), WINDOW.every, WINDOW.back, None,
        None if WINDOW.tiles == 1 else (p, q, r), WINDOW.groups * OUTPUTS * WINDOW.taps * CHANNELS,
        CHANNELS, WINDOW.taps * CHANNELS, WINDOW, OUTPUTS, PRECISION, INDEX, DOT, BK if DOT else 1,
    )  # fmt: skip

    # Epilogue: bias, ReLU; then store.
    column += group * CHANNELS
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + column, mask=column_valid, other=0.0).to(ACC)[None, :]
    if RELU:
        acc = tl.where(acc < 0, 0.0, acc)
    d = residue[0] + u_d * WINDOW.period[0]
    h = residue[1] + u_h * WINDOW.period[1]
    w = residue[2] + u_w * WINDOW.period[2]
    element = grid.offset(n, d, h, w, x_size) * (WINDOW.groups * CHANNELS) + column[None, :]
    tl.store(dx_ptr + element, acc.to(dx_ptr.dtype.element_ty), mask=row_valid & column_valid[None, :])


@triton.jit
def _weight_gradient_kernel(
    x_ptr, dy_ptr, y_ptr, dw_ptr, db_ptr,  # as above, then [splits, T*G*O, taps, C], [splits, T*G*O] or None
    run, rows, batch, x_size, y_size,  # positions of a split, and of a tile at most, N, (D, H, W), (P, Q, R)
    WINDOW: tl.constexpr, CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr,  # a Window of three axes, C, O
    ACC: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    # Locate: rows are output channels, columns (tap, input channel) pairs; a split is a run of positions of one tile.
    COUNT: tl.constexpr = WINDOW.taps * CHANNELS
    COLUMNS: tl.constexpr = BN if DOT else 1
    blocks = grid.cdiv(COUNT, COLUMNS)
    pid = tl.program_id(0)
    tap, channel, column_valid = gemm.tap_and_channel(pid % blocks, COUNT, CHANNELS, COLUMNS)
    tap_d = (tap // (WINDOW.kernel[1] * WINDOW.kernel[2])).to(INDEX) * WINDOW.dilation[0] - WINDOW.padding[0][0]
    tap_h = tap // WINDOW.kernel[2] % WINDOW.kernel[1] * WINDOW.dilation[1] - WINDOW.padding[1][0]
    tap_w = tap % WINDOW.kernel[2] * WINDOW.dilation[2] - WINDOW.padding[2][0]
    shift = ((tap_d * x_size[1] + tap_h) * x_size[2] + tap_w) * (WINDOW.groups * CHANNELS) + channel  # [1, COLUMNS]
    tile, group, output, output_valid = gemm.channels(pid // blocks, OUTPUTS, WINDOW.groups, BM, DOT)
    output += group * OUTPUTS
    residue, counts = gemm.residue(tile, y_size, WINDOW.tile)
    start = tl.program_id(1).to(INDEX) * run
    base = group * CHANNELS
    if not DOT:
        base = base[:, None]

    # Accumulate over output positions. x is [BK, BN], or [BM, BK] for one channel each.
    AXIS: tl.constexpr = 1 if DOT else 0
    acc = tl.full((BM, COLUMNS), 0.0, ACC)
    bias = tl.full((BM,), 0.0, ACC)
    for position in range(start, tl.minimum(start + run, rows), BK):
        n, p, q, r = grid.unravel(position + tl.arange(0, BK).to(INDEX), counts)
        position_valid = n < batch
        p = residue[0] + p * WINDOW.tile[0]
        q = residue[1] + q * WINDOW.tile[1]
        r = residue[2] + r * WINDOW.tile[2]
        element = (grid.offset(n, p, q, r, y_size) * (WINDOW.groups * OUTPUTS))[None, :] + output[:, None]
        dy_mask = position_valid[None, :] & output_valid[:, None]
        dy = tl.load(dy_ptr + element, mask=dy_mask, other=0.0)  # [BM, BK]
        if y_ptr is not None:
            y = tl.load(y_ptr + element, mask=dy_mask, other=0.0)
            dy = tl.where(y <= 0, 0.0, dy)
        n = tl.expand_dims(n, AXIS)
        d = tl.expand_dims(p * WINDOW.stride[0], AXIS)
        h = tl.expand_dims(q * WINDOW.stride[1], AXIS)
        w = tl.expand_dims(r * WINDOW.stride[2], AXIS)
        mask = tl.expand_dims(position_valid, AXIS) & column_valid if DOT else dy_mask
        mask = grid.inside(mask, d, tap_d, x_size[0], WINDOW.edges[0])
        mask = grid.inside(mask, h, tap_h, x_size[1], WINDOW.edges[1])
        mask = grid.inside(mask, w, tap_w, x_size[2], WINDOW.edges[2])
        x_row = x_ptr + base + grid.offset(n, d, h, w, x_size) * (WINDOW.groups * CHANNELS)
        x = tl.load(x_row + shift, mask=mask, other=0.0)
        if DOT:
            acc = tl.dot(dy, x, acc, input_precision=PRECISION, out_dtype=ACC)
        else:
            acc += tl.sum(dy.to(ACC) * x.to(ACC), axis=1)[:, None]
        if db_ptr is not None:
            if pid % blocks == 0:
                bias += tl.sum(dy.to(ACC), axis=1)

    # Store this split's share.
    row = (tl.program_id(1) * WINDOW.tiles + tile) * (WINDOW.groups * OUTPUTS) + output
    mask = output_valid[:, None] & column_valid
    tl.store(dw_ptr + row.to(INDEX)[:, None] * COUNT + tap * CHANNELS + channel, acc, mask=mask)
    if db_ptr is not None:
        if pid % blocks == 0:
            tl.store(db_ptr + row, bias, mask=output_valid)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, window: Window, relu: bool
) -> Tensor:
    """Convolution of x [N, G*C, *grid] with weight [T*G*O, C, *kernel], plus bias [T*G*O] and residual, then ReLU.

    T is the number of the window's tiles, whose kernels stand one after another. -> [N, G*O, *grid].
    """
    size = window.output_size(x.shape[2:])
    return _forward(x, weight, bias, residual, window, relu, POINT, size, 1, winners=False)[0]


def forward_max(
    x: Tensor, weight: Tensor, bias: Tensor | None, window: Window, relu: bool,
    pool: Window, size: Sequence[int], maxout: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`forward`, and of its output the largest of each `pool` window and of each `maxout` consecutive channels.

    Returns:
        [N, G*O / maxout, *size], and which of the window's candidates (tap * maxout + channel) it was.
    """
    return _forward(x, weight, bias, None, window, relu, pool, size, maxout, winners=True)


@backend.upcasts_bfloat16
def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, window: Window, relu: bool,
    pool: Window, size: Sequence[int], maxout: int, winners: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    wide, channels = window.lifted(), weight.shape[1]
    outputs = weight.shape[0] // (wide.tiles * window.groups * maxout)
    layout = memory_format(x, weight)
    y = new_channels_last(x, window.groups * outputs, size)
    winners = new_channels_last(x, y.shape[1], size, tap_dtype(pool.taps * maxout)) if winners else None
    x_last, weight_last, y_last = channels_last(x), channels_last(weight), channels_last(y)
    full_size = (1,) * (AXES - window.axes) + window.output_size(x.shape[2:])
    rows = x.shape[0] * prod(map(cdiv, y_last.shape[1:4], wide.tile))
    tile = tuning.tile(
        "forward" if winners is None else "forward_max", x.dtype, rows, outputs, channels, window.taps, window.groups
    )
    blocks = cdiv(rows, tile.m)
    backend.launch(
        _forward_kernel, (wide.tiles * blocks * tile.blocks(outputs, window.groups),),
        x_last, weight_last, None if bias is None else bias.contiguous(),
        None if residual is None else channels_last(residual),
        y_last, None if winners is None else channels_last(winners),
        blocks, x.shape[0], tuple(x_last.shape[1:4]), full_size, tuple(y_last.shape[1:4]),
        None if winners is None else cdiv(window.taps * channels, tile.k if tile.dot else 1),
        WINDOW=wide, POOL=pool.lifted(), MAXOUT=maxout, CHANNELS=channels, OUTPUTS=outputs, RELU=relu,
        **_arithmetic(window, x, weight, y), **tile.constants,
    )  # fmt: skip
    return y.contiguous(memory_format=layout), winners


@backend.upcasts_bfloat16
def transpose(
    dy: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor | None, window: Window, size: Sequence[int], relu: bool
) -> Tensor:
    """The transpose of `forward` in x: dy [N, G*O, *grid] -> relu(dx + bias) [N, G*C, *size].

    dy counts only where y > 0, if y is given. One launch, whatever the stride: a phase is a run of programs.
    """
    window = window.without_idle_strides(size, dy.shape[2:])
    wide, channels = window.lifted(), weight.shape[1]
    outputs = weight.shape[0] // (wide.tiles * window.groups)
    dx = new_channels_last(dy, window.groups * channels, size)
    dy_last, weight_last, dx_last = channels_last(dy), channels_last(weight), channels_last(dx)
    rows = dy.shape[0] * prod(map(cdiv, dx_last.shape[1:4], wide.period))
    operation = "transpose" if wide.tiles == 1 else "transpose_tiled"
    tile = tuning.tile(operation, dy.dtype, rows, channels, outputs, window.taps, window.groups)
    blocks = cdiv(rows, tile.m)
    backend.launch(
        _transpose_kernel, (prod(wide.period) * blocks * tile.blocks(channels, window.groups),),
        dy_last, None if y is None else channels_last(y), weight_last,
        None if bias is None else bias.contiguous(), dx_last,
        blocks, dy.shape[0], tuple(dx_last.shape[1:4]), tuple(dy_last.shape[1:4]),
        WINDOW=wide, CHANNELS=channels, OUTPUTS=outputs, RELU=relu,
        **_arithmetic(window, dy, weight, dx), **tile.constants,
    )  # fmt: skip
    return dx.contiguous(memory_format=memory_format(dy, weight))


@backend.upcasts_bfloat16
def weight_gradient(x: Tensor, dy: Tensor, y: Tensor | None, window: Window, bias: bool) -> tuple[Tensor, Tensor]:
    """dw [T*G*O, C, *kernel] and db [T*G*O] (empty unless `bias`) of `forward`; dy counts only where y > 0, if given.

    The output positions are split among programs, whose shares are summed in a fixed order.
    """
    wide, outputs, channels = window.lifted(), dy.shape[1] // window.groups, x.shape[1] // window.groups
    x_last, dy_last = channels_last(x), channels_last(dy)
    rows = dy.shape[0] * prod(map(cdiv, dy_last.shape[1:4], wide.tile))
    tile = tuning.tile("weight_gradient", x.dtype, outputs, channels, rows, window.taps, window.groups)
    dtype = accumulator_dtype(x)
    dw = x.new_empty((tile.splits, wide.tiles * dy.shape[1], *wide.kernel, channels), dtype=dtype)
    db = x.new_empty((tile.splits, wide.tiles * dy.shape[1] if bias else 0), dtype=dtype)
    columns = cdiv(window.taps * channels, tile.n if tile.dot else 1)
    backend.launch(
        _weight_gradient_kernel, (wide.tiles * columns * tile.blocks(outputs, window.groups, tile.m), tile.splits),
        x_last, dy_last, None if y is None else channels_last(y), dw, db if bias else None,
        cdiv(cdiv(rows, tile.splits), tile.k) * tile.k, rows, dy.shape[0],
        tuple(x_last.shape[1:4]), tuple(dy_last.shape[1:4]),
        WINDOW=wide, CHANNELS=channels, OUTPUTS=outputs, **_arithmetic(window, x, dy, dw), **tile.constants,
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
        bytes=itemsize * (batch * prod(size) * channels + weights * window.tiles + positions * outputs),
    )


def _arithmetic(window: Window, x: Tensor, *others: Tensor) -> dict[str, object]:
    """Accumulator, integers of an address, and float32 product: TF32 where the GPU has it and torch.backends allows it.

    A linear layer goes by the rule for matrix products.
    """
    rule = torch.backends.cudnn.conv if window.axes else torch.backends.cuda.matmul
    tf32 = x.dtype == torch.float32 and rule.fp32_precision == "tf32" and tuning.has_tf32()
    return {
        "ACC": grid.accumulator_type(x),
        "PRECISION": "tf32" if tf32 else "ieee",
        "INDEX": grid.index_type(x, *others),
    }
