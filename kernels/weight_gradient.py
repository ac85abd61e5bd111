"""The weight gradient: the third operation of a convolutional layer; see kernels/conv.py for the others and the axes.

    dw[o, t, c] = sum_{n, p} dy[n, p, o] x[n, p * stride - before + t * dilation, c]

An implicit matrix product whose reduced axis is all output positions, far longer than its rows (output channels) and
columns (tap, input channel). So the positions are split among programs, and a second pass adds up their shares, always
in the same order.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import backend, grid, tuning
from kernels import implicit_gemm as gemm
from kernels.plan import Buffer, Dense, Launch, buffer, no_buffer, planned
from kernels.shape import POINT, Window, accumulator_dtype, cdiv, lift, lift_shape, memory_format


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


@triton.jit(do_not_specialize=["run", "rows"])
def _weight_gradient_kernel(
    x_ptr, dy_ptr, y_ptr,  # [N, D, H, W, G*C], [N, P, Q, R, G*O], the same or None
    dw_ptr, db_ptr,  # [splits, T*G*O, taps, C], [splits, T*G*O] or None
    run, rows, counts, x_size, y_size,  # positions of a split and of a tile, its divisors; (D, H, W), (P, Q, R)
    WINDOW: tl.constexpr, CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr, UNIT: tl.constexpr,  # C, O, divides W
    ACC: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    # Locate: rows are output channels, columns (tap, input channel) pairs; a split is a run of positions of one tile.
    x_size, y_size = grid.extents(x_size, UNIT), grid.extents(y_size)
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


@triton.jit(do_not_specialize=["dw_count", "db_count", "splits"])
def _sum_kernel(
    dw_share_ptr, db_share_ptr, dw_ptr, db_ptr,  # [splits, dw_count], [splits, db_count] or None; their sums
    dw_count, db_count, splits,
    BM: tl.constexpr,
):  # fmt: skip
    """sum[i] = share[0, i] + share[1, i] + ..., always in this order: the second pass of the weight gradient."""
    block = tl.program_id(0)
    blocks = grid.cdiv(dw_count, BM)
    _sum_shares(dw_share_ptr, dw_ptr, dw_count, splits, block, BM)
    if db_share_ptr is not None:
        _sum_shares(db_share_ptr, db_ptr, db_count, splits, block - blocks, BM)


@backend.device_function
def _sum_shares(share_ptr, sum_ptr, count, splits, block, BM: tl.constexpr):
    """Sum the elements of block number `block` of `count` elements; of none where there is no such block."""
    element = block * BM + tl.arange(0, BM)
    valid = (element >= 0) & (element < count)
    total = tl.load(share_ptr + element, mask=valid, other=0.0)
    for split in range(1, tl.where((block >= 0) & (block * BM < count), splits, 1)):
        total += tl.load(share_ptr + split * count + element, mask=valid, other=0.0)
    tl.store(sum_ptr + element, total.to(sum_ptr.dtype.element_ty), mask=valid)


class _Plan(NamedTuple):
    """The plan of a weight gradient: how x, dy and y are read, what is made, and the launches.

    Args:
        shares: of dw and db, by split; None where there is one split.
        lines: dw over the elements of a widened window; None where it is dw itself.
        live: where in these lines the taps are that count.
        total: adds the shares up.
    """

    dense: Dense
    dw: Buffer
    db: Buffer
    shares: tuple[Buffer, Buffer] | None
    lines: Buffer | None
    live: tuple[int, int] | None
    launch: Launch
    total: Launch | None
    layout: torch.memory_format


@backend.upcasts_bfloat16
def weight_gradient(x: Tensor, dy: Tensor, y: Tensor | None, window: Window, bias: bool) -> tuple[Tensor, Tensor]:
    """dw [T*G*O, C, *kernel] and db [T*G*O] (empty unless `bias`) of `forward`; dy counts only where y > 0, if given.

    The output positions are split among programs, whose shares are summed in a fixed order.
    """
    plan = _plan(x, dy, y, window, bias, gemm.input_precision(x, window))
    x, dy, y = plan.dense(x, dy, y)
    dw, db = plan.dw(), plan.db()
    made = dw if plan.lines is None else plan.lines()
    if plan.total is None:
        plan.launch(x, dy, y, made, db if bias else None)
    else:
        dw_shares, db_shares = (share() for share in plan.shares)
        plan.launch(x, dy, y, dw_shares, db_shares)
        plan.total(dw_shares, db_shares, made, db if bias else None)
    if plan.live is not None:
        lines = made.view(len(dw), *window.kernel[:-1], -1)[..., slice(*plan.live)]
        dw.copy_(lines.unflatten(-1, (window.kernel[-1], -1)).movedim(-1, 1))
    return dw.contiguous(memory_format=plan.layout), db


@planned
def _plan(x: Tensor, dy: Tensor, y: Tensor | None, window: Window, bias: bool, precision: str) -> _Plan:
    wide, outputs, channels = window.lifted(), dy.shape[1] // window.groups, x.shape[1] // window.groups
    dw_shape = (wide.tiles * dy.shape[1], channels, *window.kernel)
    extents, live = lift_shape(x.shape), None
    if window.covers(x.shape[2:]):
        wide, extents = POINT, gemm.flattened(extents)
        channels = extents[-1]
    elif gemm.has_few_channels(extents, x.element_size(), wide):
        wide, extents, live = gemm.over_elements(extents, x.element_size(), wide)
        channels = 1
    dy_size = lift(dy.shape[2:])
    counts = tuple(map(cdiv, dy_size, wide.tile))
    rows = dy.shape[0] * prod(counts)
    tile = tuning.tile(
        "weight_gradient", x.dtype, outputs, channels, rows, wide.taps, window.groups, wide.tiles, x.shape[0], x.device
    )
    dw_count, db_count = dw_shape[0] * wide.taps * channels, dw_shape[0] if bias else 0
    unit = gemm.unit(extents)
    columns = cdiv(wide.taps * channels, tile.n if tile.dot else 1)
    split, layout = tile.splits > 1, memory_format(x)
    accumulated = accumulator_dtype(x)
    return _Plan(
        Dense(x, dy, y),
        buffer(dw_shape, x, layout=layout),
        buffer((db_count,), x),
        (
            buffer((tile.splits * dw_count,), x, accumulated),
            buffer((tile.splits * db_count,), x, accumulated) if bias else no_buffer,
        ) if split else None,
        None if live is None else buffer((dw_count,), x),
        live,
        Launch(
            _weight_gradient_kernel, (wide.tiles * columns * tile.blocks(outputs, window.groups, tile.m), tile.splits),
            cdiv(cdiv(rows, tile.splits), tile.k) * tile.k, rows, grid.divisors(counts),
            gemm.in_units(extents[1:4], unit), grid.odd(dy_size),
            WINDOW=wide, CHANNELS=channels, OUTPUTS=outputs, UNIT=unit, ACC=grid.accumulator_type(x),
            PRECISION=precision, INDEX=grid.index_type(x.numel(), dy.numel(), tile.splits * dw_count),
            **tile.constants | ({} if tile.dot else {"COLUMNS": (1,)}),
        ),
        Launch(
            _sum_kernel, (cdiv(dw_count, tuning.SUM_BLOCK) + cdiv(db_count, tuning.SUM_BLOCK),),
            dw_count, db_count, tile.splits, BM=tuning.SUM_BLOCK,
        ) if split else None,
        layout,
    )  # fmt: skip
