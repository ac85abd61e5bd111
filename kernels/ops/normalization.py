"""The operators of batch normalisation."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels import norm, norm_gradient, reference
from kernels.ops.registry import Operator, operator
from kernels.shape import accumulator_dtype, fake


@operator
def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    mean: Tensor | None, var: Tensor | None, eps: float, relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """See `kernels.norm.batch_norm`, here without a momentum; mean and variance have no gradient of their own."""
    return norm.batch_norm(x, weight, bias, residual, mean, var, None, eps, relu)


@batch_norm.fake
def _(x, weight, bias, residual, mean, var, eps, relu):
    return fake(x, x.shape), _sum(x, mean is None), _sum(x, mean is None)


@partial(Operator, mutates=("running_mean", "running_var"))
def batch_norm_in_training(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    running_mean: Tensor, running_var: Tensor, momentum: float, eps: float, relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Normalise by the moments of the batch, towards which the running ones move."""
    return norm.batch_norm(x, weight, bias, residual, running_mean, running_var, momentum, eps, relu)


@batch_norm_in_training.fake
def _(x, weight, bias, residual, running_mean, running_var, momentum, eps, relu):
    return fake(x, x.shape), _sum(x, True), _sum(x, True)


@operator
def batch_norm_gradient(
    dy: Tensor, x: Tensor, weight: Tensor | None, y: Tensor | None, mean: Tensor, var: Tensor, eps: float,
    training: bool, parameters: bool, residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See `kernels.norm_gradient.batch_norm_gradient`."""
    return norm_gradient.batch_norm_gradient(dy, x, weight, y, mean, var, eps, training, parameters, residual)


@batch_norm_gradient.fake
def _(dy, x, weight, y, mean, var, eps, training, parameters, residual):
    like_x = fake(x, x.shape)
    dresidual = torch.empty_like(like_x) if residual else x.new_empty(0)
    return like_x, _sum(x, parameters), _sum(x, parameters), dresidual


def _sum(x: Tensor, present: bool) -> Tensor:
    return x.new_empty(x.shape[1] if present else 0, dtype=accumulator_dtype(x))


def _batch_norm_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, _, mean, var, *momentum, ctx.eps, relu = inputs
    y, *batch = output
    ctx.mark_non_differentiable(*batch)
    ctx.training = mean is None or bool(momentum)
    ctx.save_for_backward(x, weight, y if relu else None, *(batch if ctx.training else (mean, var)))
    ctx.dtypes = [None if t is None else t.dtype for t in (weight, bias)]


def _batch_norm_backward(ctx: Any, dy: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    x, weight, y, mean, var = ctx.saved_tensors
    _, needs_weight, needs_bias, needs_residual, *rest = ctx.needs_input_grad
    parameters, residual = needs_weight or needs_bias, needs_residual and y is not None
    dx, dweight, dbias, dresidual = batch_norm_gradient(
        dy, x, weight, y, mean, var, ctx.eps, ctx.training, parameters, residual
    )
    dweight, dbias = (
        d.to(dtype) if needed else None
        for d, dtype, needed in zip((dweight, dbias), ctx.dtypes, (needs_weight, needs_bias), strict=True)
    )
    dresidual = dresidual if residual else dy if needs_residual else None  # dy itself where nothing masks it
    return dx, dweight, dbias, dresidual, *[None] * len(rest)


batch_norm.differentiate(_batch_norm_backward, _batch_norm_context)
batch_norm_in_training.differentiate(_batch_norm_backward, _batch_norm_context)


def _gradient_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    dy, x, weight, y, mean, var, *ctx.flags = inputs
    ctx.save_for_backward(dy, x, weight, y, mean, var)


def _gradient_backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    """By differentiating the twin: of use to gradient penalties and the like, not worth kernels of its own."""
    dy, x, weight, y, *running = ctx.saved_tensors
    training = ctx.flags[1]

    def gradient(dy: Tensor, x: Tensor, *weight: Tensor) -> tuple[Tensor, ...]:
        statistics = reference.batch_moments(x) if training else running  # of a batch: they change with x
        return reference.batch_norm_gradient(dy, x, *(weight or (None,)), y, *statistics, *ctx.flags)

    inputs = (dy, x) if weight is None else (dy, x, weight)
    outputs, pull_back = torch.func.vjp(gradient, *inputs)
    given = (torch.zeros_like(o) if g is None else g for g, o in zip(gradients, outputs, strict=True))
    ddy, dx, *dweight = pull_back(tuple(given))
    return ddy, dx, *(dweight or (None,)), *[None] * (3 + len(ctx.flags))


batch_norm_gradient.differentiate(_gradient_backward, _gradient_context)
