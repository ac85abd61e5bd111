"""What PyTorch's operations do to a map: their windows, and what they read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils.flop_counter import flop_registry

from experiments.summary.receptive import SELF, Reach, Sight, padded, resized, transposed, windowed
from kernels.shape import Window

Field = tuple[Reach, ...] | None  # of the last axes of a map; None where there is no window: all of the input, mostly

POOLS = ("max_pool", "avg_pool")
RESIZING = {"nearest": 1, "linear": 2, "bilinear": 2, "trilinear": 2, "bicubic": 4}  # taps of an axis
REARRANGING = ("permute", "transpose", "t", "flip", "roll")


class Step(NamedTuple):
    """An operation with a window.

    Args:
        kind: "convolution", "transposed convolution", "max pool", "average pool", "padding" or "resizing".
        window: of a padding only its padding counts, which is negative where it crops; of a resizing nothing does.
        sights: how it looks at each axis.
    """

    kind: str
    window: Window
    sights: list[Sight]


def name_of(operator: OpOverload) -> str:
    return operator._overloadpacket.__name__


def flops_of(operator: OpOverload, arguments: Sequence[Any], keywords: dict[str, Any], output: Any) -> int:
    """By the formulas that are registered with PyTorch: two for each product, others are not counted."""
    formula = flop_registry.get(operator._overloadpacket)
    return 0 if formula is None else int(formula(*arguments, **keywords, out_val=output))


def step_of(operator: OpOverload, arguments: Sequence[Any], keywords: dict[str, Any], output: Tensor) -> Step | None:
    """An operation's window, None where it has none."""
    name, given = name_of(operator), _named(operator, arguments, keywords)
    if name == "convolution":
        return _convolution(given, output)
    if any(pool in name for pool in POOLS):
        return _pool(name, given, output)
    if name.endswith("_pad_nd") or "reflection_pad" in name or "replication_pad" in name:
        pad = given["pad" if "pad" in given else "padding"]
        pairs = tuple(zip(pad[::2], pad[1::2], strict=True))[::-1]
        ones = (1,) * len(pairs)
        return Step("padding", Window(ones, ones, pairs, ones), padded([before for before, _ in pairs]))
    if "upsample" in name:
        taps = next(taps for method, taps in RESIZING.items() if method in name)
        size, axes = given["self"].shape, output.dim() - 2
        ones = (1,) * axes
        return Step("resizing", Window(ones, ones, ((0, 0),) * axes, ones), resized(size[2:], output.shape[2:], taps))
    if name == "mean" and given["dim"] and given["keepdim"]:
        return _mean(given, output)
    return None


def field_after(operator: OpOverload, step: Step | None, inputs: list[tuple[Tensor, Field]], output: Tensor) -> Field:
    """What the positions of an output read of the network's input.

    Args:
        inputs: tensors that were made of that input, and what their positions read.
    """
    fields = [field for _, field in inputs if field is not None]
    if len(fields) < len(inputs):
        return None
    name, first = name_of(operator), fields[0]
    if step is not None:
        if step.window.adaptive and set(output.shape[-step.window.axes :]) == {1}:
            return None
        lifted = (SELF,) * (len(step.sights) - len(first)) + first  # pooling along a line is done in a plane of it
        return tuple(reach.through(sight) for reach, sight in zip(lifted, step.sights, strict=True))[-len(first) :]
    if name in REARRANGING or operator._overloadpacket in flop_registry:
        return None
    for tensor, field in zip((tensor for tensor, _ in inputs), fields, strict=True):
        axes = len(field)
        if axes != len(first) or tensor.shape[-axes:] != output.shape[-axes:] or output.dim() <= axes:
            return None
    joined = first
    for field in fields[1:]:
        pairs = [mine.joined(its) for mine, its in zip(joined, field, strict=True)]
        known = tuple(pair for pair in pairs if pair is not None)
        if len(known) < len(pairs):
            return None
        joined = known
    return joined


def _named(operator: OpOverload, arguments: Sequence[Any], keywords: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call by name, with what is left out."""
    schema = operator._schema.arguments
    given = dict(zip((argument.name for argument in schema), arguments, strict=False)) | keywords
    return {argument.name: argument.default_value for argument in schema if argument.has_default_value()} | given


def _convolution(given: dict[str, Any], output: Tensor) -> Step:
    kernel = tuple(given["weight"].shape[2:])
    axes = len(kernel)
    stride, padding, dilation = (_each(given[name], axes) for name in ("stride", "padding", "dilation"))
    window = Window(kernel, stride, tuple((pad, pad) for pad in padding), dilation, given["groups"])
    if given["transposed"]:
        return Step("transposed convolution", window, transposed(window))
    return Step("convolution", window, windowed(window, given["input"].shape[2:], output.shape[2:]))


def _pool(name: str, given: dict[str, Any], output: Tensor) -> Step:
    kind = "max pool" if "max" in name else "average pool"
    if "adaptive" in name:
        axes = len(given["output_size"])
        size, output_size = given["self"].shape[-axes:], output.shape[-axes:]
        window = Window.dividing(tuple(size), tuple(output_size)).fixed_where_even(tuple(size), tuple(output_size))
    else:
        axes = int(name.partition("pool")[2][0])
        kernel = _each(given["kernel_size"], axes)
        stride = _each(given["stride"], axes) if given["stride"] else kernel
        padding, dilation = (_each(given.get(key, least), axes) for key, least in (("padding", 0), ("dilation", 1)))
        window = Window(kernel, stride, tuple((pad, pad) for pad in padding), dilation)
        size, output_size = given["self"].shape[-axes:], output.shape[-axes:]
    return Step(kind, window, windowed(window, size, output_size))


def _mean(given: dict[str, Any], output: Tensor) -> Step | None:
    """The average over the whole grid, which is how PyTorch runs an adaptive average of one output."""
    shape = given["self"].shape
    axes = len(given["dim"])
    if {axis % len(shape) for axis in given["dim"]} != set(range(len(shape) - axes, len(shape))):
        return None
    window = Window.dividing(tuple(shape[-axes:]), (1,) * axes)
    return Step("average pool", window, windowed(window, shape[-axes:], output.shape[-axes:]))


def _each(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """One int an axis, of a number that counts for all or of a list."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values


def tensors_in(values: Any) -> list[Tensor]:
    """The tensors among arguments or results, in order."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(values) if isinstance(leaf, Tensor)]
