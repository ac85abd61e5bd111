"""Max pooling and its gradient, each one Triton kernel, over grids of up to three axes.

    y[n, p, c]  = max_t x[n, p * stride - before + t * dilation, c]     and the tap t where it was found
    dx[n, i, c] = sum of dy[n, p, c] over the windows p whose tap t is i

(Deep Learning, section 9.3.) Axes are those of kernels/conv.py. Ties and NaN as torch has them: the first of equals
wins, a NaN wins over any number and the last NaN over others. The tap, not the position, is kept for the gradient: it
fits a byte, and the gradient gathers from the few windows that can reach an input, so nothing is added atomically.

Cross-channel pooling (maxout) is the same pooling along the channels, taken as a grid of one axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import backend, grid, tuning
from kernels.shape import Window, channels_last, memory_format, new_channels_last, tap_dtype


@triton.jit
def _max_pool_kernel(
    x_ptr, y_ptr, tap_ptr,  # [N, D, H, W, C], [N, P, Q, R, C], the same
    positions, x_size, y_size, channels,  # N*P*Q*R, (D, H, W), (P, Q, R), C
    WINDOW: tl.constexpr, INDEX: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    # Locate: rows are output positions, columns channels.
    columns = grid.cdiv(channels, BN)
    row = (tl.program_id(0) // columns).to(INDEX) * BM + tl.arange(0, BM)[:, None]
    channel = tl.program_id(0) % columns * BN + tl.arange(0, BN)[None, :]
    valid = (row < positions) & (channel < channels)
    n, p, q, r = grid.unravel(row, y_size)
    d = p * WINDOW.stride[0] - WINDOW.padding[0][0]
    h = q * WINDOW.stride[1] - WINDOW.padding[1][0]
    w = r * WINDOW.stride[2] - WINDOW.padding[2][0]
    x_row = x_ptr + grid.offset(n, d, h, w, x_size) * channels + channel

    # Compare, tap by tap.
    best = tl.full((BM, BN), float("-inf"), x_ptr.dtype.element_ty)
    best_tap = tl.full((BM, BN), -1, tl.int32)
    for tap in range(WINDOW.taps):
        tap_d = tap // (WINDOW.kernel[1] * WINDOW.kernel[2]) * WINDOW.dilation[0]
        tap_h = tap // WINDOW.kernel[2] % WINDOW.kernel[1] * WINDOW.dilation[1]
        tap_w = tap % WINDOW.kernel[2] * WINDOW.dilation[2]
        inside = grid.inside(valid, d, tap_d, x_size[0], WINDOW.edges[0])
        inside = grid.inside(inside, h, tap_h, x_size[1], WINDOW.edges[1])
        inside = grid.inside(inside, w, tap_w, x_size[2], WINDOW.edges[2])
        shift = ((tap_d * x_size[1] + tap_h) * x_size[2] + tap_w) * channels
        x = tl.load(x_row + shift, mask=inside, other=float("-inf"))
        better = inside & ((x > best) | (x != x) | (best_tap < 0))
        best = tl.where(better, x, best)
        best_tap = tl.where(better, tap, best_tap)

    # Store.
    y_offset = row * channels + channel
    tl.store(y_ptr + y_offset, best, mask=valid)
    tl.store(tap_ptr + y_offset, best_tap.to(tap_ptr.dtype.element_ty), mask=valid)


@triton.jit
def _max_pool_gradient_kernel(
    dy_ptr, tap_ptr, dx_ptr,  # [N, P, Q, R, C], the same, [N, D, H, W, C]
    positions, x_size, y_size, channels,  # N*D*H*W, (D, H, W), (P, Q, R), C
    WINDOW: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    # Locate: rows are input positions, columns channels.
    columns = grid.cdiv(channels, BN)
    row = (tl.program_id(0) // columns).to(INDEX) * BM + tl.arange(0, BM)[:, None]
    channel = tl.program_id(0) % columns * BN + tl.arange(0, BN)[None, :]
    valid = (row < positions) & (channel < channels)
    n, d, h, w = grid.unravel(row, x_size)
    d += WINDOW.padding[0][0]
    h += WINDOW.padding[1][0]
    w += WINDOW.padding[2][0]
    first_d = grid.first_tap(d, 0, WINDOW)
    first_h = grid.first_tap(h, 1, WINDOW)
    first_w = grid.first_tap(w, 2, WINDOW)

    # Gather from the windows that reach each input.
    reach: tl.constexpr = WINDOW.reach
    dx = tl.full((BM, BN), 0.0, ACC)
    for window in range(reach[0] * reach[1] * reach[2]):
        j_d = window // (reach[1] * reach[2])
        j_h = window // reach[2] % reach[1]
        j_w = window % reach[2]
        tap_d = first_d + j_d * WINDOW.every[0]
        tap_h = first_h + j_h * WINDOW.every[1]
        tap_w = first_w + j_w * WINDOW.every[2]
        inside = valid & (tap_d < WINDOW.kernel[0]) & (tap_h < WINDOW.kernel[1]) & (tap_w < WINDOW.kernel[2])
        p = (d - tap_d * WINDOW.dilation[0]) // WINDOW.stride[0]
        q = (h - tap_h * WINDOW.dilation[1]) // WINDOW.stride[1]
        r = (w - tap_w * WINDOW.dilation[2]) // WINDOW.stride[2]
        inside = grid.inside(inside, p, 0, y_size[0], WINDOW.edges[0])
        inside = grid.inside(inside, q, 0, y_size[1], WINDOW.edges[1])
        inside = grid.inside(inside, r, 0, y_size[2], WINDOW.edges[2])
        y_offset = grid.offset(n, p, q, r, y_size) * channels + channel
        tap = tl.load(tap_ptr + y_offset, mask=inside, other=0).to(tl.int32)
        chosen = inside & (tap == (tap_d * WINDOW.kernel[1] + tap_h) * WINDOW.kernel[2] + tap_w)
        dx += tl.load(dy_ptr + y_offset, mask=chosen, other=0.0).to(ACC)

    # Store.
    tl.store(dx_ptr + row * channels + channel, dx.to(dx_ptr.dtype.element_ty), mask=valid)


@backend.upcasts_bfloat16
def max_pool(x: Tensor, window: Window, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Largest of each window of x [N, C, *grid], and the tap where it was found, both [N, C, *size].

    The taps number the window row-major; their dtype is uint8 where it has at most 256, else int32.
    """
    x_last = channels_last(x)
    y = new_channels_last(x, x.shape[1], size)
    taps = new_channels_last(x, x.shape[1], size, tap_dtype(window.taps))
    y_last, taps_last = channels_last(y), channels_last(taps)
    positions = x.shape[0] * prod(size)
    blocks, tile = _blocks(positions, x.shape[1])
    backend.launch(
        _max_pool_kernel, blocks,
        x_last, y_last, taps_last, positions, tuple(x_last.shape[1:4]), tuple(y_last.shape[1:4]), x.shape[1],
        WINDOW=window.lifted(), INDEX=grid.index_type(x, y), **tile,
    )  # fmt: skip
    return tuple(t.contiguous(memory_format=memory_format(x)) for t in (y, taps))


