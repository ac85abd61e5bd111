"""The three operations of a convolutional layer, each one Triton kernel, over grids of up to three axes.

The convolution is here, the others in kernels/transpose.py and kernels/weight_gradient.py:

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

Where 16 bytes of the input cross from one tap to the next, as with three colours, a line of the window is taken for
what it is in memory: neighbouring elements, which are loaded together (Window.over_elements). Coordinates are found
without dividing (grid.divisors), and compared once, as unsigned numbers, with both ends of an axis. Where a GPU copies
boxes of the grid by itself, rows can be one, and no thread computes addresses (kernels/boxes.py).
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
from kernels.plan import Buffer, Dense, Launch, buffer, is_aligned, no_buffer, planned
from kernels.shape import POINT, Window, cdiv, lift, lift_shape, memory_format, tap_dtype
from kernels.transpose import transpose as transpose
from kernels.weight_gradient import weight_gradient as weight_gradient


@triton.jit(do_not_specialize=["batch", "rows", "steps"])
def _forward_kernel(
    x_ptr, weight_ptr,  # [N, D, H, W, G*C], [T*G*O*J, taps, C]
    bias_ptr, residual_ptr,  # [T*G*O*J] and as y, or None
    y_ptr, winner_ptr,  # [N, P, Q, R, G*O], the same or None
    x_box,  # x as TMA takes it, or None
    batch, rows, counts,  # N; of a tile, its divisors
    x_size, full_size, y_size,  # (D, H, W), (P, Q, R) before and after pooling
    steps,  # of a product inside the loop over candidates: not known when compiled, as Triton 3.9 can fail on sm_100
    # where it is one and the inner loop dissolves; None where there is one candidate
    WINDOW: tl.constexpr, POOL: tl.constexpr, MAXOUT: tl.constexpr,  # Windows of three axes, J
    CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr, RELU: tl.constexpr,  # C, O after maxout
    LIVE: tl.constexpr, TRUST: tl.constexpr,  # see gemm.multiply_accumulate; compute without LIVE, again where it shows
    BOX: tl.constexpr,  # extents (4) of the rows of a block, see kernels/boxes.py, or None
    UNIT: tl.constexpr,  # divides W
    ACC: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    # Locate: rows are output positions of one tile, columns output channels; neighbours in the grid share rows.
    x_size, full_size, y_size = grid.extents(x_size, UNIT), grid.extents(full_size), grid.extents(y_size)
    block, group, columns, column_valid = gemm.channels(tl.program_id(0), OUTPUTS, WINDOW.groups, COLUMNS, DOT)
    BM: tl.constexpr = ROWS[0] if len(ROWS) == 1 else ROWS[0] + ROWS[1]
    blocks = grid.cdiv(rows, BM)
    tile = block // blocks
    TILE: tl.constexpr = WINDOW.tile  # before 3.7, Triton passes a tuple of ints on only as a constexpr of its own
    residue = gemm.residue(tile, TILE)
    output_rows = ()
    corner = None
    for i in tl.static_range(len(ROWS)):
        row = ((block % blocks).to(INDEX) * BM + i * ROWS[0] + tl.arange(0, ROWS[i]))[:, None]
        if BOX is None:
            n, _, position, valid = gemm.positions(row, rows, residue, counts, y_size, TILE)
        else:
            corner, n, position, valid = boxes.locate((block % blocks).to(INDEX), batch, counts, y_size, BOX)
        output_rows = output_rows + ((row, n, position, valid),)

    # Accumulate over taps and input channels, for each candidate of the pooling; keep the largest.
    CANDIDATES: tl.constexpr = POOL.taps * MAXOUT
    best, winners = (), ()
    if CANDIDATES == 1:
        best, _inside = _candidate(
            0, x_ptr, x_box, corner, weight_ptr, bias_ptr, group, tile, output_rows, columns, column_valid,
            x_size, full_size, None,
            WINDOW, POOL, MAXOUT, CHANNELS, OUTPUTS, LIVE, TRUST, ACC, PRECISION, INDEX, ROWS, COLUMNS, BK, DOT,
        )  # fmt: skip
    else:
        for part in tl.static_range(len(ROWS) * len(COLUMNS)):
            shape: tl.constexpr = (ROWS[part // len(COLUMNS)], COLUMNS[part % len(COLUMNS)])
            best = best + (tl.full(shape, float("-inf"), ACC),)
            winners = winners + (tl.full(shape, -1, tl.int32),)
        for candidate in range(CANDIDATES):
            values, inside = _candidate(
                candidate, x_ptr, None, None, weight_ptr, bias_ptr, group, tile, output_rows, columns, column_valid,
                x_size, full_size, steps,
                WINDOW, POOL, MAXOUT, CHANNELS, OUTPUTS, LIVE, TRUST, ACC, PRECISION, INDEX, ROWS, COLUMNS, BK, DOT,
            )  # fmt: skip
            best, winners = _better(candidate, values, inside, best, winners, COLUMNS)

    # Epilogue: residual, ReLU; then store.
    for part in tl.static_range(len(ROWS) * len(COLUMNS)):
        row, n, at, valid = output_rows[part // len(COLUMNS)]
        p, q, r = at
        column = columns[part % len(COLUMNS)]
        position = row if WINDOW.tiles == 1 and BOX is None else grid.offset(n, p, q, r, y_size)
        element = position * (WINDOW.groups * OUTPUTS) + (group * OUTPUTS + column)[None, :]
        mask = valid & column_valid[part % len(COLUMNS)][None, :]
        y = best[part]
        if residual_ptr is not None:
            y += tl.load(residual_ptr + element, mask=mask, other=0.0).to(ACC)
        if RELU:
            y = tl.where(y < 0, 0.0, y)  # NaN stays, as in torch
        tl.store(y_ptr + element, y.to(y_ptr.dtype.element_ty), mask=mask)
        if winner_ptr is not None:
            winner = tl.full(y.shape, 0, tl.int32) if CANDIDATES == 1 else winners[part]
            tl.store(winner_ptr + element, winner.to(winner_ptr.dtype.element_ty), mask=mask)


@backend.device_function
def _candidate(
    candidate, x_ptr, x_box, corner, weight_ptr, bias_ptr, group, tile, output_rows, columns, column_valid,
    x_size, full_size, steps,
    WINDOW: tl.constexpr, POOL: tl.constexpr, MAXOUT: tl.constexpr, CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr,
    LIVE: tl.constexpr, TRUST: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """The product for candidate tap * MAXOUT + channel of a pooling, with bias, and which rows have this candidate."""
    KERNEL: tl.constexpr = WINDOW.kernel
    DILATION: tl.constexpr = WINDOW.dilation
    tap = candidate // MAXOUT
    tap_p = tap // (POOL.kernel[1] * POOL.kernel[2]) * POOL.dilation[0] - POOL.padding[0][0]
    tap_q = tap // POOL.kernel[2] % POOL.kernel[1] * POOL.dilation[1] - POOL.padding[1][0]
    tap_r = tap % POOL.kernel[2] * POOL.dilation[2] - POOL.padding[2][0]
    channel = group * CHANNELS if DOT else (group * CHANNELS)[None, :]
    x_rows, origins, load_valid, pool_valid = (), (), (), ()
    for i in tl.static_range(len(ROWS)):
        _row, n, position, valid = output_rows[i]
        p = position[0] * POOL.stride[0] + tap_p
        q = position[1] * POOL.stride[1] + tap_q
        r = position[2] * POOL.stride[2] + tap_r
        d = p * WINDOW.stride[0] - WINDOW.padding[0][0]
        h = q * WINDOW.stride[1] - WINDOW.padding[1][0]
        w = r * WINDOW.stride[2] - WINDOW.padding[2][0]
        x_rows = x_rows + (x_ptr + grid.offset(n, d, h, w, x_size) * (WINDOW.groups * CHANNELS) + channel,)
        origins = origins + ((d, h, w),)
        load_valid = load_valid + (valid if DOT else valid & column_valid[0][None, :],)
        inside = grid.inside(valid, p, 0, full_size[0], POOL.edges[0])
        inside = grid.inside(inside, q, 0, full_size[1], POOL.edges[1])
        pool_valid = pool_valid + (grid.inside(inside, r, 0, full_size[2], POOL.edges[2]),)
    weight_columns, weight_valid = (), ()
    for j in tl.static_range(len(COLUMNS)):
        output = ((tile * WINDOW.groups + group) * OUTPUTS + columns[j]) * MAXOUT + candidate % MAXOUT
        weight_columns = weight_columns + (weight_ptr + (output.to(INDEX) * (WINDOW.taps * CHANNELS))[None, :],)
        weight_valid = weight_valid + (column_valid[j][None, :],)
    if corner is not None:
        n, p, q, r = corner
        corner = (n, p - WINDOW.padding[0][0], q - WINDOW.padding[1][0], r - WINDOW.padding[2][0], group * CHANNELS)
    # What is beside the taps that count has a weight of 0: if it is NaN or infinite, and only then, it would show.
    accs = gemm.multiply_accumulate(
        x_rows, None, weight_columns, origins, x_size, load_valid, weight_valid,
        KERNEL, (0, 0, 0), (1, 1, 1), DILATION, steps, None, 0, CHANNELS, 1, WINDOW, CHANNELS, ACC,
        PRECISION, INDEX, ROWS, COLUMNS, BK if DOT else 1, DOT, None if TRUST else LIVE, x_box, corner,
    )  # fmt: skip
    if TRUST:
        if gemm.has_nan(accs):
            accs = gemm.multiply_accumulate(
                x_rows, None, weight_columns, origins, x_size, load_valid, weight_valid,
                KERNEL, (0, 0, 0), (1, 1, 1), DILATION, steps, None, 0, CHANNELS, 1, WINDOW, CHANNELS,
                ACC, PRECISION, INDEX, ROWS, COLUMNS, BK if DOT else 1, DOT, LIVE,
            )  # fmt: skip
    if bias_ptr is not None:
        sums = ()
        for part in tl.static_range(len(ROWS) * len(COLUMNS)):
            output = ((tile * WINDOW.groups + group) * OUTPUTS + columns[part % len(COLUMNS)]) * MAXOUT
            output += candidate % MAXOUT
            bias = tl.load(bias_ptr + output, mask=column_valid[part % len(COLUMNS)], other=0.0)
            sums = sums + (accs[part] + bias.to(ACC)[None, :],)
        accs = sums
    return accs, pool_valid


@backend.device_function
def _better(candidate, values, inside, best, winners, COLUMNS: tl.constexpr):
    """The larger of `values` and `best`, and its number; NaN is larger than any number, the first of equals stays."""
    larger, numbers = (), ()
    for part in tl.static_range(len(values)):
        value = values[part]
        better = inside[part // len(COLUMNS)] & ((value > best[part]) | (value != value) | (winners[part] < 0))
        larger = larger + (tl.where(better, value, best[part]),)
        numbers = numbers + (tl.where(better, candidate, winners[part]),)
    return larger, numbers


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, window: Window, relu: bool
) -> Tensor:
    """Convolution of x [N, G*C, *grid] with weight [T*G*O, C, *kernel], plus bias [T*G*O] and residual, then ReLU.

    T is the number of the window's tiles, whose kernels stand one after another. -> [N, G*O, *grid].
    """
    return _forward(x, weight, bias, residual, window, relu, POINT, None, 1, False)[0]


def forward_max(
    x: Tensor, weight: Tensor, bias: Tensor | None, window: Window, relu: bool,
    pool: Window, size: Sequence[int], maxout: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`forward`, and of its output the largest of each `pool` window and of each `maxout` consecutive channels.

    Returns:
        [N, G*O / maxout, *size], and which of the window's candidates (tap * maxout + channel) it was.
    """
    return _forward(x, weight, bias, None, window, relu, pool, tuple(size), maxout, True)


