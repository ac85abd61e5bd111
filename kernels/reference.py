"""The PyTorch twin of every operation, with the same arguments: the torch backend, and the truth of the tests."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.shape import Window, accumulator_dtype, memory_format, tap_dtype

CONVOLUTIONS = (None, F.conv1d, F.conv2d, F.conv3d)
TRANSPOSES = (None, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
MAX_POOLS = (None, F.max_pool1d, F.max_pool2d, F.max_pool3d)
_ADAPTIVE_MAX_POOLS = (None, F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)
AVERAGE_POOLS = (None, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
_ADAPTIVE_AVERAGE_POOLS = (None, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, window: Window, relu: bool
) -> Tensor:
    """See `kernels.conv.forward`."""
    if window.axes == 0:
        y = F.linear(x, weight, bias)
    elif window.tiles > 1:
        y = _tiled(x, weight, bias, window)
    else:
        padding = tuple(before for before, _ in window.padding)
        if not window.symmetric:
            x, padding = F.pad(x, window.flat_padding_from_last), (0,) * window.axes
        y = CONVOLUTIONS[window.axes](x, weight, bias, window.stride, padding, window.dilation, window.groups)
    if residual is not None:
        y = y + residual
    return y.relu_() if relu else y


def _tiled(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    """Every window of x as a tensor of its own, times the kernel whose turn it is."""
    axes, size = window.axes, window.output_size(x.shape[2:])
    x = F.pad(x, window.flat_padding_from_last)
    for axis, (extent, step) in enumerate(zip(window.kernel, window.dilation, strict=True)):
        x = x.unfold(2 + axis, step * (extent - 1) + 1, window.stride[axis])
    x = x[(..., *(slice(None, None, step) for step in window.dilation))]  # [N, G*C, *size, *kernel]
    ragged = [-extent % turns for extent, turns in zip(size, window.tile, strict=True)]
    x = F.pad(x, [0] * (2 * axes) + [side for after in reversed(ragged) for side in (0, after)])
    split = [side for extent, turns in zip(size, window.tile, strict=True) for side in (-(-extent // turns), turns)]
    channels, outputs = weight.shape[1], weight.shape[0] // (window.tiles * window.groups)
    x = x.reshape(len(x), window.groups, channels, *split, *window.kernel)
    weight = weight.reshape(*window.tile, window.groups, outputs, channels, *window.kernel)
    taps, turns, steps = "uvw"[:axes], "ijk"[:axes], "abd"[:axes]
    places = "".join(step + turn for step, turn in zip(steps, turns, strict=True))
    y = torch.einsum(f"ngc{places}{taps},{turns}goc{taps}->ngo{places}", x, weight)
    if bias is not None:
        bias = bias.reshape(*window.tile, window.groups, outputs).movedim((-2, -1), (0, 1))  # [G, O, *tile]
        y = y + bias.reshape(*bias.shape[:2], *(side for turns in window.tile for side in (1, turns)))
    y = y.reshape(len(x), window.groups * outputs, *(a * b for a, b in zip(split[::2], split[1::2], strict=True)))
    return y[(..., *(slice(extent) for extent in size))].contiguous()


def forward_max(
    x: Tensor, weight: Tensor, bias: Tensor | None, window: Window, relu: bool,
    pool: Window, size: Sequence[int], maxout: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `kernels.conv.forward_max`, of which this does either, pooling or maxout."""
    y = forward(x, weight, bias, None, window, relu)
    if maxout > 1:
        y, winners = y.unflatten(1, (-1, maxout)).max(2)
        return y, winners.to(tap_dtype(maxout))
    return max_pool(y, pool, size)


def transpose(
    dy: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor | None, window: Window, size: Sequence[int], relu: bool
) -> Tensor:
    """See `kernels.conv.transpose`."""
    dy = masked(dy, y)
    if window.axes == 0:
        dx = dy @ weight
    elif window.tiles > 1:
        x = dy.new_zeros((len(dy), weight.shape[1] * window.groups, *size))
        dx = torch.func.vjp(lambda x: _tiled(x, weight, None, window), x)[1](dy)[0]
    else:
        full = Window(window.kernel, window.stride, ((0, 0),) * window.axes, window.dilation)
        reached = full.input_size(dy.shape[2:], (0,) * window.axes)
        dx = TRANSPOSES[window.axes](dy, weight, None, window.stride, 0, 0, window.groups, window.dilation)
        ends = [
            (-pad[0], extent + pad[0] - end) for pad, extent, end in zip(window.padding, size, reached, strict=True)
        ]
        dx = F.pad(dx, [side for pair in reversed(ends) for side in pair])
    if bias is not None:
        dx = dx + bias.view(-1, *[1] * window.axes)
    return dx.relu() if relu else dx


