"""The transpose of a convolution in its input; see kernels/conv.py for the other operations and the axes.

    dx[n, i, c] = sum_{t, o} dy[n, (i + before - t * dilation) / stride, o] w[o, t, c], where whole

An implicit matrix product whose rows are inputs of one residue of the stride: they share the taps that reach them. So a
strided transpose is some products side by side, its phases, and skips no taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import backend, boxes, grid, tuning
from kernels import implicit_gemm as gemm
from kernels.plan import Buffer, Dense, Launch, buffer, is_aligned, planned
from kernels.shape import POINT, Window, cdiv, lift_shape, memory_format


@backend.device_function
def _phase(number, AXIS: tl.constexpr, WINDOW: tl.constexpr):
    """The inputs i = residue + u * stride * tile of one axis, see Window.common; the first has most to do.

    -> residue, the first tap that reaches them, the number of such taps, the output that it reads at u = 0.
    """
    residue = gemm.modulo(number - WINDOW.padding[AXIS][0], WINDOW.period[AXIS])
    position = residue + WINDOW.padding[AXIS][0]
    first = grid.first_tap(position, AXIS, WINDOW)
    taps = grid.cdiv(WINDOW.kernel[AXIS] - first, WINDOW.every[AXIS])
    return residue, first, taps, (position - first * WINDOW.dilation[AXIS]) // WINDOW.stride[AXIS]


@triton.jit(do_not_specialize=["batch", "rows"])
def _transpose_kernel(
    dy_ptr, y_ptr,  # [N, P, Q, R, G*O], the same or None
    weight_ptr, bias_ptr,  # [T*G*O, taps, C], [G*C] or None
    dx_ptr, dy_box,  # [N, D, H, W, G*C], dy as TMA takes it or None
    batch, rows, counts,  # N; of a phase, its divisors
    x_size, y_size,  # (D, H, W), (P, Q, R)
    WINDOW: tl.constexpr, CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr, RELU: tl.constexpr,  # a Window, C, O
    BOX: tl.constexpr,  # as in the forward kernel
    ACC: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    # Locate: rows are the inputs of one phase (one residue of stride * tile on each axis), which share their taps.
    x_size, y_size = grid.extents(x_size), grid.extents(y_size)
    block, group, columns, column_valid = gemm.channels(tl.program_id(0), CHANNELS, WINDOW.groups, COLUMNS, DOT)
    BM: tl.constexpr = ROWS[0] if len(ROWS) == 1 else ROWS[0] + ROWS[1]
    blocks = grid.cdiv(rows, BM)
    PERIOD: tl.constexpr = WINDOW.period
    EVERY: tl.constexpr = WINDOW.every
    BACK: tl.constexpr = WINDOW.back
    phase = gemm.residue(block // blocks, PERIOD)
    d, first_d, taps_d, p = _phase(phase[0], 0, WINDOW)
    h, first_h, taps_h, q = _phase(phase[1], 1, WINDOW)
    w, first_w, taps_w, r = _phase(phase[2], 2, WINDOW)
    channel = group * OUTPUTS if DOT else (group * OUTPUTS)[None, :]
    input_rows, dy_rows, y_rows, origins, load_valid = (), (), (), (), ()
    corner = None
    for i in tl.static_range(len(ROWS)):
        row = ((block % blocks).to(INDEX) * BM + i * ROWS[0] + tl.arange(0, ROWS[i]))[:, None]
        if BOX is None:
            n, u, position, valid = gemm.positions(row, rows, (d, h, w), counts, x_size, PERIOD)
        else:
            first, n, position, valid = boxes.locate((block % blocks).to(INDEX), batch, counts, x_size, BOX)
            corner = (first[0], p + first[1], q + first[2], r + first[3], channel)
            u = position
        origin = (p + u[0] * WINDOW.tile[0], q + u[1] * WINDOW.tile[1], r + u[2] * WINDOW.tile[2])
        dy_row = grid.offset(n, origin[0], origin[1], origin[2], y_size) * (WINDOW.groups * OUTPUTS) + channel
        input_rows = input_rows + ((row, n, position, valid),)
        dy_rows = dy_rows + (dy_ptr + dy_row,)
        if y_ptr is not None:
            y_rows = y_rows + (y_ptr + dy_row,)
        origins = origins + (origin,)
        load_valid = load_valid + (valid if DOT else valid & column_valid[0][None, :],)
    weight_columns, weight_valid = (), ()
    for j in tl.static_range(len(COLUMNS)):
        column = (group.to(INDEX) * (OUTPUTS * WINDOW.taps * CHANNELS) + columns[j])[None, :]
        weight_columns = weight_columns + (weight_ptr + column,)
        weight_valid = weight_valid + (column_valid[j][None, :],)

    # Accumulate over the phase's taps and output channels.
    accs = gemm.multiply_accumulate(
        dy_rows, None if y_ptr is None else y_rows, weight_columns, origins, y_size, load_valid, weight_valid,
        (taps_d, taps_h, taps_w), (first_d, first_h, first_w), EVERY, BACK, None,
        None if WINDOW.tiles == 1 else (p, q, r), WINDOW.groups * OUTPUTS * WINDOW.taps * CHANNELS,
        CHANNELS, WINDOW.taps * CHANNELS, WINDOW, OUTPUTS, ACC, PRECISION, INDEX, ROWS, COLUMNS,
        BK if DOT else 1, DOT, None, dy_box, corner,
    )  # fmt: skip

    # Epilogue: bias, ReLU; then store.
    for part in tl.static_range(len(ROWS) * len(COLUMNS)):
        row, n, at, valid = input_rows[part // len(COLUMNS)]
        column = columns[part % len(COLUMNS)] + group * CHANNELS
        column_mask = column_valid[part % len(COLUMNS)]
        dx = accs[part]
        if bias_ptr is not None:
            dx += tl.load(bias_ptr + column, mask=column_mask, other=0.0).to(ACC)[None, :]
        if RELU:
            dx = tl.where(dx < 0, 0.0, dx)
        numbered = BOX is None and not WINDOW.strided and WINDOW.tiles == 1
        position = row if numbered else grid.offset(n, at[0], at[1], at[2], x_size)
        element = position * (WINDOW.groups * CHANNELS) + column[None, :]
        tl.store(dx_ptr + element, dx.to(dx_ptr.dtype.element_ty), mask=valid & column_mask[None, :])


class _Transpose(NamedTuple):
    """The plan of a transpose: how dy, weight, bias and y are read, dx made, and the launch.

    Args:
        repeats: of the bias, one for each tap of a window that covers the grid.
    """

    dense: Dense
    repeats: int
    dx: Buffer
    launch: Launch
    layout: torch.memory_format


@backend.upcasts_bfloat16
def transpose(
    dy: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor | None, window: Window, size: Sequence[int], relu: bool
) -> Tensor:
    """The transpose of `forward` in x: dy [N, G*O, *grid] -> relu(dx + bias) [N, G*C, *size].

    dy counts only where y > 0, if y is given. One launch, whatever the stride: a phase is a run of programs.
    """
    precision = gemm.input_precision(dy, window)
    plan = _plan_transpose(dy, weight, bias, y, window, tuple(size), relu, precision, is_aligned(dy))
    dy, weight, bias, y = plan.dense(dy, weight, bias, y)
    if bias is not None and plan.repeats > 1:
        bias = bias.repeat(plan.repeats)
    dx = plan.dx()
    plan.launch(dy, y, weight, bias, dx)
    return dx.contiguous(memory_format=plan.layout)


@planned
def _plan_transpose(
    dy: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor | None, window: Window, size: tuple[int, ...],
    relu: bool, precision: str, aligned: bool,
) -> _Transpose:  # fmt: skip
    window = window.without_idle_strides(size, dy.shape[2:])
    wide, channels = window.lifted(), weight.shape[1]
    outputs = weight.shape[0] // (wide.tiles * window.groups)
    dx_shape = (dy.shape[0], window.groups * channels, *size)
    extents, dx_extents, repeats = lift_shape(dy.shape), lift_shape(dx_shape), 1
    if window.covers(size):
        wide, dx_extents, repeats = POINT, gemm.flattened(dx_extents), window.taps
        channels = dx_extents[-1]
    counts = tuple(map(cdiv, dx_extents[1:4], wide.period))
    phases = prod(wide.period)
    tile = tuning.tile(
        "transpose" if wide.tiles == 1 else "transpose_tiled", dy.dtype, dy.shape[0] * prod(counts), channels, outputs,
        wide.taps, window.groups, phases, dy.shape[0], dy.device,
    )  # fmt: skip
    layout = memory_format(dy, weight)
    rows = boxes.rows(tile, wide, extents, dy, counts, dx_extents[1:4], aligned and y is None)
    return _Transpose(
        Dense(dy, weight, bias, y),
        repeats,
        buffer(dx_shape, dy, layout=layout),
        Launch(
            _transpose_kernel, (phases * cdiv(rows.count, tile.m) * tile.blocks(channels, window.groups),),
            rows.descriptor, dy.shape[0], rows.count, rows.counts, grid.odd(dx_extents[1:4]), grid.odd(extents[1:4]),
            WINDOW=wide, CHANNELS=channels, OUTPUTS=outputs, RELU=relu, BOX=rows.extents,
            ACC=grid.accumulator_type(dy), PRECISION=precision,
            INDEX=grid.index_type(dy.numel(), weight.numel(), prod(dx_shape)), **tile.constants,
        ),
        layout,
    )  # fmt: skip
