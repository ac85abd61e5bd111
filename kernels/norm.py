"""Batch normalisation with residual addition and ReLU, and its gradient: two Triton kernels each.

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

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import backend, grid, tuning
from kernels import norm_parts as parts
from kernels.plan import Buffer, Dense, Launch, buffer, no_buffer, planned
from kernels.shape import accumulator_dtype, cdiv, memory_format

EXTENTS = ("positions", "steps")  # no kernel is compiled anew for theirs


@triton.jit(do_not_specialize=EXTENTS)
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


@triton.jit(do_not_specialize=EXTENTS)
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


@triton.jit(do_not_specialize=EXTENTS)
def _gradient_sums_kernel(
    dy_ptr, x_ptr, y_ptr,  # [M, C], the same, the ReLU's output or None
    mean_ptr, var_ptr, dweight_ptr, dbias_ptr,  # [C], shares [splits, C] of both
    positions, channels, steps,
    EPS: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    split, start, channel = parts.locate(channels, steps, INDEX, BM, BN)
    exists = channel < channels
    mean = tl.load(mean_ptr + channel, mask=exists, other=0.0).to(ACC)
    var = tl.load(var_ptr + channel, mask=exists, other=0.0).to(ACC)

    # Sum by column.
    dweight = tl.full((BN, BM), 0.0, ACC)
    dbias = tl.full((BN, BM), 0.0, ACC)
    for step in range(steps):
        position = start + step * BM + tl.arange(0, BM)[None, :]
        valid = (position < positions) & exists
        offset = position * channels + channel
        dy = parts.relu_backward(dy_ptr, y_ptr, offset, valid, ACC)
        x = tl.load(x_ptr + offset, mask=valid, other=0.0).to(ACC)
        dweight += dy * (x - mean)
        dbias += dy

    # Combine the columns and store.
    share = split * channels + channel
    dweight_share = tl.sum(dweight, axis=1, keep_dims=True) / tl.sqrt(var + EPS)
    tl.store(dweight_ptr + share, dweight_share, mask=exists)
    tl.store(dbias_ptr + share, tl.sum(dbias, axis=1, keep_dims=True), mask=exists)


@triton.jit(do_not_specialize=EXTENTS)
def _gradient_kernel(
    dy_ptr, x_ptr, y_ptr, mean_ptr, var_ptr, weight_ptr,  # [M, C], the same, [M, C] or None, [C], [C] or None
    dweight_share_ptr, dbias_share_ptr,  # [splits, C] or None
    dx_ptr, dresidual_ptr, dweight_ptr, dbias_ptr,  # [M, C], [M, C] or None, [C] if there are shares
    positions, channels, steps,
    TRAINING: tl.constexpr, EPS: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    _, start, channel = parts.locate(channels, steps, INDEX, BM, BN)
    exists = channel < channels

    # What all positions of a channel share.
    mean = tl.load(mean_ptr + channel, mask=exists, other=0.0).to(ACC)
    rstd = 1.0 / tl.sqrt(tl.load(var_ptr + channel, mask=exists, other=0.0).to(ACC) + EPS)
    scale = rstd
    if weight_ptr is not None:
        scale = rstd * tl.load(weight_ptr + channel, mask=exists, other=0.0).to(ACC)
    if dweight_share_ptr is not None:
        dweight = parts.total(dweight_share_ptr, channel, channels, positions, steps * BM, BS, INDEX)
        dbias = parts.total(dbias_share_ptr, channel, channels, positions, steps * BM, BS, INDEX)
        first = exists & (channel * 0 + start == 0)
        tl.store(dweight_ptr + channel, dweight, mask=first)
        tl.store(dbias_ptr + channel, dbias, mask=first)

    # Propagate.
    for step in range(steps):
        position = start + step * BM + tl.arange(0, BM)[None, :]
        valid = (position < positions) & exists
        offset = position * channels + channel
        dy = parts.relu_backward(dy_ptr, y_ptr, offset, valid, ACC)
        if dresidual_ptr is not None:
            tl.store(dresidual_ptr + offset, dy.to(dresidual_ptr.dtype.element_ty), mask=valid)
        if TRAINING:
            xhat = (tl.load(x_ptr + offset, mask=valid, other=0.0).to(ACC) - mean) * rstd
            dy -= (dbias + xhat * dweight) / positions
        tl.store(dx_ptr + offset, (dy * scale).to(dx_ptr.dtype.element_ty), mask=valid)


class _Plan(NamedTuple):
    """The plan of a batch norm: how tensors are read, what is made, and the launches, `statistics` in training only."""

    dense: Dense
    y: Buffer
    shares: Buffer
    statistics: Launch | None
    normalise: Launch
    layout: torch.memory_format


class _GradientPlan(NamedTuple):
    """The plan of its gradient: how tensors are read, what is made, and the launches, `sums` only where it has any."""

    dense: Dense
    dx: Buffer
    dresidual: Buffer
    shares: Buffer
    sums: Launch | None
    propagate: Launch
    layout: torch.memory_format


class _Extents(NamedTuple):
    """The way of kernels through x: programs, splits, extents (positions, channels, steps), and constants."""

    programs: tuple[int]
    splits: int
    extents: tuple[int, int, int]
    block: int
    constants: dict[str, Any]


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
    batch_mean, batch_var = _per_channel(x, training), _per_channel(x, training)
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


def _per_channel(x: Tensor, present: bool = True) -> Tensor:
    """Return an uninitialised [C] of the type that x is summed in; empty unless `present`."""
    return torch.empty(x.shape[1] if present else 0, dtype=accumulator_dtype(x), device=x.device)


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
    programs, splits, extents, block, constants = _extents(x, training)
    return _Plan(
        Dense(x, weight, bias, residual, mean, var),
        buffer(tuple(x.shape), x),
        buffer((splits, x.shape[1]), x, accumulator_dtype(x)) if training else no_buffer,
        Launch(_statistics_kernel, programs, *extents, **constants) if training else None,
        Launch(_normalise_kernel, programs, *extents, EPS=eps, RELU=relu, BS=block, **constants),
        memory_format(x),
    )


def batch_norm_gradient(
    dy: Tensor, x: Tensor, weight: Tensor | None, y: Tensor | None, mean: Tensor, var: Tensor, eps: float,
    training: bool, parameters: bool, residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dx, dweight [C], dbias [C] and dresidual of `batch_norm`; dy counts only where y > 0, if given.

    Args:
        mean, var: [C], what x was normalised by: the batch's in training.
        parameters: whether to give dweight and dbias, in the type they are summed in; else they are empty.
        residual: whether to give the residual's gradient, dy where y > 0; else it is empty.

    Two launches, or one where neither `training` nor `parameters` needs the sums.
    """
    dweight, dbias = (_per_channel(x, training or parameters) for _ in range(2))
    dx, dresidual = _batch_norm_gradient(dy, x, weight, y, mean, var, dweight, dbias, eps, training, residual)
    if not parameters:
        dweight, dbias = (_per_channel(x, False) for _ in range(2))
    return dx, dweight, dbias, dresidual


