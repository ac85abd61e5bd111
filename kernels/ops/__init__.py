"""The registry: every operation as a torch.library operator, with its fake, its gradient and its FLOP formula.

A schema knows no dataclasses, so a window travels as the integers of `Window.flat`. Gradients are operators of their
own, called only where they are needed, and themselves differentiable. Autocast casts in `kernels.functional`, once, to
the type that the user chose; an operator runs in the type it is given.
"""

from kernels.ops.convolution import (
    convolution,
    convolution_max,
    convolution_transpose,
    convolution_weight_gradient,
)
from kernels.ops.normalization import batch_norm, batch_norm_gradient, batch_norm_in_training
from kernels.ops.pooling import average_pool, average_pool_gradient, max_pool, max_pool_gradient

__all__ = [
    "batch_norm",
    "batch_norm_gradient",
    "batch_norm_in_training",
    "average_pool",
    "average_pool_gradient",
    "convolution",
    "convolution_max",
    "convolution_transpose",
    "convolution_weight_gradient",
    "max_pool",
    "max_pool_gradient",
]
