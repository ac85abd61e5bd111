"""The only shape arithmetic of the package: windows, output sizes, the lift to three grid axes, and the checks.

A grid has 0 (linear layer), 1, 2 or 3 axes. The kernels know three axes (D, H, W) only; a smaller grid is lifted to
them by axes of extent 1 in front, over which a window of extent 1 slides once.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

AXES = 3
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
GRID_NAMES = ("", "L", "H, W", "D, H, W")

IntOrTuple = int | Sequence[int]


@dataclass(frozen=True)
class Window:
    """How a window slides over a grid: one entry an axis, padding as (before, after) pairs.

    Output position p reads input position p * stride - before + tap * dilation, for tap in range(kernel)
    (Deep Learning, eq. 9.8; Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016).
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @property
    def axes(self) -> int:
        return len(self.kernel)

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    @property
    def symmetric(self) -> bool:
        return all(before == after for before, after in self.padding)

    @property
    def flat_padding(self) -> list[int]:
        """[before, after] of each axis in turn, the form in which a torch.library schema can carry it."""
        return [side for pair in self.padding for side in pair]

    @property
    def flat_padding_from_last(self) -> list[int]:
        """The same, last axis first: the form that torch.nn.functional.pad takes."""
        return [side for pair in reversed(self.padding) for side in pair]

    @property
    def edges(self) -> tuple[bool, ...]:
        """Axes on which a tap may fall outside the grid, so that loads need a bounds check there."""
        return tuple(k > 1 or pad != (0, 0) for k, pad in zip(self.kernel, self.padding, strict=True))

    @property
    def common(self) -> tuple[int, ...]:
        """gcd of stride and dilation. The taps that reach input i are a lattice:

        tap t reads input i for output (i + before - t * dilation) / stride, where that is whole. There are such taps
        iff `common` divides i + before. They are every `every`-th one, the first is
        ((i + before) % stride // common * inverse) % every, and each next moves the output by `back`.
        """
        return tuple(math.gcd(s, d) for s, d in zip(self.stride, self.dilation, strict=True))

    @property
    def every(self) -> tuple[int, ...]:
        """Taps from one that reaches an input to the next."""
        return tuple(s // c for s, c in zip(self.stride, self.common, strict=True))

    @property
    def back(self) -> tuple[int, ...]:
        """Outputs from the one where a tap reads an input to that of the next such tap, < 0."""
        return tuple(-d // c for d, c in zip(self.dilation, self.common, strict=True))

    @property
    def inverse(self) -> tuple[int, ...]:
        """Of dilation / common, modulo `every`."""
        return tuple(pow(-b, -1, e) if e > 1 else 0 for b, e in zip(self.back, self.every, strict=True))

    @property
    def reach(self) -> tuple[int, ...]:
        """Most windows that can read one input position."""
        return tuple(-(-k // e) for k, e in zip(self.kernel, self.every, strict=True))

    def lifted(self) -> Window:
        """The same window on three axes."""
        padding = ((0, 0),) * (AXES - self.axes) + self.padding
        return Window(lift(self.kernel), lift(self.stride), padding, lift(self.dilation), self.groups)

    def without_idle_strides(self, size: Sequence[int], output_size: Sequence[int]) -> Window:
        """The same window, with no stride longer than the grid of extents `size` where it gives one output only."""
        stride = tuple(
            min(s, extent) if out == 1 else s for s, extent, out in zip(self.stride, size, output_size, strict=True)
        )
        return replace(self, stride=stride)

    def output_size(self, size: Sequence[int], ceil_mode: bool = False) -> tuple[int, ...]:
        """Extents of the output over a grid of extents `size`; an entry is < 1 where the window does not fit."""
        return tuple(self._extent(axis, extent, ceil_mode) for axis, extent in enumerate(size))

    def _extent(self, axis: int, extent: int, ceil_mode: bool) -> int:
        before, after = self.padding[axis]
        stride = self.stride[axis]
        span = extent + before + after - self.dilation[axis] * (self.kernel[axis] - 1) - 1
        if not ceil_mode:
            return span // stride + 1
        out = -(-span // stride) + 1
        return out - 1 if (out - 1) * stride >= extent + before else out  # the last window must start on the grid


def lift(values: Sequence[int]) -> tuple[int, ...]:
    """One int for each of three axes: ones in front."""
    return (1,) * (AXES - len(values)) + tuple(values)


def make_window(
    op: str,
    kernel: Sequence[int],
    stride: IntOrTuple,
    padding: IntOrTuple | str,
    dilation: IntOrTuple,
    groups: int = 1,
) -> Window:
    """A Window from arguments as torch.nn.functional takes them; padding also as "valid", "same" or "full".

    Raises ValueError or TypeError that name the argument, what was given and what is accepted.
    """
    axes = len(kernel)
    kernel = tuple(map(int, kernel))  # torch.jit.trace gives tensors
    kernel = per_axis(op, "kernel_size", kernel, axes, least=1)
    stride = per_axis(op, "stride", stride, axes, least=1)
    dilation = per_axis(op, "dilation", dilation, axes, least=1)
    if isinstance(padding, str):
        pairs = _named_padding(op, padding, kernel, stride, dilation)
    else:
        pairs = tuple((p, p) for p in per_axis(op, "padding", padding, axes, least=0))
    return Window(kernel, stride, pairs, dilation, check_int(op, "groups", groups, least=1))


def flat_window(
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int = 1
) -> Window:
    """The Window whose parts travelled through a torch.library schema as flat lists (see `Window.flat_padding`)."""
    pairs = tuple((padding[2 * axis], padding[2 * axis + 1]) for axis in range(len(kernel)))
    return Window(tuple(kernel), tuple(stride), pairs, tuple(dilation), groups)


def per_axis(op: str, name: str, value: IntOrTuple, axes: int, least: int) -> tuple[int, ...]:
    """`value` as one int an axis; a single int counts for all axes."""
    if type(value) is int and value >= least:  # quick for what is usual: every call of a layer comes here
        return (value,) * axes
    if type(value) is tuple and len(value) == axes and all(type(v) is int and v >= least for v in value):
        return value
    values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if len(values) == 1:
        values *= axes
    ints = tuple(_as_int(v) for v in values)
    if len(ints) != axes or any(v is None or v < least for v in ints):
        raise ValueError(f"{op}: {name} must be an int or {axes} ints, each >= {least}, got {value!r}")
    return ints


def check_int(op: str, name: str, value: int, least: int) -> int:
    """`value` as an int of at least `least`; else ValueError."""
    number = _as_int(value)
    if number is None or number < least:
        raise ValueError(f"{op}: {name} must be an int >= {least}, got {value!r}")
    return number


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


def check_floating(op: str, **tensors: Tensor | None) -> None:
    """All tensors present are of one supported dtype, dense, and on one device; else TypeError or ValueError."""
    present = {name: t for name, t in tensors.items() if t is not None or name != "bias"}
    for name, t in present.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(t).__name__}")
        if t.layout != torch.strided:
            raise TypeError(f"{op}: {name} must be a dense (strided) tensor, got layout {t.layout}")
        if t.dtype not in DTYPES:
            raise TypeError(f"{op}: {name} must be float16, bfloat16, float32 or float64, got {_short(t.dtype)}")
    (first_name, first), *others = present.items()
    for name, t in others:
        if t.device != first.device:
            raise ValueError(
                f"{op}: tensors must be on one device, got {first_name} on {first.device} and {name} on {t.device}"
            )
        if t.dtype != first.dtype:
            raise TypeError(
                f"{op}: tensors must have one dtype, got {first_name} {_short(first.dtype)}"
                f" and {name} {_short(t.dtype)}"
            )


def check_convolution(op: str, x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> None:
    """Raise ValueError that names both shapes where x [N, C, *grid] and weight [O, C/groups, *kernel] do not fit."""
    groups = window.groups
    if weight.shape[0] % groups:
        wrong = f"groups must divide the output channels, {weight.shape[0]}"
    elif x.shape[1] != weight.shape[1] * groups:
        expected = weight.shape[1] * groups
        wrong = f"input must have {expected} channels (weight.shape[1] * groups), got {x.shape[1]}"
    elif bias is not None and bias.shape != weight.shape[:1]:
        wrong = f"bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}"
    else:
        return check_fits(op, x, window)
    raise ValueError(f"{op}: {wrong}: input {tuple(x.shape)}, weight {tuple(weight.shape)}, groups {groups}")


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


def check_pooling(op: str, x: Tensor, window: Window, ceil_mode: bool) -> None:
    """Raise ValueError where a pooling window is padded by more than half of it, or does not fit on the grid."""
    for kernel, (before, _) in zip(window.kernel, window.padding, strict=True):
        if before > kernel // 2:
            raise ValueError(f"{op}: padding must be at most half of kernel_size, got {before} for {kernel}")
    check_fits(op, x, window, ceil_mode)
    for dilation, (before, _), extent in zip(window.dilation, window.padding, x.shape[2:], strict=True):
        if before and dilation > extent:  # a window could step over the whole grid, and have no maximum
            raise ValueError(f"{op}: dilation must be at most the padded input's extent {extent}, got {dilation}")


def check_fits(op: str, x: Tensor, window: Window, ceil_mode: bool = False) -> None:
    size = tuple(x.shape[2:])
    if any(extent < 1 for extent in window.output_size(size, ceil_mode)):
        padded = tuple(s + before + after for s, (before, after) in zip(size, window.padding, strict=True))
        raise ValueError(
            f"{op}: the window is larger than the padded input: kernel_size {window.kernel} with dilation"
            f" {window.dilation} on input {tuple(x.shape)}, whose grid padded is {padded}"
        )


def tap_dtype(window: Window) -> torch.dtype:
    """The narrowest integer that numbers the taps of a pooling window."""
    return torch.uint8 if window.taps <= 256 else torch.int32


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


def channels_last(x: Tensor) -> Tensor:
    """x [N, C, *grid] as a contiguous [N, D, H, W, C]: no copy where the memory is channels-last already."""
    front = (None,) * (AXES + 2 - x.dim())
    return x[(slice(None), slice(None), *front)].permute(0, 2, 3, 4, 1).contiguous()


def new_channels_last(x: Tensor, channels: int, size: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised [N, channels, *size], N as in x, whose memory is channels-last: what an operator returns.

    Not a view, since torch refuses to change in place a view that an operator returns.
    """
    layout = (0, *range(2, 2 + len(size)), 1)
    return torch.empty_permuted((x.shape[0], channels, *size), layout, dtype=dtype or x.dtype, device=x.device)


def channels_first(y: Tensor, axes: int, memory_format: torch.memory_format) -> Tensor:
    """The inverse of `channels_last`: y [N, D, H, W, C] as [N, C, *grid] of `axes` axes, laid out as asked."""
    grid = y.shape[1 + AXES - axes : 1 + AXES]
    return y.reshape(y.shape[0], *grid, y.shape[-1]).movedim(-1, 1).contiguous(memory_format=memory_format)


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last (of 2 or 3 grid axes) where x is laid out so, else contiguous."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    preferred = formats.get(x.dim(), torch.contiguous_format)
    if x.is_contiguous() or not x.is_contiguous(memory_format=preferred):
        return torch.contiguous_format
    return preferred


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
