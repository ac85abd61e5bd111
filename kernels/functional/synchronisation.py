"""Batch normalisation by the moments of all processes of a distributed training, as torch.nn.SyncBatchNorm's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

from kernels import backend, reference
from kernels.shape import accumulator_dtype

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup  # not every build of torch has it

if backend.AVAILABLE:
    from kernels import norm, norm_gradient


@torch.compiler.disable
def normalise_over_processes(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    eps: float, relu: bool, group: ProcessGroup,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Normalise by the moments of the batches of all processes of a group, each weighted by its number of positions.

    Returns:
        relu(batch_norm(input) + residual), mean, biased variance and number of positions [C], of float64.
        The gradients of weight and bias are those of this process, for DistributedDataParallel to average.
    """
    return _SyncBatchNorm.apply(input, weight, bias, residual, eps, relu, group)


class _SyncBatchNorm(torch.autograd.Function):
    """Batch norm whose sums over positions are added up over processes between its kernels, also in its gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
        eps: float, relu: bool, group: ProcessGroup,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        on_triton = backend.uses_triton(x) and x.numel() > 0
        moments = mean, var, positions = _moments_of_all(x, on_triton, group)
        mean, var = (m.to(accumulator_dtype(x)) for m in (mean, var))
        twin = norm if on_triton else reference
        y, *_ = twin.batch_norm(x, weight, bias, residual, mean, var, None, eps, relu)
        ctx.mark_non_differentiable(*moments)
        ctx.save_for_backward(x, weight, y if relu else None, mean, var, positions)
        ctx.gradient, ctx.eps, ctx.group = norm_gradient if on_triton else reference, eps, group
        ctx.dtypes = [None if t is None else t.dtype for t in (weight, bias)]
        return y, *moments

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y, mean, var, positions = ctx.saved_tensors
        needs_input, *needs_parameters, needs_residual = ctx.needs_input_grad[:4]
        sums = torch.stack(ctx.gradient.batch_norm_sums(dy, x, y, mean, var, ctx.eps)).double()
        parameters = [
            d.to(dtype) if needed else None
            for d, dtype, needed in zip(sums.clone(), ctx.dtypes, needs_parameters, strict=True)
        ]
        dx = dresidual = None
        if needs_input:
            distributed.all_reduce(sums, group=ctx.group)
        if needs_input or needs_residual:
            sums *= x.numel() // x.shape[1] / positions  # this process's share
            dx, dresidual = ctx.gradient.batch_norm_propagate(
                dy, x, weight, y, mean, var, *sums, ctx.eps, needs_residual
            )
        return dx if needs_input else None, *parameters, dresidual if needs_residual else None, None, None, None


def _moments_of_all(x: Tensor, on_triton: bool, group: ProcessGroup) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and number of positions [C] of the batches of all processes, of float64.

    They are combined as `kernels.norm_parts.moments` combines those of splits.
    """
    mine = x.new_zeros((3, x.shape[1]), dtype=torch.float64)
    if x.numel():
        mine[0], mine[1] = norm.batch_moments(x) if on_triton else reference.batch_moments(x.double())
        mine[2] = x.numel() // x.shape[1]
    everyones = mine.new_empty((distributed.get_world_size(group), *mine.shape))
    distributed.all_gather(list(everyones), mine, group)
    means, variances, counts = everyones.unbind(1)
    positions = counts.sum(0)
    divisor = positions.clamp(min=1)  # all batches may be empty
    mean = (means * counts).sum(0) / divisor
    var = ((variances + (means - mean).square()) * counts).sum(0) / divisor
    return mean, var, positions