class _Forward(NamedTuple):
    """The plan of a forward pass: how x, weight, bias and residual are read, y and winners made, and the launch.

    Args:
        padding: of the weight, where the window is widened over elements.
    """

    dense: Dense
    padding: tuple[int, int] | None
    y: Buffer
    winners: Buffer
    launch: Launch
    layout: torch.memory_format


@backend.upcasts_bfloat16
def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, window: Window, relu: bool,
    pool: Window, size: tuple[int, ...] | None, maxout: int, with_winners: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    precision = gemm.input_precision(x, window)
    plan = _plan_forward(
        x, weight, bias, residual, window, relu, pool, size, maxout, with_winners, precision, is_aligned(x)
    )
    x, weight, bias, residual = plan.dense(x, weight, bias, residual)
    if plan.padding is not None:
        weight = gemm.padded_taps(weight, plan.padding)
    y, winners = plan.y(), plan.winners()
    plan.launch(x, weight, bias, residual, y, winners)
    return y.contiguous(memory_format=plan.layout), winners


@planned
def _plan_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, window: Window, relu: bool,
    pool: Window, size: tuple[int, ...] | None, maxout: int, with_winners: bool, precision: str, aligned: bool,
) -> _Forward:  # fmt: skip
    wide, channels = window.lifted(), weight.shape[1]
    outputs = weight.shape[0] // (wide.tiles * window.groups * maxout)
    full_size = window.output_size(x.shape[2:])
    size = full_size if size is None else size
    y_shape = (x.shape[0], window.groups * outputs, *size)
    extents, live = lift_shape(x.shape), None
    if window.covers(x.shape[2:]):
        wide, extents = POINT, gemm.flattened(extents)
        channels = extents[-1]
    elif gemm.has_few_channels(extents, x.element_size(), wide):
        wide, extents, live = gemm.over_elements(extents, x.element_size(), wide)
        channels = 1
    counts = tuple(map(cdiv, lift(size), wide.tile))
    tile = tuning.tile(
        "forward_max" if with_winners else "forward", x.dtype, x.shape[0] * prod(counts), outputs, channels,
        wide.taps, window.groups, wide.tiles, x.shape[0], x.device,
    )  # fmt: skip
    unit = gemm.unit(extents)
    layout = memory_format(x, weight)
    alone = aligned and live is None and not with_winners
    rows = boxes.rows(tile, wide, extents, x, counts, lift(size), alone)
    return _Forward(
        Dense(x, weight, bias, residual),
        None if live is None else (live[0], wide.kernel[-1] - live[1]),
        buffer(y_shape, x, layout=layout),
        buffer(y_shape, x, tap_dtype(pool.taps * maxout)) if with_winners else no_buffer,
        Launch(
            _forward_kernel, (wide.tiles * cdiv(rows.count, tile.m) * tile.blocks(outputs, window.groups),),
            rows.descriptor, x.shape[0], rows.count, rows.counts,
            gemm.in_units(extents[1:4], unit), grid.odd(lift(full_size)), grid.odd(lift(size)),
            cdiv(wide.taps * channels, tile.k if tile.dot else 1) if with_winners else None,
            WINDOW=wide, POOL=pool.lifted(), MAXOUT=maxout, CHANNELS=channels, OUTPUTS=outputs, RELU=relu, LIVE=live,
            TRUST=live is not None and not with_winners and tuning.multiplies_from_shared_memory(x.device),
            BOX=rows.extents, UNIT=unit, ACC=grid.accumulator_type(x), PRECISION=precision,
            INDEX=grid.index_type(x.numel(), weight.numel(), prod(y_shape)), **tile.constants,
        ),
        layout,
    )  # fmt: skip


def flops(batch: int, channels: int, outputs: int, size: Sequence[int], window: Window) -> int:
    """Return the floating-point operations of any of the three operations, two for each product, with padding too.

    The products are the same in all three, summed over different axes.

    Args:
        batch, channels, outputs: N, and all input and output channels.
        size: extents of the input grid.
    """
    return 2 * batch * prod(window.output_size(size)) * outputs * (channels // window.groups) * window.taps