def weight_gradient(x: Tensor, dy: Tensor, y: Tensor | None, window: Window, bias: bool) -> tuple[Tensor, Tensor]:
    """See `kernels.conv.weight_gradient`."""
    dy = masked(dy, y)
    outputs = window.tiles * dy.shape[1]
    weight, b = x.new_zeros((outputs, x.shape[1] // window.groups, *window.kernel)), x.new_zeros(outputs)
    _, pull_back = torch.func.vjp(
        lambda weight, b: forward(x, weight, b if bias else None, None, window, False), weight, b
    )
    dw, db = pull_back(dy)
    return dw, db if bias else db.new_empty(0)


def max_pool(x: Tensor, window: Window, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """See `kernels.pool.max_pool`."""
    y, index = max_pool_as_torch(x, window, size)
    tap = torch.zeros_like(index)
    for axis, extent in reversed(list(enumerate(x.shape[2:]))):
        start = _starts(window, axis, extent, size, x.device)
        tap += (index % extent - start) // window.dilation[axis] * prod(window.kernel[axis + 1 :])
        index = index // extent
    return y, tap.to(tap_dtype(window.taps))


def max_pool_gradient(dy: Tensor, taps: Tensor, window: Window, size: Sequence[int]) -> Tensor:
    """See `kernels.pool.max_pool_gradient`."""
    index = indices(taps, window, size)
    dx = dy.new_zeros((*dy.shape[:2], *size))
    return dx.flatten(2).scatter_add(2, index.flatten(2), dy.flatten(2)).view_as(dx)


def max_pool_as_torch(
    x: Tensor, window: Window, size: Sequence[int], return_indices: bool = True
) -> Tensor | tuple[Tensor, Tensor]:
    """torch's own max pooling, and if asked for the index of each maximum in its flattened plane of x."""
    if window.adaptive:
        return _ADAPTIVE_MAX_POOLS[window.axes](x, size, return_indices=return_indices)
    padding = tuple(before for before, _ in window.padding)
    ceil_mode = window.output_size(x.shape[2:]) != tuple(size)
    pool = MAX_POOLS[window.axes]
    return pool(x, window.kernel, window.stride, padding, window.dilation, ceil_mode, return_indices=return_indices)


def average_pool(x: Tensor, window: Window, size: Sequence[int], divisor: int, padded: bool) -> Tensor:
    """See `kernels.pool.average_pool`."""
    if window.adaptive:
        return _ADAPTIVE_AVERAGE_POOLS[window.axes](x, size)
    if window.axes == 1:  # torch's avg_pool1d does the same, and takes no divisor
        plane = Window((1, *window.kernel), (1, *window.stride), ((0, 0), *window.padding), (1, 1))
        return average_pool(x.unsqueeze(2), plane, (1, *size), divisor, padded).squeeze(2)
    padding = tuple(before for before, _ in window.padding)
    ceil_mode = window.output_size(x.shape[2:]) != tuple(size)
    pool = AVERAGE_POOLS[window.axes]
    return pool(x, window.kernel, window.stride, padding, ceil_mode, padded, divisor or None)


def average_pool_gradient(dy: Tensor, window: Window, size: Sequence[int], divisor: int, padded: bool) -> Tensor:
    """See `kernels.pool.average_pool_gradient`."""
    x = dy.new_zeros((*dy.shape[:2], *size))
    _, pull_back = torch.func.vjp(lambda x: average_pool(x, window, dy.shape[2:], divisor, padded), x)
    return pull_back(dy)[0]


def cross_channel_max_pool(x: Tensor, pool_size: int) -> Tensor:
    """See `kernels.functional.cross_channel_max_pool`; of equal channels the first has the gradient."""
    y = x.unflatten(1, (-1, pool_size)).max(2).values
    return y.contiguous(memory_format=memory_format(x))


def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    mean: Tensor | None, var: Tensor | None, momentum: float | None, eps: float, relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """See `kernels.norm.batch_norm`."""
    training = mean is None or momentum is not None
    batch = batch_moments(x) if training else (x.new_empty(0, dtype=accumulator_dtype(x)),) * 2
    if momentum is not None:
        track_moments(mean, var, *batch, x.numel() // x.shape[1], momentum)
    mean, var = batch if training else (mean, var)
    y = (x - _per_channel(mean, x)) * _per_channel(_scale(var, weight, eps), x)
    if bias is not None:
        y = y + _per_channel(bias, x)
    if residual is not None:
        y = y + residual
    return (y.relu() if relu else y).to(x.dtype), *batch


def batch_norm_gradient(
    dy: Tensor, x: Tensor, weight: Tensor | None, y: Tensor | None, mean: Tensor, var: Tensor, eps: float,
    training: bool, parameters: bool, residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See `kernels.norm_gradient.batch_norm_gradient`."""
    dweight, dbias = batch_norm_sums(dy, x, y, mean, var, eps)
    if training:
        dx, dresidual = batch_norm_propagate(dy, x, weight, y, mean, var, dweight, dbias, eps, residual)
    else:
        signal = masked(dy, y)
        dx = (signal * _per_channel(_scale(var, weight, eps), x)).to(x.dtype)
        dresidual = signal.to(x.dtype) if residual else x.new_empty(0)
    if not parameters:
        dweight = dbias = dbias.new_empty(0)
    return dx, dweight, dbias, dresidual


def batch_norm_sums(
    dy: Tensor, x: Tensor, y: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """See `kernels.norm_gradient.batch_norm_sums`; here in the type they are summed in."""
    signal = masked(dy, y).to(accumulator_dtype(x))
    axes = _all_but_channels(x)
    return (signal * _normalised(x, mean, var, eps)).sum(axes), signal.sum(axes)


def batch_norm_propagate(
    dy: Tensor, x: Tensor, weight: Tensor | None, y: Tensor | None, mean: Tensor, var: Tensor,
    dweight: Tensor, dbias: Tensor, eps: float, residual: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `kernels.norm_gradient.batch_norm_propagate`."""
    signal = masked(dy, y)
    sums = _per_channel(dbias, x) + _normalised(x, mean, var, eps) * _per_channel(dweight, x)
    dx = (signal.to(sums.dtype) - sums / (x.numel() // x.shape[1])) * _per_channel(_scale(var, weight, eps), x)
    return dx.to(x.dtype), signal.to(x.dtype) if residual else x.new_empty(0)


def batch_norm_as_torch(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    training: bool, momentum: float | Tensor, eps: float,
) -> Tensor:  # fmt: skip
    """torch's own batch normalisation."""
    if not isinstance(momentum, Tensor):
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    if not training or running_mean is None or not x.numel():  # nothing is updated
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, 0.0, eps)
    mean, var = torch.zeros_like(running_mean), torch.zeros_like(running_var)  # with momentum 1 the batch's alone
    y = F.batch_norm(x, mean, var, weight, bias, True, 1.0, eps)
    track(running_mean, mean, momentum)
    track(running_var, var, momentum)
    return y


def track(running: Tensor, batch: Tensor, momentum: float | Tensor) -> None:
    """Move a running statistic towards that of a batch, in place, by the share `momentum` of the way."""
    momentum = momentum.to(running.dtype) if isinstance(momentum, Tensor) else momentum
    with torch.no_grad():
        running.lerp_(batch.to(running.dtype), momentum)


def track_moments(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, positions: int | Tensor,
    momentum: float | Tensor,
) -> None:  # fmt: skip
    """Move running statistics, in place, towards the mean and the unbiased variance of a batch of `positions`.

    `var` is the biased one.
    """
    track(running_mean, mean, momentum)
    track(running_var, var * (positions / (positions - 1)), momentum)


def batch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [C] of x [N, C, *grid], in the type they are summed in."""
    var, mean = torch.var_mean(x.to(accumulator_dtype(x)), _all_but_channels(x), correction=0)
    return mean, var


def _normalised(x: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    return (x - _per_channel(mean, x)) * _per_channel(_scale(var, None, eps), x)


def _scale(var: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    scale = (var + eps).rsqrt()
    return scale if weight is None else scale * weight


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """values [C], to be broadcast over x [N, C, *grid]."""
    return values.to(accumulator_dtype(x)).view(-1, *[1] * (x.dim() - 2))


def _all_but_channels(x: Tensor) -> list[int]:
    return [axis for axis in range(x.dim()) if axis != 1]


def indices(taps: Tensor, window: Window, size: Sequence[int]) -> Tensor:
    """Taps [N, C, *grid] of `max_pool` over a grid of extents `size`, as indices into its flattened plane."""
    taps = taps.long()
    index = torch.zeros_like(taps)
    for axis, extent in enumerate(size):
        tap = taps // prod(window.kernel[axis + 1 :]) % window.kernel[axis]
        start = _starts(window, axis, extent, taps.shape[2:], taps.device)
        index = index * extent + start + tap * window.dilation[axis]
    return index


def _starts(window: Window, axis: int, extent: int, size: Sequence[int], device: torch.device) -> Tensor:
    """Where each of the size[axis] windows of one axis starts on its `extent` inputs, to be broadcast over `size`."""
    output = torch.arange(size[axis], device=device)
    start = output * extent // size[axis] if window.adaptive else output * window.stride[axis] - window.padding[axis][0]
    return start.view(-1, *[1] * (window.axes - 1 - axis))


def masked(dy: Tensor, y: Tensor | None) -> Tensor:
    """dy where the ReLU output y let the signal through; all of dy without one."""
    return dy if y is None else torch.where(y <= 0, 0, dy)
