"""Max and average pooling and their gradients, each one Triton kernel, over grids of up to three axes.

    y[n, p, c]  = max_t x[n, start(p) + t * dilation, c]     and the tap t where it was found, or
    y[n, p, c]  = sum_t x[n, start(p) + t, c] / divisor(p)
    dx[n, i, c] = sum of dy[n, p, c] over the windows p whose tap t is i, or of dy[n, p, c] / divisor(p) over all on i

(Deep Learning, section 9.3.) A window starts at p * stride - before, or is adaptive: see Window. Axes are those of
kernels/conv.py. Ties and NaN as torch has them: the first of equals wins, a NaN wins over any number and the last NaN
over others. The tap, not the position, is kept for the gradient: it fits a byte, and the gradient gathers from the few
windows that can reach an input, so nothing is added atomically.

Cross-channel pooling (maxout) is the same pooling along the channels, taken as a grid of one axis.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import backend, grid, tuning
from kernels.backend import device_function
from kernels.plan import Buffer, Dense, Launch, buffer, no_buffer, planned
from kernels.shape import Window, cdiv, lift, memory_format, tap_dtype


@triton.jit(do_not_specialize=["positions"])
def _pool_kernel(
    x_ptr, y_ptr, tap_ptr,  # [N, D, H, W, C], [N, P, Q, R, C], the same of the maximum, None for the average
    positions, counts, x_size, y_size, channels,  # N*P*Q*R, P, Q, R (divisors), (D, H, W), (P, Q, R), C
    WINDOW: tl.constexpr, DIVISOR: tl.constexpr, PADDED: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    # Locate: rows are output positions, columns channels.
    x_size, y_size = grid.extents(x_size), grid.extents(y_size)
    row, channel, valid = _locate(positions, channels, INDEX, BM, BN)
    n, p, q, r = grid.unravel(row, counts)
    d, d_end = grid.span(p, 0, x_size, y_size, WINDOW)
    h, h_end = grid.span(q, 1, x_size, y_size, WINDOW)
    w, w_end = grid.span(r, 2, x_size, y_size, WINDOW)
    x_row = x_ptr + grid.offset(n, d, h, w, x_size) * channels + channel

    # Compare, or add: each line of a window by itself, so that rounding grows with its sides and not with its volume.
    if tap_ptr is None:
        y = tl.full((BM, BN), 0.0, ACC)
    else:
        y = tl.full((BM, BN), float("-inf"), x_ptr.dtype.element_ty)
        best_tap = tl.full((BM, BN), -1, tl.int32)
    for line in range(WINDOW.kernel[0] * WINDOW.kernel[1]):
        tap_d = line // WINDOW.kernel[1] * WINDOW.dilation[0]
        tap_h = line % WINDOW.kernel[1] * WINDOW.dilation[1]
        on_line = grid.inside(valid, d, tap_d, d_end, WINDOW.edges[0])
        on_line = grid.inside(on_line, h, tap_h, h_end, WINDOW.edges[1])
        if tap_ptr is None:
            total = tl.full((BM, BN), 0.0, ACC)
        for step in range(WINDOW.kernel[2]):
            tap_w = step * WINDOW.dilation[2]
            inside = grid.inside(on_line, w, tap_w, w_end, WINDOW.edges[2])
            x_tap = x_row + ((tap_d * x_size[1] + tap_h) * x_size[2] + tap_w) * channels
            if tap_ptr is None:
                total += tl.load(x_tap, mask=inside, other=0.0).to(ACC)
            else:
                x = tl.load(x_tap, mask=inside, other=float("-inf"))
                better = inside & ((x > y) | (x != x) | (best_tap < 0))
                y = tl.where(better, x, y)
                best_tap = tl.where(better, line * WINDOW.kernel[2] + step, best_tap)
        if tap_ptr is None:
            y += total

    # Store.
    y_offset = row * channels + channel
    if tap_ptr is None:
        y = y / _divisor(p, q, r, x_size, y_size, WINDOW, DIVISOR, PADDED, ACC)
    else:
        tl.store(tap_ptr + y_offset, best_tap.to(tap_ptr.dtype.element_ty), mask=valid)
    tl.store(y_ptr + y_offset, y.to(y_ptr.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=["positions"])
def _pool_gradient_kernel(
    dx_ptr, dy_ptr, tap_ptr,  # [N, D, H, W, C], [N, P, Q, R, C], the same of the maximum, None for the average
    positions, counts, x_size, y_size, channels,  # N*D*H*W, D, H, W (divisors), (D, H, W), (P, Q, R), C
    WINDOW: tl.constexpr, DIVISOR: tl.constexpr, PADDED: tl.constexpr, REACH: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    # Locate: rows are input positions, columns channels.
    x_size, y_size = grid.extents(x_size), grid.extents(y_size)
    row, channel, valid = _locate(positions, channels, INDEX, BM, BN)
    n, d, h, w = grid.unravel(row, counts)
    readers_d = grid.readers(d, 0, x_size, y_size, WINDOW)
    readers_h = grid.readers(h, 1, x_size, y_size, WINDOW)
    readers_w = grid.readers(w, 2, x_size, y_size, WINDOW)

    # Gather from the windows that reach each input.
    dx = tl.full((BM, BN), 0.0, ACC)
    for window in range(REACH[0] * REACH[1] * REACH[2]):
        j_d = window // (REACH[1] * REACH[2])
        j_h = window // REACH[2] % REACH[1]
        j_w = window % REACH[2]
        p, tap_d, reads = grid.reader(d, j_d, readers_d, valid, 0, x_size, y_size, WINDOW)
        q, tap_h, reads = grid.reader(h, j_h, readers_h, reads, 1, x_size, y_size, WINDOW)
        r, tap_w, reads = grid.reader(w, j_w, readers_w, reads, 2, x_size, y_size, WINDOW)
        y_offset = grid.offset(n, p, q, r, y_size) * channels + channel
        if tap_ptr is None:
            divisor = _divisor(p, q, r, x_size, y_size, WINDOW, DIVISOR, PADDED, ACC)
            dx += tl.load(dy_ptr + y_offset, mask=reads, other=0.0).to(ACC) * (1.0 / divisor)  # one a row
        else:
            tap = tl.load(tap_ptr + y_offset, mask=reads, other=0).to(tl.int32)
            chosen = reads & (tap == (tap_d * WINDOW.kernel[1] + tap_h) * WINDOW.kernel[2] + tap_w)
            dx += tl.load(dy_ptr + y_offset, mask=chosen, other=0.0).to(ACC)

    # Store.
    tl.store(dx_ptr + row * channels + channel, dx.to(dx_ptr.dtype.element_ty), mask=valid)


@device_function
def _locate(positions, channels, INDEX: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """A program's rows [BM, 1] of `positions` and columns [1, BN] of `channels`, and which of them exist [BM, BN]."""
    columns = grid.cdiv(channels, BN)
    row = (tl.program_id(0) // columns).to(INDEX) * BM + tl.arange(0, BM)[:, None]
    channel = tl.program_id(0) % columns * BN + tl.arange(0, BN)[None, :]
    return row, channel, (row < positions) & (channel < channels)


@device_function
def _divisor(
    p, q, r, x_size, y_size,
    WINDOW: tl.constexpr, DIVISOR: tl.constexpr, PADDED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """What the sum over window (p, q, r) is divided by: DIVISOR [1, 1], or if that is 0 the inputs in it [BM, 1]."""
    divisor = tl.full((1, 1), DIVISOR, ACC)
    if DIVISOR == 0:
        count = grid.count(p, 0, x_size, y_size, WINDOW, PADDED)
        count *= grid.count(q, 1, x_size, y_size, WINDOW, PADDED)
        count *= grid.count(r, 2, x_size, y_size, WINDOW, PADDED)
        divisor = tl.maximum(count, 1).to(ACC)  # a window off the grid, which is masked, must not give 0 / 0
    return divisor


class _Plan(NamedTuple):
    """The plan of a pooling or of its gradient: how what is given is read, what is made, and the launch."""

    dense: Dense
    made: Buffer
    taps: Buffer
    launch: Launch
    layout: torch.memory_format


@backend.upcasts_bfloat16
def max_pool(x: Tensor, window: Window, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Largest of each window of x [N, C, *grid], and the tap where it was found, both [N, C, *size].

    The taps number the window row-major; their dtype is uint8 where it has at most 256, else int32.
    """
    plan = _plan_pool(x, window, tuple(size), True, 0, False)
    (x,) = plan.dense(x)
    y, taps = plan.made(), plan.taps()
    plan.launch(x, y, taps)
    return y.contiguous(memory_format=plan.layout), taps.contiguous(memory_format=plan.layout)


@backend.upcasts_bfloat16
def max_pool_gradient(dy: Tensor, taps: Tensor, window: Window, size: Sequence[int]) -> Tensor:
    """Gradient dx [N, C, *size] of `max_pool` from dy and taps [N, C, *grid]."""
    plan = _plan_gradient(dy, taps, window, tuple(size), 0, False)
    return _gradient(plan, dy, taps)


@backend.upcasts_bfloat16
def average_pool(x: Tensor, window: Window, size: Sequence[int], divisor: int, padded: bool) -> Tensor:
    """Sum of each window of x [N, C, *grid], [N, C, *size], divided by `divisor`.

    If that is 0, divided by the number of inputs in the window, among them the padding if `padded`.
    """
    plan = _plan_pool(x, window, tuple(size), False, divisor, padded)
    (x,) = plan.dense(x)
    y = plan.made()
    plan.launch(x, y, None)
    return y.contiguous(memory_format=plan.layout)


@backend.upcasts_bfloat16
def average_pool_gradient(dy: Tensor, window: Window, size: Sequence[int], divisor: int, padded: bool) -> Tensor:
    """Gradient dx [N, C, *size] of `average_pool` from dy [N, C, *grid]: its transpose."""
    plan = _plan_gradient(dy, None, window, tuple(size), divisor, padded)
    return _gradient(plan, dy, None)


def _gradient(plan: _Plan, dy: Tensor, taps: Tensor | None) -> Tensor:
    dy, taps = plan.dense(dy, taps)
    dx = plan.made()
    plan.launch(dx, dy, taps)
    return dx.contiguous(memory_format=plan.layout)


@planned
def _plan_pool(x: Tensor, window: Window, size: tuple[int, ...], with_taps: bool, divisor: int, padded: bool) -> _Plan:
    shape = (*x.shape[:2], *size)
    layout = memory_format(x)
    taps = buffer(shape, x, tap_dtype(window.taps), layout) if with_taps else no_buffer
    launch = _launch(_pool_kernel, shape, x, x.shape, shape, window, divisor, padded)
    return _Plan(Dense(x), buffer(shape, x, layout=layout), taps, launch, layout)


@planned
def _plan_gradient(
    dy: Tensor, taps: Tensor | None, window: Window, size: tuple[int, ...], divisor: int, padded: bool
) -> _Plan:
    shape = (*dy.shape[:2], *size)
    reach = window.fixed_where_even(size, dy.shape[2:]).reach(size, dy.shape[2:])
    launch = _launch(_pool_gradient_kernel, shape, dy, shape, dy.shape, window, divisor, padded, REACH=lift(reach))
    layout = memory_format(dy)
    return _Plan(Dense(dy, taps), buffer(shape, dy, layout=layout), no_buffer, launch, layout)


def _launch(
    kernel: Any, rows: tuple[int, ...], given: Tensor, x_shape: tuple[int, ...], y_shape: tuple[int, ...],
    window: Window, divisor: int, padded: bool, **constants: Any,
) -> Launch:  # fmt: skip
    """Return a launch over the positions and channels of `rows` [N, C, *grid]: those of y, or of x for a gradient."""
    size, output_size = x_shape[2:], y_shape[2:]
    window = window.fixed_where_even(size, output_size)
    channels, positions = rows[1], rows[0] * prod(rows[2:])
    tile = tuning.pool_tile(positions, channels, given.element_size(), given.device)
    largest = max(map(operator.mul, size, output_size)) if window.adaptive else 0
    return Launch(
        kernel, (cdiv(positions, tile.m) * cdiv(channels, tile.n),),
        positions, grid.divisors(lift(rows[2:])), grid.odd(lift(size)), grid.odd(lift(output_size)), channels,
        WINDOW=window.lifted(), DIVISOR=divisor or window.constant_count(size, output_size, padded), PADDED=padded,
        ACC=grid.accumulator_type(given), INDEX=grid.index_type(prod(x_shape), prod(y_shape), largest),
        BM=tile.m, BN=tile.n, **constants,
    )  # fmt: skip
