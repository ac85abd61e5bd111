"""Normalisation, named as in torch.nn.functional."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from kernels import backend, reference
from kernels.checks import check_activation, check_batch_norm, check_residual
from kernels.functional.synchronisation import normalise_over_processes

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup  # not every build of torch has it

if backend.AVAILABLE:
    from kernels import ops


def batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
    weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False,
    momentum: float | Tensor = 0.1, eps: float = 1e-5,
    *, residual: Tensor | None = None, activation: str | None = None, process_group: ProcessGroup | None = None,
) -> Tensor:  # fmt: skip
    """Batch normalisation (Ioffe and Szegedy, 2015), with the addition of a residual and ReLU fused into it.

    Args:
        input: [N, C] or [N, C, *grid] of up to three axes, in any memory layout; a channels_last one is kept.
        running_mean, running_var: [C]; in training they are updated in place, or None; else they are used.
        weight, bias: [C] or None. These and the running ones have one dtype, the input's or float32.
        training: normalise by the mean and the biased variance of the input.
        momentum: share of the batch in the running mean and (unbiased) variance; a tensor of no axes keeps it on a GPU.
        eps: added to the variance; > 0 in training, else >= 0.
        residual: of the shape (or broadcast to it) and dtype of the input, added after weight and bias.
        activation: None or "relu", applied last.
        process_group: in training, take the moments of the batches of all these processes, each of which must call.

    Returns:
        Of the shape and dtype of the input. An empty input leaves the running statistics as they are.
    """
    relu = check_activation("batch_norm", activation) == "relu"
    alone = process_group is None or not training
    check_batch_norm(input, running_mean, running_var, weight, bias, residual, training, momentum, eps, alone)
    residual = check_residual("batch_norm", residual, input.shape)
    if not alone and input.shape[1]:
        backend.refuse_forward_mode(input, weight, bias, residual)
        y, mean, var, positions = normalise_over_processes(input, weight, bias, residual, eps, relu, process_group)
        if running_mean is not None:
            reference.track_moments(running_mean, running_var, mean, var, positions, momentum * (positions > 0))
        return y
    if not (backend.uses_triton(input) and input.numel()):
        y = reference.batch_norm_as_torch(input, running_mean, running_var, weight, bias, training, momentum, eps)
        y = y if residual is None else y + residual
        return y.relu_() if relu else y
    backend.refuse_forward_mode(input, weight, bias, residual)
    if not training:
        return ops.batch_norm(input, weight, bias, residual, running_mean, running_var, eps, relu)[0]
    if running_mean is None or isinstance(momentum, Tensor):  # which the kernel does not read from memory
        y, mean, var = ops.batch_norm(input, weight, bias, residual, None, None, eps, relu)
        if running_mean is not None:
            positions = input.numel() // input.shape[1]
            reference.track_moments(running_mean, running_var, mean, var, positions, momentum)
        return y
    return ops.batch_norm_in_training(
        input, weight, bias, residual, running_mean, running_var, float(momentum), eps, relu
    )[0]