@backend.upcasts_bfloat16
def max_pool_gradient(dy: Tensor, taps: Tensor, window: Window, size: Sequence[int]) -> Tensor:
    """Gradient dx [N, C, *size] of `max_pool` from dy and taps [N, C, *grid]."""
    dy_last, taps_last = channels_last(dy), channels_last(taps)
    dx = new_channels_last(dy, dy.shape[1], size)
    dx_last = channels_last(dx)
    positions = dy.shape[0] * prod(size)
    blocks, tile = _blocks(positions, dy.shape[1])
    backend.launch(
        _max_pool_gradient_kernel, blocks,
        dy_last, taps_last, dx_last, positions, tuple(dx_last.shape[1:4]), tuple(dy_last.shape[1:4]), dy.shape[1],
        WINDOW=window.lifted(), ACC=tl.float64 if dy.dtype == torch.float64 else tl.float32,
        INDEX=grid.index_type(dy, dx), **tile,
    )  # fmt: skip
    return dx.contiguous(memory_format=memory_format(dy))


def _blocks(positions: int, channels: int) -> tuple[tuple[int], dict[str, int]]:
    tile = tuning.pool_tile(positions, channels)
    return (triton.cdiv(positions, tile.m) * triton.cdiv(channels, tile.n),), {"BM": tile.m, "BN": tile.n}
