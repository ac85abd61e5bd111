"""Batch normalisation with residual addition and ReLU: two Triton kernels, and two in kernels/norm_gradient.py.

    mean[c], var[c] = over the positions i of a batch, x[i, c]'s mean and its mean squared distance from it
    xhat[i, c] = (x[i, c] - mean[c]) / sqrt(var[c] + eps)
    y[i, c]    = relu(xhat[i, c] weight[c] + bias[c] + residual[i, c])

    dbias[c] = sum_i dy[i, c], dweight[c] = sum_i dy[i, c] xhat[i, c], with dy zero where the ReLU's y is
    dx[i, c] = (dy[i, c] - (dbias[c] + xhat[i, c] dweight[c]) / positions) weight[c] / sqrt(var[c] + eps)

(Ioffe and Szegedy, "Batch normalization", 2015; Deep Learning, section 8.7.1.) With a running mean and variance in
place of the batch's, dx has its first term only.

Tensors are channels-last, M positions x C channels. The positions are split among programs; the first kernel keeps a
share of each sum for each split, and every program of the second adds up the shares of its channels, in a fixed order,
before it goes through its own split. So there is no third launch, nothing is added atomically, and a masked dy is
never written unless it is the residual's gradient.

A block is [BN, BM], a channel a row: the interpreter's NumPy sums pairwise along the last axis only, and elsewhere one
by one, with an error that grows with the number of terms.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import backend, grid
from kernels import norm_parts as parts
from kernels.plan import Buffer, Dense, Launch, buffer, no_buffer, planned
from kernels.shape import accumulator_dtype, cdiv, memory_format


@triton.jit(do_not_specialize=parts.EXTENTS)
def _statistics_kernel(
    x_ptr, mean_ptr, m2_ptr,  # [M, C], shares [splits, C] of both; means less the channel's origin
    positions, channels, steps,  # M, C, blocks of BM positions in a split
    ACC: tl.constexpr, INDEX: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    split, start, channel = parts.locate(channels, steps, INDEX, BM, BN)
    exists = channel < channels
    column = tl.arange(0, BM)[None, :]
    origin = parts.origin_of(x_ptr, channel, channels, positions, ACC, INDEX)

    # Each column keeps the moments of its own positions (Welford, 1962), of x less the origin.
    mean = tl.full((BN, BM), 0.0, ACC)
    m2 = tl.full((BN, BM), 0.0, ACC)
    for step in range(steps):
        position = start + step * BM + column
        valid = (position < positions) & exists
        x = tl.load(x_ptr + position * channels + channel, mask=valid, other=0.0).to(ACC) - origin
        distance = tl.where(valid, x - mean, 0.0)
        mean += distance * (tl.full((1, 1), 1.0, ACC) / (step + 1))
        m2 += distance * (x - mean)

    # Combine the columns, as `parts.moments` does the shares, and store.
    rest = positions - start - column
    count = tl.minimum(tl.maximum(grid.cdiv(rest, BM), 0), steps).to(ACC)
    rows = tl.minimum(positions - start, steps * BM).to(ACC)
    average = tl.sum(mean * count, axis=1, keep_dims=True) / rows
    distance = mean - average
    m2_share = tl.sum(m2 + count * distance * distance, axis=1, keep_dims=True)
    tl.store(mean_ptr + split * channels + channel, average, mask=exists)
    tl.store(m2_ptr + split * channels + channel, m2_share, mask=exists)


@triton.jit(do_not_specialize=parts.EXTENTS)
def _normalise_kernel(
    x_ptr, share_ptr, m2_ptr,  # [M, C], shares [splits, C] or None
    mean_ptr, var_ptr, weight_ptr, bias_ptr, residual_ptr, y_ptr,  # [C], written if there are shares; [C], [M, C]
    running_mean_ptr, running_var_ptr,  # [C], moved towards the batch's by the share `momentum`; or None
    momentum: tl.float64, positions, channels, steps,
    EPS: tl.constexpr, RELU: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    _, start, channel = parts.locate(channels, steps, INDEX, BM, BN)
    exists = channel < channels

    # What all positions of a channel share.
    if share_ptr is not None:
        mean, var = parts.moments(share_ptr, m2_ptr, channel, channels, positions, steps * BM, BS, INDEX)
        mean += parts.origin_of(x_ptr, channel, channels, positions, ACC, INDEX)
        first = exists & (channel * 0 + start == 0)  # a branch around the stores would fail in Triton 3.6
        tl.store(mean_ptr + channel, mean, mask=first)
        tl.store(var_ptr + channel, var, mask=first)
        if running_mean_ptr is not None:
            share = tl.full((1, 1), momentum, ACC)
            rest = tl.full((1, 1), 1.0 - momentum, ACC)
            unbiased = var * (tl.full((1, 1), 1.0, ACC) * positions / (positions - 1))
            parts.track(running_mean_ptr + channel, mean, share, rest, first)
            parts.track(running_var_ptr + channel, unbiased, share, rest, first)
    else:
        mean = tl.load(mean_ptr + channel, mask=exists, other=0.0).to(ACC)
        var = tl.load(var_ptr + channel, mask=exists, other=0.0).to(ACC)
    scale = 1.0 / tl.sqrt(var + EPS)
    if weight_ptr is not None:
        scale *= tl.load(weight_ptr + channel, mask=exists, other=0.0).to(ACC)

    # Normalise, add, rectify.
    for step in range(steps):
        position = start + step * BM + tl.arange(0, BM)[None, :]
        valid = (position < positions) & exists
        offset = position * channels + channel
        y = (tl.load(x_ptr + offset, mask=valid, other=0.0).to(ACC) - mean) * scale
        if bias_ptr is not None:
            y += tl.load(bias_ptr + channel, mask=exists, other=0.0).to(ACC)
        if residual_ptr is not None:
            y += tl.load(residual_ptr + offset, mask=valid, other=0.0).to(ACC)
        if RELU:
            y = tl.where(y < 0, 0.0, y)  # NaN stays, as in torch
        tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=parts.EXTENTS)
def _moments_kernel(
    x_ptr, share_ptr, m2_ptr, mean_ptr, var_ptr,  # [M, C], shares [splits, C], [C]
    positions, channels, steps,
    ACC: tl.constexpr, INDEX: tl.constexpr, BS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0) * BN + tl.arange(0, BN)[:, None]
    mean, var = parts.moments(share_ptr, m2_ptr, channel, channels, positions, steps * BM, BS, INDEX)
    origin = parts.origin_of(x_ptr, channel, channels, positions, ACC, INDEX)
    tl.store(mean_ptr + channel, mean.to(tl.float64) + origin.to(tl.float64), mask=channel < channels)
    tl.store(var_ptr + channel, var.to(tl.float64), mask=channel < channels)


class _Plan(NamedTuple):
    """The plan of a batch norm: how tensors are read, what is made, and the launches, `statistics` in training only."""

    dense: Dense
    y: Buffer
    shares: Buffer
    statistics: Launch | None
    normalise: Launch
    layout: torch.memory_format


class _MomentsPlan(NamedTuple):
    """The plan of a batch's moments: how x is read, what is made, and the launches."""

    dense: Dense
    shares: Buffer
    moments: Buffer
    statistics: Launch
    combine: Launch


