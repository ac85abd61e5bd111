"""Receptive fields: what the positions of a map read of the network's input, along one axis.

Through a window every position reads a hull of what its taps read. That is followed for a whole period of positions,
since after a transposed convolution or where a grid is enlarged neighbours read windows of different extents; then it
is exact for any chain, and for branches that meet.
(Araujo, Norris and Sim, "Computing receptive fields of convolutional neural networks", 2019, Distill.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from kernels.shape import Window

Span = tuple[int, int] | None  # first and last position, None for none


@dataclass(frozen=True)
class Reach:
    """Which inputs the positions of a map read along one axis, as if both went on beyond their edges.

    Position turns * len(spans) + phase reads from spans[phase][0] + turns * step to spans[phase][1] + turns * step.
    """

    step: int
    spans: tuple[Span, ...]

    @property
    def size(self) -> int:
        """Inputs from the first to the last that a position reads, of the position with the most."""
        return max((span[1] - span[0] + 1 for span in self.spans if span is not None), default=0)

    @property
    def jump(self) -> Fraction:
        """Inputs from what a position reads to what the next one reads, on average."""
        return Fraction(self.step, len(self.spans))

    def at(self, position: int) -> Span:
        turns, phase = divmod(position, len(self.spans))
        span = self.spans[phase]
        return None if span is None else (span[0] + turns * self.step, span[1] + turns * self.step)

    def through(self, sight: Sight) -> Reach:
        """What the positions read that read those of this map."""
        times = len(self.spans) // math.gcd(len(self.spans), sight.stride.numerator)
        period = sight.stride.denominator * times
        spans = tuple(_hull(map(self.at, sight.reads(position))) for position in range(period))
        return Reach(sight.stride.numerator * times // len(self.spans) * self.step, spans)

    def joined(self, other: Reach) -> Reach | None:
        """What positions read that read the same position of two maps; None where their grids do not match."""
        if self.jump != other.jump:
            return None
        period = math.lcm(len(self.spans), len(other.spans))
        spans = tuple(_hull((self.at(position), other.at(position))) for position in range(period))
        return Reach(int(self.jump * period), spans)


class Sight(NamedTuple):
    """How an operation looks at a grid along one axis.

    Args:
        stride: grid positions from one output to the next, a fraction where the grid is enlarged.
        reads: the grid positions that an output reads; those of output i + stride.denominator are further by
            stride.numerator.
    """

    stride: Fraction
    reads: Callable[[int], Iterable[int]]


SELF = Reach(1, ((0, 0),))  # each position of the input itself


def windowed(window: Window, size: Sequence[int], output_size: Sequence[int]) -> list[Sight]:
    """Of a window that slides over a grid of extents `size`, or divides it."""
    return [_windowed(window, axis, *extents) for axis, extents in enumerate(zip(size, output_size, strict=True))]


def _windowed(window: Window, axis: int, extent: int, outputs: int) -> Sight:
    if window.adaptive:
        return Sight(
            Fraction(extent, outputs),
            lambda position: range(position * extent // outputs, -(-(position + 1) * extent // outputs)),
        )
    kernel, stride, dilation = window.kernel[axis], window.stride[axis], window.dilation[axis]
    start = window.padding[axis][0]
    return Sight(
        Fraction(stride), lambda position: [position * stride - start + tap * dilation for tap in range(kernel)]
    )


def transposed(window: Window) -> list[Sight]:
    """Of the transpose of a convolution: an output reads the positions whose window it is in."""
    return [_transposed(window, axis) for axis in range(window.axes)]


def _transposed(window: Window, axis: int) -> Sight:
    kernel, stride, dilation = window.kernel[axis], window.stride[axis], window.dilation[axis]
    start = window.padding[axis][0]

    def reads(position: int) -> list[int]:
        reached = (position + start - tap * dilation for tap in range(kernel))
        return [place // stride for place in reached if place % stride == 0]

    return Sight(Fraction(1, stride), reads)


def resized(size: Sequence[int], output_size: Sequence[int], taps: int) -> list[Sight]:
    """Of a grid that is resized by interpolation between `taps` positions of each axis."""
    return [_resized(Fraction(extent, outputs), taps) for extent, outputs in zip(size, output_size, strict=True)]


def _resized(ratio: Fraction, taps: int) -> Sight:
    def reads(position: int) -> range:
        if taps == 1:
            start = math.floor(position * ratio)
        else:
            start = math.floor((position + Fraction(1, 2)) * ratio - Fraction(1, 2)) - (taps // 2 - 1)
        return range(start, start + taps)

    return Sight(ratio, reads)


def padded(before: Sequence[int]) -> list[Sight]:
    """Of a grid with so many more positions before its first, or fewer where it is < 0."""
    return [_padded(count) for count in before]


def _padded(count: int) -> Sight:
    return Sight(Fraction(1), lambda position: (position - count,))


def _hull(spans: Iterable[Span]) -> Span:
    known = [span for span in spans if span is not None]
    return (min(span[0] for span in known), max(span[1] for span in known)) if known else None
