"""Who is connected with whom: kernels that take turns, kernels of one position each, chosen pairs of channels.

(Deep Learning, section 9.5, figures 9.14 to 9.16.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.checks import IntOrTuple, autocast, batched, check_floating, check_tensor, make_window
from kernels.functional.convolution import convolve, epilogue
from kernels.shape import shape_of


def tiled_conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None,
    stride: IntOrTuple = 1, padding: IntOrTuple | str = 0, dilation: IntOrTuple = 1, groups: int = 1,
    *, activation: str | None = None,
) -> Tensor:  # fmt: skip
    """Convolution with TH x TW kernels that take turns: output position (p, q) has kernel (p mod TH, q mod TW).

    One kernel is `conv2d`, one for each output position is `local_conv2d` (Ngiam et al., "Tiled convolutional neural
    networks", 2010; Deep Learning, eq. 9.10).

    Args:
        input: [N, C, H, W] or [C, H, W].
        weight: [TH, TW, O, C/groups, KH, KW].
        bias: [TH, TW, O], tiled as the kernels are.
        stride, padding, dilation, groups, activation: as of `conv2d`.

    Returns:
        [N, O, P, Q] or [O, P, Q].
    """
    return _tiled("tiled_conv2d", input, weight, bias, stride, padding, dilation, groups, activation)


def local_conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None,
    stride: IntOrTuple = 1, padding: IntOrTuple | str = 0, dilation: IntOrTuple = 1, groups: int = 1,
    *, activation: str | None = None,
) -> Tensor:  # fmt: skip
    """Local connections that share no parameter: each output position has a kernel of its own (Deep Learning, eq. 9.9).

    Args:
        input: [N, C, H, W] or [C, H, W].
        weight: [P, Q, O, C/groups, KH, KW], P x Q as large as the output.
        bias: [P, Q, O].
        stride, padding, dilation, groups, activation: as of `conv2d`.

    Returns:
        [N, O, P, Q] or [O, P, Q].
    """
    op = "local_conv2d"
    input, weight, bias = autocast(input, weight, bias)
    check_floating(op, input=input, weight=weight)
    x = batched(op, input, 2)
    window = make_window(op, weight.shape[4:], stride, padding, dilation, groups) if weight.dim() == 6 else None
    if window is not None and shape_of(weight)[:2] != window.output_size(shape_of(x)[2:]):
        expected = window.output_size(shape_of(x)[2:])
        raise ValueError(
            f"{op}: weight must have a kernel for each of the {expected} output positions, got {tuple(weight.shape)}"
        )
    return _tiled(op, input, weight, bias, stride, padding, dilation, groups, activation)


def table_conv2d(
    input: Tensor, weight: Tensor, table: Tensor, bias: Tensor | None = None,
    stride: IntOrTuple = 1, padding: IntOrTuple | str = 0, dilation: IntOrTuple = 1,
    *, activation: str | None = None,
) -> Tensor:  # fmt: skip
    """Convolution in which each output channel sees the input channels that a table names, as in LeNet-5's C3.

    It is run as a dense convolution whose absent connections are zero (LeCun et al., "Gradient-based learning applied
    to document recognition", 1998, table I; Deep Learning, figure 9.15).

    Args:
        input: [N, C, H, W] or [C, H, W].
        weight: [K, KH, KW], one kernel for each of the K connections, in the order of the table's rows.
        table: [O, C], bool, K of them true. It is read at each call, which torch.compile cannot do: use TableConv2d.
        bias: [O].
        stride, padding, dilation, activation: as of `conv2d`.

    Returns:
        [N, O, P, Q] or [O, P, Q].
    """
    index = check_table("table_conv2d", table)
    dense = connect("table_conv2d", weight, index, table.shape)
    fused = epilogue("table_conv2d", activation)
    return convolve("table_conv2d", 2, input, dense, bias, stride, padding, dilation, 1, fused)


def check_table(op: str, table: Tensor) -> Tensor:
    """Where a table [O, C] says true, as int64 indices [K] into the flattened table; else TypeError or ValueError."""
    check_tensor(op, "table", table)
    if table.dtype != torch.bool or table.dim() != 2:
        raise ValueError(f"{op}: table must be [O, C] of bool, got {tuple(table.shape)} of {table.dtype}")
    return table.flatten().nonzero().squeeze(1)


def connect(op: str, weight: Tensor, index: Tensor, shape: tuple[int, int]) -> Tensor:
    """Kernels [K, KH, KW] of K connections, at `index` of a table of `shape` (O, C) -> dense weight [O, C, KH, KW]."""
    check_floating(op, weight=weight)
    if weight.dim() != 3 or weight.shape[0] != index.shape[0]:
        expected = f"[{index.shape[0]}, KH, KW], a kernel for each connection"
        raise ValueError(f"{op}: weight must be {expected}, got {tuple(weight.shape)}")
    dense = weight.new_zeros(shape[0] * shape[1], *weight.shape[1:])
    return dense.index_copy(0, index.to(weight.device), weight).unflatten(0, tuple(shape))


def _tiled(
    op: str, input: Tensor, weight: Tensor, bias: Tensor | None,
    stride: IntOrTuple, padding: IntOrTuple | str, dilation: IntOrTuple, groups: int, activation: str | None,
) -> Tensor:  # fmt: skip
    input, weight, bias = autocast(input, weight, bias)
    check_floating(op, input=input, weight=weight, bias=bias)
    if weight.dim() != 6 or 0 in weight.shape[:2]:
        raise ValueError(f"{op}: weight must be [TH, TW, O, C/groups, KH, KW], got {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:3]:
        raise ValueError(f"{op}: bias must have shape {tuple(weight.shape[:3])}, got {tuple(bias.shape)}")
    window = make_window(op, weight.shape[4:], stride, padding, dilation, groups)
    size = window.output_size(shape_of(batched(op, input, 2))[2:])
    th, tw = (max(1, min(turns, extent)) for turns, extent in zip(shape_of(weight)[:2], size, strict=True))
    weight = weight[:th, :tw].flatten(0, 2)  # a kernel whose turn never comes is not used
    bias = None if bias is None else bias[:th, :tw].flatten()
    fused = epilogue(op, activation)
    return convolve(op, 2, input, weight, bias, stride, padding, dilation, groups, fused, (th, tw))
