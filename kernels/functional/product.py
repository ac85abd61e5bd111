"""Linear layers and matrix products: convolutions on a grid of no axes."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parameter import UninitializedTensorMixin

from kernels import backend
from kernels.checks import autocast, check_broadcast, check_floating, check_linear, check_residual
from kernels.functional.convolution import epilogue, run_convolution
from kernels.functional.direct import as_torch
from kernels.functional.traced import hold_size
from kernels.shape import Window, shape_of

if backend.AVAILABLE:
    from kernels import ops

PRODUCT = Window((), (), (), ())  # a window on a grid of no axes


def linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None,
    *, activation: str | None = None, residual: Tensor | None = None, maxout: int = 1,
) -> Tensor:  # fmt: skip
    """input [*, in] times weight [out, in] transposed, plus bias [out].

    Args:
        activation, residual, maxout: as of `conv2d`, on [*, out].

    Returns:
        [*, out / maxout].
    """
    if isinstance(weight, UninitializedTensorMixin):  # not even asked for its rank
        check_floating("linear", weight=weight)
    if isinstance(weight, Tensor) and weight.dim() == 1 and residual is None and maxout == 1:  # as torch takes it
        bias = bias.reshape(1) if isinstance(bias, Tensor) else bias
        return linear(input, weight.unsqueeze(0), bias, activation=activation).squeeze(-1)
    fused = epilogue("linear", activation, residual, maxout=maxout)
    if fused.plain and _is_layer(weight, bias):
        y = as_torch(F.linear, (input, weight, bias))
        if y is not None:
            return y.relu_() if fused.relu else y
    x, weight, bias, residual = autocast(input, weight, bias, residual)
    check_floating("linear", input=x, weight=weight, bias=bias, residual=residual)
    check_linear(x, weight, bias)
    front, rows = x.shape[:-1], x
    residual = check_residual("linear", residual, (*front, weight.shape[0]))
    if x.dim() != 2:
        rows = x.reshape(prod(front), x.shape[-1])
        residual = None if residual is None else residual.reshape(prod(front), weight.shape[0])
    shape = (rows.shape[0], weight.shape[0])
    y = run_convolution("linear", rows, weight, bias, residual, PRODUCT, shape, fused)
    return y if x.dim() == 2 else y.view(*front, y.shape[-1])


def _is_layer(weight: Tensor, bias: Tensor | None) -> bool:
    """Whether these are of a linear layer: torch takes others too, and broadcasts."""
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        return False
    return bias is None or (isinstance(bias, Tensor) and bias.shape == weight.shape[:1])


def matmul(input: Tensor, other: Tensor) -> Tensor:
    """The product of torch.matmul, by the operation of a convolutional layer that reads both factors as they lie.

    With rows of the reduced axis in a row of memory (n) or a column of it (t), the convolution multiplies n by t, its
    transpose n by n, and the weight gradient t by n. A batch of matrices is one grouped product.

    Args:
        input: [*, M, K] or [K].
        other: [*, K, N] or [K]; the leading axes of the two broadcast.

    Returns:
        [*, M, N], without M or N where a factor is a vector.
    """
    a, b = autocast(input, other)
    check_floating("matmul", input=a, other=b)
    left = a.unsqueeze(0) if a.dim() == 1 else a
    right = b.unsqueeze(1) if b.dim() == 1 else b
    if a.dim() == 0 or b.dim() == 0 or left.shape[-1] != right.shape[-2]:
        raise ValueError(
            f"matmul: the factors must be [*, M, K] and [*, K, N], got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    front = check_broadcast("matmul", a, b, left.shape[:-2], right.shape[:-2])
    if 0 in (*left.shape, *right.shape) or not backend.uses_triton(a):
        return torch.matmul(a, b)
    backend.refuse_forward_mode(a, b)
    y = _matrix(left.reshape(-1, left.shape[-1]), right) if right.dim() == 2 else _batch(left, right, front)
    y = y.reshape(*left.shape[:-1], right.shape[-1]) if right.dim() == 2 else y
    y = y.squeeze(-2) if a.dim() == 1 else y
    return (y.squeeze(-1) if b.dim() == 1 else y).contiguous()  # as torch's is


def _matrix(a: Tensor, b: Tensor) -> Tensor:
    """a [M, K] times b [K, N]."""
    if a.is_contiguous():
        if b.is_contiguous():
            return ops.convolution_transpose(a, b, None, None, PRODUCT, [], False)
        return ops.convolution(a, b.t(), None, None, PRODUCT, False)
    if b.is_contiguous():
        return ops.convolution_weight_gradient(b, a.t(), None, PRODUCT, False)[0]
    return ops.convolution_transpose(b.t(), a.t(), None, None, PRODUCT, [], False).t()


def _batch(left: Tensor, right: Tensor, front: torch.Size) -> Tensor:
    """left [*, M, K] times right [*, K, N], each matrix a group of channels."""
    left, right = (hold_size("matmul", t, t.dim()) for t in (left, right))
    (rows, depth), columns, front = shape_of(left)[-2:], shape_of(right)[-1], tuple(map(int, front))
    batch = prod(front)
    x = left.expand(*front, rows, depth).reshape(batch, rows, depth).transpose(0, 1).reshape(rows, batch * depth)
    weight = right.expand(*front, depth, columns).transpose(-2, -1).reshape(batch * columns, depth)
    y = ops.convolution(x, weight, None, None, Window((), (), (), (), groups=batch), False)
    return y.view(rows, batch, columns).transpose(0, 1).reshape(*front, rows, columns)
