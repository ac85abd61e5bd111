"""The weight gradient: the third operation of a convolutional layer; see kernels/conv.py for the others and the axes.

    dw[o, t, c] = sum_{n, p} dy[n, p, o] x[n, p * stride - before + t * dilation, c]

An implicit matrix product whose reduced axis is all output positions, far longer than its rows (output channels) and
columns (tap, input channel). So the positions are split among programs, and a second pass adds up their shares, always
in the same order.
"""

from __future__ import annotations

from math import prod

import triton
import triton.language as tl
from torch import Tensor

from kernels import backend, grid, tuning
from kernels import implicit_gemm as gemm
from kernels.shape import (
    POINT,
    Window,
    accumulator_dtype,
    cdiv,
    channels_first,
    channels_last,
    memory_format,
)


@backend.device_function
def _tap_columns(
    first, group, x_size, WINDOW: tl.constexpr, CHANNELS: tl.constexpr, INDEX: tl.constexpr,
    PART: tl.constexpr, BN: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Columns (tap, channel) from number `first` on: where the tap is (3), its element, its number, which exist."""
    COUNT: tl.constexpr = WINDOW.taps * CHANNELS
    tap, channel, valid = gemm.tap_and_channel(first, COUNT, CHANNELS, PART, BN)
    d = (tap // (WINDOW.kernel[1] * WINDOW.kernel[2])).to(INDEX) * WINDOW.dilation[0] - WINDOW.padding[0][0]
    h = tap // WINDOW.kernel[2] % WINDOW.kernel[1] * WINDOW.dilation[1] - WINDOW.padding[1][0]
    w = tap % WINDOW.kernel[2] * WINDOW.dilation[2] - WINDOW.padding[2][0]
    shift = ((d * x_size[1] + h) * x_size[2] + w) * (WINDOW.groups * CHANNELS) + channel
    shift += group * CHANNELS if DOT else (group * CHANNELS)[:, None]
    return d, h, w, shift, tap * CHANNELS + channel, valid


@triton.jit
def _weight_gradient_kernel(
    x_ptr, dy_ptr, y_ptr,  # [N, D, H, W, G*C], [N, P, Q, R, G*O], the same or None
    dw_ptr, db_ptr,  # [splits, T*G*O, taps, C], [splits, T*G*O] or None
    run, rows, counts, x_size, y_size,  # positions of a split and of a tile, its divisors; (D, H, W), (P, Q, R)
    WINDOW: tl.constexpr, CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr,  # a Window of three axes, C, O
    ACC: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    # Locate: rows are output channels, columns (tap, input channel) pairs; a split is a run of positions of one tile.
    COUNT: tl.constexpr = WINDOW.taps * CHANNELS
    BN: tl.constexpr = COLUMNS[0] if len(COLUMNS) == 1 else COLUMNS[0] + COLUMNS[1]
    blocks = grid.cdiv(COUNT, BN)
    pid = tl.program_id(0)
    tile, group, outputs, output_valid = gemm.channels(pid // blocks, OUTPUTS, WINDOW.groups, ROWS, DOT)
    columns = ()
    for j in tl.static_range(len(COLUMNS)):
        first = pid % blocks * BN + j * COLUMNS[0]
        columns = columns + (_tap_columns(first, group, x_size, WINDOW, CHANNELS, INDEX, COLUMNS[j], BN, DOT),)
    TILE: tl.constexpr = WINDOW.tile
    residue = gemm.residue(tile, TILE)
    start = tl.program_id(1).to(INDEX) * run

    # Accumulate over output positions. x is [BK, BN], or [BM, BK] for one channel each.
    AXIS: tl.constexpr = 1 if DOT else 0
    accs, sums = (), ()
    for i in tl.static_range(len(ROWS)):
        sums = sums + (tl.full((ROWS[i],), 0.0, ACC),)
        for j in tl.static_range(len(COLUMNS)):
            accs = accs + (tl.full((ROWS[i], COLUMNS[j]), 0.0, ACC),)
    for position in range(start, tl.minimum(start + run, rows), BK):
        row = position + tl.arange(0, BK).to(INDEX)
        n, _, at, row_valid = gemm.positions(row, rows, residue, counts, y_size, TILE)
        p, q, r = at
        if WINDOW.tiles > 1:
            row = grid.offset(n, p, q, r, y_size)
        dys, next_sums = (), ()  # [BM, BK] each
        for i in tl.static_range(len(ROWS)):
            element = (row * (WINDOW.groups * OUTPUTS))[None, :] + (outputs[i] + group * OUTPUTS)[:, None]
            dy_mask = row_valid[None, :] & output_valid[i][:, None]
            dy = tl.load(dy_ptr + element, mask=dy_mask, other=0.0)
            if y_ptr is not None:
                y = tl.load(y_ptr + element, mask=dy_mask, other=0.0)
                dy = tl.where(y <= 0, 0.0, dy)
            total = sums[i]
            if db_ptr is not None:
                if pid % blocks == 0:
                    total += tl.sum(dy.to(ACC), axis=1)
            next_sums = next_sums + (total,)
            dys = dys + (dy,)
        n = tl.expand_dims(n, AXIS)
        d = tl.expand_dims(p * WINDOW.stride[0], AXIS)
        h = tl.expand_dims(q * WINDOW.stride[1], AXIS)
        w = tl.expand_dims(r * WINDOW.stride[2], AXIS)
        x_row = grid.offset(n, d, h, w, x_size) * (WINDOW.groups * CHANNELS)
        xs = ()
        for j in tl.static_range(len(COLUMNS)):
            tap_d, tap_h, tap_w, shift, _column, column_valid = columns[j]
            mask = tl.expand_dims(row_valid, AXIS) & (column_valid if DOT else output_valid[0][:, None])
            mask = grid.inside(mask, d, tap_d, x_size[0], WINDOW.edges[0])
            mask = grid.inside(mask, h, tap_h, x_size[1], WINDOW.edges[1])
            mask = grid.inside(mask, w, tap_w, x_size[2], WINDOW.edges[2])
            xs = xs + (tl.load(x_ptr + x_row + shift, mask=mask, other=0.0),)
        next_accs = ()
        for part in tl.static_range(len(ROWS) * len(COLUMNS)):
            dy, x = dys[part // len(COLUMNS)], xs[part % len(COLUMNS)]
            if DOT:
                acc = tl.dot(dy, x, accs[part], input_precision=PRECISION, out_dtype=ACC)
            else:
                acc = accs[part] + tl.sum(dy.to(ACC) * x.to(ACC), axis=1)[:, None]
            next_accs = next_accs + (acc,)
        accs, sums = next_accs, next_sums

    # Store this split's share.
    for i in tl.static_range(len(ROWS)):
        row = (tl.program_id(1) * WINDOW.tiles + tile) * (WINDOW.groups * OUTPUTS) + outputs[i] + group * OUTPUTS
        for j in tl.static_range(len(COLUMNS)):
            element = row.to(INDEX)[:, None] * COUNT + columns[j][4]
            dw = accs[i * len(COLUMNS) + j].to(dw_ptr.dtype.element_ty)
            tl.store(dw_ptr + element, dw, mask=output_valid[i][:, None] & columns[j][5])
        if db_ptr is not None:
            if pid % blocks == 0:
                tl.store(db_ptr + row, sums[i].to(db_ptr.dtype.element_ty), mask=output_valid[i])


@triton.jit
def _sum_kernel(share_ptr, sum_ptr, count, SPLITS: tl.constexpr, BM: tl.constexpr):
    """sum[i] = share[0, i] + share[1, i] + ..., always in this order: the second pass of the weight gradient."""
    element = tl.program_id(0) * BM + tl.arange(0, BM)
    valid = element < count
    total = tl.load(share_ptr + element, mask=valid, other=0.0)
    for split in range(1, SPLITS):
        total += tl.load(share_ptr + split * count + element, mask=valid, other=0.0)
    tl.store(sum_ptr + element, total.to(sum_ptr.dtype.element_ty), mask=valid)


@backend.upcasts_bfloat16
def weight_gradient(x: Tensor, dy: Tensor, y: Tensor | None, window: Window, bias: bool) -> tuple[Tensor, Tensor]:
    """dw [T*G*O, C, *kernel] and db [T*G*O] (empty unless `bias`) of `forward`; dy counts only where y > 0, if given.

    The output positions are split among programs, whose shares are summed in a fixed order.
    """
    wide, outputs, channels = window.lifted(), dy.shape[1] // window.groups, x.shape[1] // window.groups
    x_last, dy_last = channels_last(x), channels_last(dy)
    live = None
    if window.covers(x.shape[2:]):
        wide, x_last = POINT, gemm.flattened(x_last)
        channels = x_last.shape[-1]
    elif gemm.has_few_channels(x_last, wide):
        wide, x_last, live = gemm.over_elements(x_last, wide)
        channels = 1
    counts = tuple(map(cdiv, dy_last.shape[1:4], wide.tile))
    rows = dy.shape[0] * prod(counts)
    tile = tuning.tile(
        "weight_gradient", x.dtype, outputs, channels, rows, wide.taps, window.groups, wide.tiles, x.device
    )
    shapes = (wide.tiles * dy.shape[1], *wide.kernel, channels), (wide.tiles * dy.shape[1] if bias else 0,)
    dw, db = (x.new_empty(shape) for shape in shapes)
    shares = dw, db
    if tile.splits > 1:
        shares = tuple(x.new_empty((tile.splits, *shape), dtype=accumulator_dtype(x)) for shape in shapes)
    columns = cdiv(wide.taps * channels, tile.n if tile.dot else 1)
    backend.launch(
        _weight_gradient_kernel, (wide.tiles * columns * tile.blocks(outputs, window.groups, tile.m), tile.splits),
        x_last, dy_last, None if y is None else channels_last(y), shares[0], shares[1] if bias else None,
        cdiv(cdiv(rows, tile.splits), tile.k) * tile.k, rows, grid.divisors(counts),
        tuple(x_last.shape[1:4]), tuple(dy_last.shape[1:4]),
        WINDOW=wide, CHANNELS=channels, OUTPUTS=outputs, **gemm.arithmetic(window, x, dy, shares[0]),
        **tile.constants | ({} if tile.dot else {"COLUMNS": (1,)}),
    )  # fmt: skip
    if tile.splits > 1:
        for share, total in zip(shares, (dw, db), strict=True):
            block = tuning.SUM_BLOCK
            backend.launch(
                _sum_kernel, (cdiv(total.numel(), block),), share, total, total.numel(),
                SPLITS=tile.splits, BM=block,
            )  # fmt: skip
    if live is not None:
        dw = dw[:, :, :, slice(*live)]
    if wide is POINT:
        dw = dw.view(dy.shape[1], *window.lifted().kernel, x.shape[1])
    elif channels != x.shape[1] // window.groups:
        dw = dw[..., 0].unflatten(3, (-1, x.shape[1]))
    return channels_first(dw, window.axes, memory_format(x)), db