@backend.upcasts_bfloat16
def _batch_norm_gradient(
    dy: Tensor, x: Tensor, weight: Tensor | None, y: Tensor | None, mean: Tensor, var: Tensor,
    dweight: Tensor, dbias: Tensor, eps: float, training: bool, residual: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dx and dresidual of `batch_norm_gradient`, which writes dweight and dbias where they are not empty."""
    plan = _plan_gradient(dy, x, weight, y, mean, var, dweight.numel() > 0, float(eps), training, residual)
    dy, x, weight, y, mean, var = plan.dense(dy, x, weight, y, mean, var)
    dx, dresidual, dweight_shares, dbias_shares = plan.dx(), plan.dresidual(), plan.shares(), plan.shares()
    if plan.sums is not None:
        plan.sums(dy, x, y, mean, var, dweight_shares, dbias_shares)
    plan.propagate(
        dy, x, y, mean, var, weight, dweight_shares, dbias_shares, dx, dresidual if residual else None, dweight, dbias
    )
    layout = plan.layout
    return dx.contiguous(memory_format=layout), dresidual.contiguous(memory_format=layout) if residual else dresidual


@planned
def _plan_gradient(
    dy: Tensor, x: Tensor, weight: Tensor | None, y: Tensor | None, mean: Tensor, var: Tensor,
    summed: bool, eps: float, training: bool, residual: bool,
) -> _GradientPlan:  # fmt: skip
    programs, splits, extents, block, constants = _extents(x, summed)
    return _GradientPlan(
        Dense(dy, x, weight, y, mean, var),
        buffer(tuple(x.shape), x),
        buffer(tuple(x.shape) if residual else (0,), x),
        buffer((splits, x.shape[1]), x, accumulator_dtype(x)) if summed else no_buffer,
        Launch(_gradient_sums_kernel, programs, *extents, EPS=eps, **constants) if summed else None,
        Launch(_gradient_kernel, programs, *extents, TRAINING=training, EPS=eps, BS=block, **constants),
        memory_format(x),
    )


def _extents(x: Tensor, summed: bool) -> _Extents:
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
    return _Extents((splits * cdiv(channels, tile.n),), splits, (positions, channels, steps), block, constants)
