"""What a user can get wrong: arguments as torch.nn.functional takes them, made into ints and Windows or refused.

Every refusal is a ValueError or TypeError of one line that names the argument, what was given and what is accepted.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedTensorMixin

from kernels.backend import autocast_dtype
from kernels.shape import AXES, Window, remembered, shape_of

LIMIT = 2**31  # of an int: kernels take those of a window, and torch's too, as 32 bits
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
GRID_NAMES = ("", "L", "H, W", "D, H, W")

IntOrTuple = int | Sequence[int]
ACTIVATIONS = (None, "relu")
TAKE_NO_CHANNELS = ("adaptive_avg_pool1d", "adaptive_avg_pool2d")  # as torch's do, and no other pooling of torch
OPTIONAL = ("bias", "residual")
POOLING_ARGUMENTS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")


def make_window(
    op: str,
    kernel: Sequence[int],
    stride: IntOrTuple,
    padding: IntOrTuple | str,
    dilation: IntOrTuple,
    groups: int = 1,
    tile: tuple[int, ...] = (),
) -> Window:
    """A Window from arguments as torch.nn.functional takes them; padding also as "valid", "same" or "full".

    Raises ValueError or TypeError that name the argument, what was given and what is accepted.
    """
    axes = len(kernel)
    kernel = tuple(map(int, kernel)) if torch.jit.is_tracing() else tuple(kernel)  # tracing gives tensors
    stride = per_axis(op, "stride", stride, axes, least=1)
    dilation = per_axis(op, "dilation", dilation, axes, least=1)
    if not isinstance(padding, str):
        padding = per_axis(op, "padding", padding, axes, least=0)
    return _window(op, kernel, stride, padding, dilation, check_int(op, "groups", groups, least=1), tile)


@remembered
def _window(
    op: str, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...] | str,
    dilation: tuple[int, ...], groups: int, tile: tuple[int, ...],
) -> Window:  # fmt: skip
    kernel = per_axis(op, "kernel_size", kernel, len(kernel), least=1)
    named = isinstance(padding, str)
    pairs = _named_padding(op, padding, kernel, stride, dilation) if named else tuple((p, p) for p in padding)
    return Window(kernel, stride, pairs, dilation, groups, tile)


def per_axis(op: str, name: str, value: IntOrTuple, axes: int, least: int) -> tuple[int, ...]:
    """`value` as one int an axis; a single int counts for all axes."""
    if type(value) is int and least <= value < LIMIT:  # quick for what is usual: every call of a layer comes here
        return (value,) * axes
    if type(value) is tuple and len(value) == axes and all(type(v) is int and least <= v < LIMIT for v in value):
        return value
    values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if len(values) == 1:
        values *= axes
    ints = tuple(_as_int(v) for v in values)
    if len(ints) != axes or any(v is None or v < least for v in ints):
        raise ValueError(f"{op}: {name} must be an int or {axes} ints, each >= {least}, got {value!r}")
    _check_limit(op, name, ints)
    return ints


def check_int(op: str, name: str, value: int, least: int) -> int:
    """`value` as an int of at least `least`; else ValueError."""
    if type(value) is int and least <= value < LIMIT:
        return value
    number = _as_int(value)
    if number is None or number < least:
        raise ValueError(f"{op}: {name} must be an int >= {least}, got {value!r}")
    _check_limit(op, name, (number,))
    return number


def _check_limit(op: str, name: str, ints: Sequence[int]) -> None:
    if any(type(v) is int and abs(v) >= LIMIT for v in ints):
        raise ValueError(f"{op}: {name} must be less than 2**31, got {', '.join(map(str, ints))}")


def _as_int(value: object) -> int | None:
    """An int or what counts as one (NumPy's, symbolic ones), None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | torch.SymInt):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return None


def _named_padding(
    op: str, padding: str, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    spans = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding == "full":
        return tuple((span, span) for span in spans)
    if padding != "same":
        raise ValueError(f"{op}: padding must be ints or one of 'valid', 'same', 'full', got {padding!r}")
    if any(s != 1 for s in stride):
        raise ValueError(f"{op}: padding='same' needs stride 1, got stride {stride}")
    return tuple((span // 2, span - span // 2) for span in spans)


def check_tensor(op: str, name: str, t: Tensor) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(t).__name__}")


def check_floating(op: str, **tensors: Tensor | None) -> None:
    """All tensors present are of one supported dtype, dense, and on one device; else TypeError or ValueError."""
    first = None
    for name, t in tensors.items():
        if t is None and name in OPTIONAL:
            continue
        if not isinstance(t, Tensor):
            raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(t).__name__}")
        if isinstance(t, UninitializedTensorMixin):
            raise ValueError(f"{op}: {name} has no shape yet: call the lazy layer that it is of with a batch first")
        if t.is_nested:
            raise TypeError(f"{op}: {name} must be a dense (strided) tensor, got a nested tensor")
        if t.layout != torch.strided:
            raise TypeError(f"{op}: {name} must be a dense (strided) tensor, got layout {t.layout}")
        if t.dtype not in DTYPES:
            raise TypeError(f"{op}: {name} must be float16, bfloat16, float32 or float64, got {_short(t.dtype)}")
        if first is None:
            first_name, first = name, t
        elif t.device != first.device:
            raise ValueError(
                f"{op}: tensors must be on one device, got {first_name} on {first.device} and {name} on {t.device}"
            )
        elif t.dtype != first.dtype:
            raise TypeError(
                f"{op}: tensors must have one dtype, got {first_name} {_short(first.dtype)}"
                f" and {name} {_short(t.dtype)}"
            )


def check_convolution(op: str, x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> tuple[int, ...]:
    """The output's shape, for x [N, C, *grid] and weight [O, C/groups, *kernel]; ValueError where they do not fit."""
    return _output_shape(op, shape_of(x), shape_of(weight), None if bias is None else shape_of(bias), window)


@remembered
def _output_shape(
    op: str, x: tuple[int, ...], weight: tuple[int, ...], bias: tuple[int, ...] | None, window: Window
) -> tuple[int, ...]:
    groups, outputs = window.groups, weight[0] // window.tiles
    if outputs % groups or not outputs:
        wrong = f"groups must divide the output channels, {outputs}"
    elif x[1] != weight[1] * groups:
        wrong = f"input must have {weight[1] * groups} channels (weight.shape[1] * groups), got {x[1]}"
    elif bias is not None and bias != weight[:1]:
        wrong = f"bias must have shape ({weight[0]},), got {tuple(bias)}"
    else:
        return x[0], outputs, *check_fits(op, x, window)
    raise ValueError(f"{op}: {wrong}: input {tuple(x)}, weight {tuple(weight)}, groups {groups}")


def check_transposed_convolution(
    op: str, x: Tensor, weight: Tensor, bias: Tensor | None, window: Window, extra: Sequence[int], size: Sequence[int]
) -> None:
    """Raise ValueError where x [N, C, *grid], weight [C, O/groups, *kernel] and output_padding `extra` do not fit."""
    groups, outputs = window.groups, weight.shape[1] * window.groups
    for more, stride, dilation in zip(extra, window.stride, window.dilation, strict=True):
        if more >= max(stride, dilation):
            raise ValueError(f"{op}: output_padding must be less than stride or dilation, got {tuple(extra)}")
    if x.shape[1] != weight.shape[0]:
        wrong = f"input must have {weight.shape[0]} channels (weight.shape[0]), got {x.shape[1]}"
    elif not weight.shape[0] or weight.shape[0] % groups:
        wrong = f"groups must divide the input channels, {weight.shape[0]}"
    elif not outputs:
        wrong = "weight must give at least one output channel"
    elif bias is not None and bias.shape != (outputs,):
        wrong = f"bias must have shape ({outputs},), got {tuple(bias.shape)}"
    elif min(x.shape[2:]) < 1 or min(size) < 1:
        wrong = f"input and output must be at least 1 wide, the output would be {tuple(size)}"
    else:
        return check_extents(op, size)
    raise ValueError(f"{op}: {wrong}: input {tuple(x.shape)}, weight {tuple(weight.shape)}, groups {groups}")


def check_residual(op: str, residual: Tensor | None, shape: Sequence[int]) -> Tensor | None:
    """`residual` broadcast to the shape of the output it is added to; else ValueError."""
    if residual is None or residual.shape == shape:
        return residual
    try:
        return residual.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"{op}: residual must have the output's shape {tuple(shape)}, got {tuple(residual.shape)}"
        ) from None


def check_broadcast(op: str, a: Tensor, b: Tensor, front: Sequence[int], other: Sequence[int]) -> torch.Size:
    """The leading axes `front` of a and `other` of b, broadcast; else ValueError."""
    try:
        return torch.broadcast_shapes(front, other)
    except RuntimeError:
        raise ValueError(f"{op}: leading axes must broadcast, got {tuple(a.shape)} and {tuple(b.shape)}") from None


def check_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise ValueError that names the shapes where x [*, in], weight [out, in] and bias [out] do not fit."""
    if weight.dim() != 2 or x.dim() < 1:
        wrong = "input must be [*, in] and weight [out, in], got"
    elif x.shape[-1] != weight.shape[1]:
        wrong = f"input must have {weight.shape[1]} features, got {x.shape[-1]}:"
    elif bias is not None and bias.shape != weight.shape[:1]:
        wrong = f"bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}:"
    else:
        return
    raise ValueError(f"linear: {wrong} input {tuple(x.shape)}, weight {tuple(weight.shape)}")


def make_pooling_window(
    op: str, axes: int, kernel_size: IntOrTuple, stride: IntOrTuple | None = None, padding: IntOrTuple = 0,
    dilation: IntOrTuple = 1,
) -> Window:  # fmt: skip
    """A pooling's Window, whose stride is its kernel_size unless it is given."""
    kernel = per_axis(op, "kernel_size", kernel_size, axes, least=1)
    padding = per_axis(op, "padding", padding, axes, least=0)
    is_given = stride is not None and not (isinstance(stride, tuple | list) and not stride)
    return make_window(op, kernel, stride if is_given else kernel, padding, dilation)


def pooling_window(op: str, pool: IntOrTuple | Mapping[str, Any], axes: int) -> tuple[Window, bool]:
    """The window of a max pooling given as its arguments by name, or as its kernel_size, and whether in ceil_mode."""
    arguments = pool if isinstance(pool, Mapping) else {"kernel_size": pool}
    unknown = [name for name in arguments if name not in POOLING_ARGUMENTS]
    if unknown or "kernel_size" not in arguments:
        wrong = f"got {unknown[0]!r}" if unknown else "kernel_size is missing"
        raise ValueError(f"{op}: arguments must be among {', '.join(POOLING_ARGUMENTS)}; {wrong}")
    window = make_pooling_window(op, axes, **{k: v for k, v in arguments.items() if k != "ceil_mode"})
    return window, bool(arguments.get("ceil_mode", False))


@remembered
def check_pooling(op: str, shape: tuple[int, ...], window: Window, ceil_mode: bool) -> tuple[int, ...]:
    """The extents of a pooling's output; ValueError where its window is padded by more than half, or does not fit.

    Args:
        shape: of the input, [N, C, *grid].
    """
    for kernel, (before, _) in zip(window.kernel, window.padding, strict=True):
        if before > kernel // 2:
            raise ValueError(f"{op}: padding must be at most half of kernel_size, got {before} for {kernel}")
    check_not_empty(op, shape)
    output_size = check_fits(op, shape, window, ceil_mode)
    if op == "avg_pool3d" and any(k > extent for k, extent in zip(window.kernel, shape[2:], strict=True)):
        raise ValueError(f"{op}: kernel_size must be at most the input's {tuple(shape[2:])}, got {window.kernel}")
    for dilation, (before, _), extent in zip(window.dilation, window.padding, shape[2:], strict=True):
        if before and dilation > extent:  # a window could step over the whole grid, and have no maximum
            raise ValueError(f"{op}: dilation must be at most the padded input's extent {extent}, got {dilation}")
    return output_size


def check_not_empty(op: str, shape: Sequence[int]) -> None:
    """Raise ValueError where an input of `shape` [N, C, *grid] has nothing to pool; N may be 0."""
    if 0 in shape[2:] or (shape[1] == 0 and op not in TAKE_NO_CHANNELS):
        raise ValueError(f"{op}: input must have no extent of 0 but the batch's, got {tuple(shape)}")


def check_output_size(op: str, output_size: int | None | Sequence[int | None], size: Sequence[int]) -> tuple[int, ...]:
    """The extents of an adaptive pooling's output, None being the input's, of which `size` are the extents."""
    axes = len(size)
    several = isinstance(output_size, Sequence) and not isinstance(output_size, str)
    values = tuple(output_size) if several else (output_size,) * axes
    ints = tuple(size[axis] if value is None else _as_int(value) for axis, value in enumerate(values[:axes]))
    if len(values) != axes or any(value is None or value < 0 for value in ints):
        raise ValueError(f"{op}: output_size must be an int or {axes} ints or None, each >= 0, got {output_size!r}")
    check_extents(op, ints)
    return ints


def check_divisor(op: str, divisor: int | None) -> int:
    """The divisor of an average, 0 for None: the number of inputs in the window."""
    number = 0 if divisor is None else _as_int(divisor)
    if number is None or (number == 0 and divisor is not None):
        raise ValueError(f"{op}: divisor_override must be None or an int other than 0, got {divisor!r}")
    _check_limit(op, "divisor_override", (number,))
    return number


def check_batch_norm(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    residual: Tensor | None, training: bool, momentum: float | Tensor, eps: float, alone: bool = True,
) -> None:  # fmt: skip
    """Raise ValueError or TypeError where the arguments of batch_norm do not fit x [N, C, *grid].

    `alone` is False where other processes add values to the batch.
    """
    check_floating("batch_norm", input=x, residual=residual)
    parameters = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    parameters = {name: t for name, t in parameters.items() if t is not None}
    if parameters:
        check_floating("batch_norm", **parameters)
    if not 2 <= x.dim() <= AXES + 2:
        wrong = f"input must be [N, C] or [N, C, *grid] of up to {AXES} axes, got {x.dim()} dimensions"
    elif (running_mean is None) != (running_var is None):
        wrong = "running_mean and running_var must both be given or both be None"
    elif running_mean is None and not training:
        wrong = "running_mean and running_var must be given unless training, got None"
    elif training and alone and x.shape[0] * math.prod(x.shape[2:]) == 1:
        wrong = "training needs more than one value per channel"
    elif not isinstance(eps, int | float) or not eps >= 0 or (training and eps == 0):
        wrong = f"eps must be {'> 0 in training' if training else '>= 0'}, got {eps}"
    else:
        return _check_per_channel(x, parameters, momentum)
    raise ValueError(f"batch_norm: {wrong}: input {tuple(x.shape)}")


def _check_per_channel(x: Tensor, parameters: dict[str, Tensor], momentum: float | Tensor) -> None:
    if not isinstance(momentum, int | float) and not (isinstance(momentum, Tensor) and momentum.dim() == 0):
        raise TypeError(f"batch_norm: momentum must be a number or a tensor of no axes, got {momentum!r}")
    accepted = (x.dtype, torch.float32) if x.dtype.itemsize == 2 else (x.dtype,)
    for name, t in parameters.items():
        if t.shape != x.shape[1:2]:
            raise ValueError(
                f"batch_norm: {name} must have shape ({x.shape[1]},), got {tuple(t.shape)}: input {tuple(x.shape)}"
            )
        if t.dtype not in accepted:
            names = " or ".join(map(_short, dict.fromkeys(accepted)))
            raise TypeError(f"batch_norm: {name} must be {names} for input {_short(x.dtype)}, got {_short(t.dtype)}")
        if t.device != x.device:
            raise ValueError(
                f"batch_norm: tensors must be on one device, got input on {x.device} and {name} on {t.device}"
            )
        if t.requires_grad and name.startswith("running") and torch.is_grad_enabled():
            raise ValueError(f"batch_norm: {name} has no gradient, and must not require one")


def check_fits(op: str, shape: Sequence[int], window: Window, ceil_mode: bool = False) -> tuple[int, ...]:
    """The extents of the output over an input of `shape` [N, C, *grid]; ValueError where the window does not fit."""
    size = tuple(shape[2:])
    output_size = window.output_size(size, ceil_mode)
    if any(extent < 1 for extent in output_size):
        padded = tuple(s + before + after for s, (before, after) in zip(size, window.padding, strict=True))
        raise ValueError(
            f"{op}: the window is larger than the padded input: kernel_size {window.kernel} with dilation"
            f" {window.dilation} on input {tuple(shape)}, whose grid padded is {padded}"
        )
    check_extents(op, output_size)
    return output_size


def check_extents(op: str, size: Sequence[int]) -> None:
    """Raise ValueError where an output of extents `size` has more positions than a machine has addresses."""
    if all(type(extent) is int for extent in size) and math.prod(size) >= 2**48:
        raise ValueError(f"{op}: the output would be {tuple(size)} large")


def batched(op: str, x: Tensor, axes: int) -> Tensor:
    """x as [N, C, *grid], adding N = 1 to an unbatched input; ValueError for any other rank."""
    if x.dim() == axes + 1:
        return x.unsqueeze(0)
    if x.dim() != axes + 2:
        grid = GRID_NAMES[axes]
        raise ValueError(
            f"{op}: input must be [N, C, {grid}] or [C, {grid}], got {x.dim()} dimensions: {tuple(x.shape)}"
        )
    return x


def check_activation(op: str, activation: str | None) -> str | None:
    """The activation, if it is one that can be fused; else ValueError."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation must be None or 'relu', got {activation!r}")
    return activation


def autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in the type that an enclosing torch.autocast asks for, as torch's own convolution casts them."""
    dtype = autocast_dtype(tensors[0]) if isinstance(tensors[0], Tensor) else None
    if dtype is None:
        return tensors
    castable = (torch.float16, torch.bfloat16, torch.float32)
    return tuple(t.to(dtype) if isinstance(t, Tensor) and t.dtype in castable else t for t in tensors)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
