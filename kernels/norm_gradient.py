"""The gradient of batch normalisation, its sums and its terms: two Triton kernels; see kernels/norm.py."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import backend
from kernels import norm_parts as parts
from kernels.plan import Buffer, Dense, Launch, buffer, no_buffer, planned
from kernels.shape import accumulator_dtype, memory_format


@triton.jit(do_not_specialize=parts.EXTENTS)
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


@triton.jit(do_not_specialize=parts.EXTENTS)
def _gradient_kernel(
    dy_ptr, x_ptr, y_ptr, mean_ptr, var_ptr, weight_ptr,  # [M, C], the same, [M, C] or None, [C], [C] or None
    dweight_share_ptr, dbias_share_ptr,  # [splits, C] or None
    dx_ptr, dresidual_ptr, dweight_ptr, dbias_ptr,  # [M, C], [M, C] or None, [C], written if there are shares
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
    elif TRAINING:
        dweight = tl.load(dweight_ptr + channel, mask=exists, other=0.0)
        dbias = tl.load(dbias_ptr + channel, mask=exists, other=0.0)

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


class _GradientPlan(NamedTuple):
    """The plan of its gradient: how tensors are read, what is made, and the launches, `sums` only where it has any."""

    dense: Dense
    dx: Buffer
    dresidual: Buffer
    shares: Buffer
    sums: Launch | None
    propagate: Launch
    layout: torch.memory_format


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
    dweight, dbias = (parts.per_channel(x, training or parameters) for _ in range(2))
    summed = dweight.numel() > 0
    dx, dresidual = _propagate(dy, x, weight, y, mean, var, dweight, dbias, eps, training, residual, summed)
    if not parameters:
        dweight, dbias = (parts.per_channel(x, False) for _ in range(2))
    return dx, dweight, dbias, dresidual


@backend.upcasts_bfloat16
def batch_norm_sums(
    dy: Tensor, x: Tensor, y: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """dweight and dbias [C] of `batch_norm_gradient` in float64, which those of other batches can be added to."""
    plan = _plan_gradient(dy, x, None, y, mean, var, float(eps), True, False, True)
    dy, x, _, y, mean, var = plan.dense(dy, x, None, y, mean, var)
    dweight_shares, dbias_shares = plan.shares(), plan.shares()
    plan.sums(dy, x, y, mean, var, dweight_shares, dbias_shares)
    return dweight_shares.sum(0, dtype=torch.float64), dbias_shares.sum(0, dtype=torch.float64)


def batch_norm_propagate(
    dy: Tensor, x: Tensor, weight: Tensor | None, y: Tensor | None, mean: Tensor, var: Tensor,
    dweight: Tensor, dbias: Tensor, eps: float, residual: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dx and dresidual of `batch_norm_gradient` in training, by sums dweight and dbias [C] over as many positions."""
    dweight, dbias = (d.to(accumulator_dtype(x)).contiguous() for d in (dweight, dbias))
    return _propagate(dy, x, weight, y, mean, var, dweight, dbias, eps, True, residual, False)


@backend.upcasts_bfloat16
def _propagate(
    dy: Tensor, x: Tensor, weight: Tensor | None, y: Tensor | None, mean: Tensor, var: Tensor,
    dweight: Tensor, dbias: Tensor, eps: float, training: bool, residual: bool, summed: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dx and dresidual of `batch_norm_gradient`; writes dweight and dbias if `summed`, else reads them in training."""
    plan = _plan_gradient(dy, x, weight, y, mean, var, float(eps), training, residual, summed)
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
    eps: float, training: bool, residual: bool, summed: bool,
) -> _GradientPlan:  # fmt: skip
    programs, splits, extents, block, constants = parts.extents_of(x, summed)
    layout = memory_format(x)
    return _GradientPlan(
        Dense(dy, x, weight, y, mean, var),
        buffer(tuple(x.shape), x, layout=layout),
        buffer(tuple(x.shape), x, layout=layout) if residual else buffer((0,), x),
        buffer((splits, x.shape[1]), x, accumulator_dtype(x)) if summed else no_buffer,
        Launch(_gradient_sums_kernel, programs, *extents, EPS=eps, **constants) if summed else None,
        Launch(_gradient_kernel, programs, *extents, TRAINING=training, EPS=eps, BS=block, **constants),
        layout,
    )
