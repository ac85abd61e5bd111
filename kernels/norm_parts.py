"""Parts of the kernels of batch norm: a program's block, sums over splits, running statistics; see kernels/norm.py."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import backend, grid, tuning
from kernels.backend import device_function
from kernels.shape import accumulator_dtype, cdiv

EXTENTS = ("positions", "steps")  # no kernel is compiled anew for theirs


class Extents(NamedTuple):
    """The way of kernels through x: programs, splits, extents (positions, channels, steps), and constants."""

    programs: tuple[int]
    splits: int
    extents: tuple[int, int, int]
    block: int
    constants: dict[str, Any]


def extents_of(x: Tensor, summed: bool) -> Extents:
    """Return how kernels go through x [N, C, *grid], `summed` where they share sums among splits."""
    channels = x.shape[1]
    positions = x.numel() // channels
    tile = tuning.norm_tile(positions, channels, x.element_size(), x.device)
    steps = cdiv(cdiv(positions, tile.m), tile.splits)
    splits = cdiv(positions, steps * tile.m)  # none is empty
    most = max(splits, 1 if backend.INTERPRETING else tuning.most_norm_splits(channels))
    block = triton.next_power_of_2(most) if summed else 1  # a constant: not to vary with the batch
    constants = {
        "ACC": grid.accumulator_type(x), "INDEX": grid.index_type(x.numel()),
        "BM": tile.m, "BN": tile.n, "num_warps": tile.warps,
    }  # fmt: skip
    return Extents((splits * cdiv(channels, tile.n),), splits, (positions, channels, steps), block, constants)


def per_channel(x: Tensor, present: bool = True) -> Tensor:
    """Return an uninitialised [C] of the type that x is summed in; empty unless `present`."""
    return torch.empty(x.shape[1] if present else 0, dtype=accumulator_dtype(x), device=x.device)


@device_function
def locate(channels, steps, INDEX: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """A program's split, its first position, and its channels [BN, 1]; neighbours in the grid share positions."""
    blocks = grid.cdiv(channels, BN)
    split = tl.program_id(0) // blocks
    channel = tl.program_id(0) % blocks * BN + tl.arange(0, BN)[:, None]
    return split, split.to(INDEX) * steps * BM, channel


@device_function
def origin_of(x_ptr, channel, channels, positions, ACC: tl.constexpr, INDEX: tl.constexpr):
    """Return what a channel's values are counted from [BN, 1]: the number nearest zero in the range of its first 16.

    Values with a large mean then keep the digits in which they differ, and an outlier takes no digits from the others.
    """
    position = tl.arange(0, 16)[None, :].to(INDEX)
    valid = (position < positions) & (channel < channels)
    x = tl.load(x_ptr + position * channels + channel, mask=valid, other=0.0).to(ACC)
    least = tl.min(tl.where(valid, x, float("inf")), axis=1, keep_dims=True)
    most = tl.max(tl.where(valid, x, float("-inf")), axis=1, keep_dims=True)
    return tl.where(channel < channels, tl.minimum(tl.maximum(least, 0.0), most), 0.0)


@device_function
def moments(mean_ptr, m2_ptr, channel, channels, positions, rows, BS: tl.constexpr, INDEX: tl.constexpr):
    """Mean, less the origin, and variance [BN, 1] from the shares [splits, C] of splits of `rows` positions.

    A share is a mean, less the origin, and a sum of squared distances from it (Chan, Golub and LeVeque, "Updating
    formulae and a pairwise algorithm for computing sample variances", 1979). The last split may be shorter.
    """
    start = tl.arange(0, BS)[None, :].to(INDEX) * rows
    share = tl.arange(0, BS)[None, :] * channels + channel
    valid = (start < positions) & (channel < channels)
    shift = tl.load(mean_ptr + share, mask=valid, other=0.0)  # [BN, BS]
    m2 = tl.load(m2_ptr + share, mask=valid, other=0.0)
    count = tl.where(valid, tl.minimum(positions - start, rows), 0).to(m2.dtype)
    mean = tl.sum(shift * count, axis=1, keep_dims=True) / positions
    distance = shift - mean
    m2 = tl.sum(m2 + count * distance * distance, axis=1, keep_dims=True)
    return mean, m2 / positions


@device_function
def total(share_ptr, channel, channels, positions, rows, BS: tl.constexpr, INDEX: tl.constexpr):
    """Sum [BN, 1] of the shares [splits, C] of splits of `rows` positions."""
    start = tl.arange(0, BS)[None, :].to(INDEX) * rows
    valid = (start < positions) & (channel < channels)
    share = tl.load(share_ptr + tl.arange(0, BS)[None, :] * channels + channel, mask=valid, other=0.0)
    return tl.sum(share, axis=1, keep_dims=True)


@device_function
def relu_backward(dy_ptr, y_ptr, offset, valid, ACC: tl.constexpr):
    """dy where the ReLU output y let the signal through, all of it without one; 0 outside."""
    dy = tl.load(dy_ptr + offset, mask=valid, other=0.0).to(ACC)
    if y_ptr is not None:
        y = tl.load(y_ptr + offset, mask=valid, other=0.0)
        dy = tl.where(y <= 0, 0.0, dy)
    return dy


@device_function
def track(running_ptrs, batch, share, rest, mask):
    """Move running statistics towards those of a batch: by a share of the way, all of it if `rest`, 1 - share, is 0."""
    running = tl.load(running_ptrs, mask=mask, other=0.0).to(batch.dtype)
    running = running * rest + batch * share  # no distance, in which a large old value rounds a small new one away
    tl.store(running_ptrs, running.to(running_ptrs.dtype.element_ty), mask=mask)
