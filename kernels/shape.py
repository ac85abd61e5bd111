"""The only shape arithmetic of the package: windows, output sizes, the lift to three grid axes, memory layouts.

A grid has 0 (linear layer), 1, 2 or 3 axes. The kernels know three axes (D, H, W) only; a smaller grid is lifted to
them by axes of extent 1 in front, over which a window of extent 1 slides once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, wraps
from typing import TypeVar

import torch
from torch import Tensor

AXES = 3
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
REMEMBERED = 2**14  # results, of all functions together

Result = TypeVar("Result")


@lru_cache(REMEMBERED)
def _known(function: Callable[..., Result], *args: object) -> Result:
    return function(*args)


def remembered(function: Callable[..., Result]) -> Callable[..., Result]:
    """`function` of ints, or of what is made of them, each result of which is computed once: every call asks again.

    Symbolic ints are no keys, and under torch.compile there is nothing to remember: then it is simply called.
    """

    @wraps(function)
    def recall(*args: object) -> Result:
        if torch.compiler.is_compiling():
            return function(*args)
        try:
            return _known(function, *args)
        except TypeError:  # what cannot be a key, or what `function` itself refuses
            return function(*args)

    return recall


@dataclass(frozen=True)
class Window:
    """How a window slides over a grid: one entry an axis, padding as (before, after) pairs.

    Output position p reads input position p * stride - before + tap * dilation, for tap in range(kernel)
    (Deep Learning, eq. 9.8; Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016).

    Args:
        groups: sets of channels that are connected among themselves only.
        tile: kernels that take turns over the output positions, along each axis; () is one kernel for all of them.
        adaptive: divide the grid evenly into as many windows as there are outputs. Output p of P reads the inputs from
            floor(p * size / P) to ceil((p + 1) * size / P), which are at most `kernel`; stride and padding say nothing.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1
    tile: tuple[int, ...] = ()
    adaptive: bool = False

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.kernel, self.stride, self.padding, self.dilation, self.groups, self.tile, self.adaptive))

    @property
    @remembered
    def flat(self) -> tuple[int, ...]:
        """The window as integers, the form in which a torch.library schema can carry it; see `from_flat`."""
        tile = self.tile or (1,) * self.axes
        return *self.kernel, *self.stride, *self.dilation, *tile, *self.flat_padding, self.groups, int(self.adaptive)

    @staticmethod
    def from_flat(flat: Sequence[int] | Window) -> Window:
        """Return the window of these integers; a Window as it is."""
        return flat if isinstance(flat, Window) else _from_flat(tuple(flat))

    @property
    def axes(self) -> int:
        return len(self.kernel)

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    @property
    def tiles(self) -> int:
        """Kernels that take turns."""
        return math.prod(self.tile)

    @property
    @remembered
    def period(self) -> tuple[int, ...]:
        """Inputs from one to the next that is reached by the same taps of the same kernels."""
        return tuple(s * t for s, t in zip(self.stride, self.tile, strict=True)) if self.tile else self.stride

    @property
    def strided(self) -> bool:
        return any(s > 1 for s in self.stride)

    @property
    def symmetric(self) -> bool:
        return all(before == after for before, after in self.padding)

    @property
    def flat_padding(self) -> list[int]:
        """[before, after] of each axis in turn."""
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

    def reach(self, size: Sequence[int], output_size: Sequence[int]) -> tuple[int, ...]:
        """Most windows that can read one input position; of adaptive ones, see `longest_part`."""
        if self.adaptive:
            return tuple(map(longest_part, output_size, size))
        return tuple(-(-k // e) for k, e in zip(self.kernel, self.every, strict=True))

    @remembered
    def input_size(self, output_size: Sequence[int], extra: Sequence[int]) -> tuple[int, ...]:
        """Extents of the smallest grid over which the window gives `output_size`, and `extra` more."""
        return tuple(
            (out - 1) * s - before - after + d * (k - 1) + 1 + more
            for out, s, (before, after), d, k, more in zip(
                output_size, self.stride, self.padding, self.dilation, self.kernel, extra, strict=True
            )
        )

    @remembered
    def fitted(self, size: Sequence[int], output_size: Sequence[int]) -> Window:
        """The same window with the padding after the grid of extents `size` such that the last output ends with it.

        The padding is negative where the last inputs are not read.
        """
        least = self.input_size(output_size, (0,) * self.axes)
        padding = tuple(
            (before, after - extent + needed)
            for (before, after), extent, needed in zip(self.padding, size, least, strict=True)
        )
        return replace(self, padding=padding)

    @remembered
    def lifted(self) -> Window:
        """The same window on three axes."""
        padding = ((0, 0),) * (AXES - self.axes) + self.padding
        tile = lift(self.tile)
        return Window(
            lift(self.kernel), lift(self.stride), padding, lift(self.dilation), self.groups, tile, self.adaptive
        )

    @remembered
    def over_elements(self, channels: int, width: int, vector: int) -> tuple[Window, tuple[int, int]]:
        """The same window over the elements of each line of a channels-last grid, taken as a grid of one channel.

        A line of the window is `kernel` times `channels` neighbouring elements. It is widened in front and after, so
        that it starts, in lines of `width` positions, at a multiple of as many elements as divide its steps, `vector`
        at most: then so many can be loaded at once, and they are all on the grid or all off it. (Triton knows of a
        number only whether 16 divides it.)

        Returns:
            The window, and where in its line the taps start and end that count.
        """
        step, (before, after) = self.stride[-1] * channels, self.padding[-1]
        vector = math.gcd(vector, step) if width * channels % 16 == 0 else 1
        start = -before * channels % vector
        end = start + self.kernel[-1] * channels
        extent = -(-end // vector) * vector
        padding = (before * channels + start, after * channels + extent - end)
        kernel, stride, padding = (*self.kernel[:-1], extent), (*self.stride[:-1], step), (*self.padding[:-1], padding)
        return replace(self, kernel=kernel, stride=stride, padding=padding), (start, end)

    @remembered
    def covers(self, size: Sequence[int]) -> bool:
        """Whether the window is a grid of extents `size`, of more than one position: one output reads all of it.

        Such a layer is a linear one, whose features are (tap, channel).
        """
        dense = not any(self.flat_padding) and all(
            d == 1 or k == 1 for d, k in zip(self.dilation, self.kernel, strict=True)
        )
        connected = self.groups == self.tiles == 1 and not self.adaptive
        return self.taps > 1 and self.kernel == tuple(size) and dense and connected

    @remembered
    def without_idle_strides(self, size: Sequence[int], output_size: Sequence[int]) -> Window:
        """The same window, with no stride longer than the grid of extents `size` where it gives one output only."""
        stride = tuple(
            min(s, extent) if out == 1 else s for s, extent, out in zip(self.stride, size, output_size, strict=True)
        )
        return replace(self, stride=stride)

    @staticmethod
    @remembered
    def dividing(size: Sequence[int], output_size: Sequence[int]) -> Window:
        """The adaptive window over a grid of extents `size` that gives `output_size`."""
        ones = (1,) * len(size)
        kernel = tuple(map(longest_part, size, output_size))
        return Window(kernel, ones, ((0, 0),) * len(size), ones, adaptive=True)

    @remembered
    def fixed_where_even(self, size: Sequence[int], output_size: Sequence[int]) -> Window:
        """The same window, no longer adaptive where it divides the grid into equal parts."""
        if not self.adaptive or any(k * out != s for k, out, s in zip(self.kernel, output_size, size, strict=True)):
            return self
        return replace(self, stride=self.kernel, adaptive=False)

    @remembered
    def constant_count(self, size: Sequence[int], output_size: Sequence[int], padded: bool) -> int:
        """Inputs in every window (among them the padding if `padded`), 0 where they differ; without dilation."""
        whole = not self.adaptive
        for kernel, stride, (before, after), extent, out in zip(
            self.kernel, self.stride, self.padding, size, output_size, strict=True
        ):
            end = (out - 1) * stride - before + kernel
            whole &= end <= extent + after if padded else before == 0 and end <= extent
        return self.taps if whole else 0

    @remembered
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


@remembered
def _from_flat(flat: tuple[int, ...]) -> Window:
    axes = len(flat) // 6
    kernel, stride, dilation, tile = (flat[part * axes : (part + 1) * axes] for part in range(4))
    padding = tuple(zip(flat[4 * axes : 6 * axes : 2], flat[4 * axes + 1 : 6 * axes : 2], strict=True))
    return Window(kernel, stride, padding, dilation, flat[-2], tile, bool(flat[-1]))


POINT = Window((1,) * AXES, (1,) * AXES, ((0, 0),) * AXES, (1,) * AXES, tile=(1,) * AXES)  # looks at one position


def shape_of(t: Tensor) -> tuple[int, ...]:
    """t.shape, but in plain ints under torch.jit.trace, whose tensors neither a window nor an operator takes."""
    return tuple(map(int, t.shape)) if torch.jit.is_tracing() else t.shape


def cdiv(a: int, b: int) -> int:
    """a / b rounded up; triton.cdiv, made for kernels too, takes ten times as long."""
    return -(-a // b)


def lift(values: Sequence[int]) -> tuple[int, ...]:
    """One int for each of three axes: ones in front."""
    return (1,) * (AXES - len(values)) + tuple(values)


def lift_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return extents (N, D, H, W, C) of the memory of a channels-last [N, C, *grid]."""
    return shape[0], *lift(shape[2:]), shape[1]


def longest_part(extent: int, parts: int) -> int:
    """A bound on the positions in one of the parts that an adaptive window divides `extent` positions into.

    Part p has the positions i from floor(p * extent / parts) to ceil((p + 1) * extent / parts) - 1. Of these two, the
    first says that p * extent < (i + 1) * parts and the second that i * parts < (p + 1) * extent: exchange i with p and
    extent with parts, and they say the same. So the parts that have position i are those from floor(i * parts / extent)
    to ceil((i + 1) * parts / extent) - 1, and `longest_part(parts, extent)` bounds their number.
    """
    parts = max(parts, 1)  # an output may be empty
    return extent // parts if extent % parts == 0 else (extent - 2) // parts + 2


def tap_dtype(taps: int) -> torch.dtype:
    """The narrowest integer that numbers the taps of a pooling window."""
    return torch.uint8 if taps <= 256 else torch.int32


def accumulator_dtype(x: Tensor) -> torch.dtype:
    """The type in which elements of x are summed."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def is_channels_last(x: Tensor) -> bool:
    """True if the memory of x [N, C, *grid], or of fewer axes, is dense with the channels last."""
    if x.dim() in FORMATS:
        return x.is_contiguous(memory_format=FORMATS[x.dim()])
    return (x if x.dim() < 3 else x.movedim(1, -1)).is_contiguous()


def to_channels_last(x: Tensor) -> Tensor:
    """Return x [N, C, *grid], or of fewer axes, in such memory: no copy where it is."""
    if x.dim() in FORMATS:
        return x.contiguous(memory_format=FORMATS[x.dim()])
    return x.contiguous() if x.dim() < 3 else x.movedim(1, -1).contiguous().movedim(-1, 1)


def new_channels_last(x: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """Return an uninitialised [N, C, *grid], whose memory is channels-last, of x's dtype unless another is given."""
    layout = (0, *range(2, len(shape)), 1)
    return torch.empty_permuted(tuple(shape), layout, dtype=dtype or x.dtype, device=x.device)


def fake(x: Tensor, shape: Sequence[int], *others: Tensor) -> Tensor:
    """Return an output of a launcher, [N, C, *grid] in the memory format of x and others, without its values."""
    return torch.empty(tuple(shape), dtype=x.dtype, device=x.device, memory_format=memory_format(x, *others))


def memory_format(*tensors: Tensor) -> torch.memory_format:
    """channels_last (of 2 or 3 grid axes) where any of the tensors is strided so, as in torch; else contiguous.

    So are a slice and a chunk of a channels_last tensor.
    """
    for t in tensors:
        preferred = FORMATS.get(t.dim())
        if preferred is None or t.stride(-1) < t.stride(1):
            continue
        is_dense = t.is_contiguous(memory_format=preferred) and not t.is_contiguous()  # the usual case, told quickly
        if (is_dense and 1 not in t.shape) or _is_strided_as_channels_last(t.shape, t.stride()):
            return preferred
    return torch.contiguous_format


def in_layout(layout: torch.memory_format, linear: Callable[..., Tensor], g: Tensor, *args: object) -> Tensor:
    """Return linear(g, ...), whose layout is that of g, in `layout`.

    Kernels read channels_last: a g that is not is copied here in place of there, and what they make is kept.
    """
    if layout != torch.contiguous_format:
        g = g.contiguous(memory_format=layout)
    return linear(g, *args).contiguous(memory_format=layout)


def _is_strided_as_channels_last(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Decide as torch's is_channels_last_strides_2d and _3d in c10/core/MemoryFormat.h."""
    step = 0
    if strides[1] == 0:
        return False
    for axis in (1, *range(len(shape) - 1, 1, -1), 0):
        if shape[axis] == 0 or strides[axis] < step or (axis == 0 and step == strides[1]):
            return False
        step = strides[axis] * max(shape[axis], 1)
    return True