def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    mean: Tensor | None, var: Tensor | None, momentum: float | None, eps: float, relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y [N, C, *grid], in x's layout, and the batch's mean and biased variance [C], in the type they are summed in.

    x and residual are [N, C, *grid], weight and bias [C]. A mean and a variance [C] are used in place of the batch's,
    and what is returned for them is empty; with a momentum they are running statistics, which move in place towards the
    batch's mean and unbiased variance by that share. Two launches where the batch's are taken, else one.
    """
    training = mean is None or momentum is not None
    batch_mean, batch_var = parts.per_channel(x, training), parts.per_channel(x, training)
    if momentum is None:
        used = (batch_mean, batch_var) if training else (mean, var)
        y = _batch_norm(x, weight, bias, residual, *used, None, None, 0.0, training, eps, relu)
    else:
        running = [_as_kernels_move(t) for t in (mean, var)]
        y = _batch_norm(
            x, weight, bias, residual, batch_mean, batch_var, *running, float(momentum), training, eps, relu
        )
        for t, moved in zip((mean, var), running, strict=True):
            if moved is not t:
                t.copy_(moved)
        torch.autograd.graph.increment_version((mean, var))
    return y, batch_mean, batch_var


def _as_kernels_move(running: Tensor) -> Tensor:
    """Return a running statistic, or where no kernel can move it a copy: strided, or bfloat16 that is interpreted."""
    if backend.INTERPRETING and running.dtype == torch.bfloat16:
        return running.float().contiguous()
    return running.contiguous()


@backend.upcasts_bfloat16
def _batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, mean: Tensor, var: Tensor,
    running_mean: Tensor | None, running_var: Tensor | None, momentum: float, training: bool, eps: float, relu: bool,
) -> Tensor:  # fmt: skip
    """y of `batch_norm`, which writes mean and var in training; they are no results, which may become bfloat16."""
    plan = _plan(x, weight, bias, residual, mean, var, running_mean, running_var, training, float(eps), relu)
    x, weight, bias, residual, mean, var = plan.dense(x, weight, bias, residual, mean, var)
    y, mean_shares, m2_shares = plan.y(), plan.shares(), plan.shares()
    if plan.statistics is not None:
        plan.statistics(x, mean_shares, m2_shares)
    plan.normalise(x, mean_shares, m2_shares, mean, var, weight, bias, residual, y, running_mean, running_var, momentum)
    return y.contiguous(memory_format=plan.layout)


@planned
def _plan(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, mean: Tensor, var: Tensor,
    running_mean: Tensor | None, running_var: Tensor | None, training: bool, eps: float, relu: bool,
) -> _Plan:  # fmt: skip
    programs, splits, extents, block, constants = parts.extents_of(x, training)
    layout = memory_format(x)
    return _Plan(
        Dense(x, weight, bias, residual, mean, var),
        buffer(tuple(x.shape), x, layout=layout),
        buffer((splits, x.shape[1]), x, accumulator_dtype(x)) if training else no_buffer,
        Launch(_statistics_kernel, programs, *extents, **constants) if training else None,
        Launch(_normalise_kernel, programs, *extents, EPS=eps, RELU=relu, BS=block, **constants),
        layout,
    )


@backend.upcasts_bfloat16
def batch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [C] of x [N, C, *grid] in float64, which moments of other batches can be added to.

    Two launches; the second reads shares of sums only.
    """
    plan = _plan_moments(x)
    (x,) = plan.dense(x)
    mean_shares, m2_shares = plan.shares(), plan.shares()
    mean, var = plan.moments(), plan.moments()
    plan.statistics(x, mean_shares, m2_shares)
    plan.combine(x, mean_shares, m2_shares, mean, var)
    return mean, var


@planned
def _plan_moments(x: Tensor) -> _MomentsPlan:
    programs, splits, extents, block, constants = parts.extents_of(x, True)
    channels = x.shape[1]
    return _MomentsPlan(
        Dense(x),
        buffer((splits, channels), x, accumulator_dtype(x)),
        buffer((channels,), x, torch.float64),
        Launch(_statistics_kernel, programs, *extents, **constants),
        Launch(_moments_kernel, (cdiv(channels, constants["BN"]),), *extents, BS=block, **constants),
    )
