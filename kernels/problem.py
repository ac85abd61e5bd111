"""One convolution to inspect, tune or time: its extents, its tensors, and its three operations by the launchers."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from kernels import conv
from kernels.shape import FORMATS, Window, cdiv

OPERATIONS = ("forward", "input_gradient", "weight_gradient")


@dataclass(frozen=True)
class Problem:
    """A convolution, its tensors channels-last.

    Args:
        batch, channels, outputs: N, C and O, of all groups.
        size: extents of the input grid; () is a linear layer.
    """

    batch: int
    channels: int
    outputs: int
    size: tuple[int, ...]
    window: Window
    dtype: torch.dtype = torch.float16

    @property
    def output_size(self) -> tuple[int, ...]:
        return self.window.output_size(self.size)

    @property
    def flops(self) -> int:
        return conv.flops(self.batch, self.channels, self.outputs, self.size, self.window)

    def bytes(self, operation: str) -> int:
        """Bytes that one of OPERATIONS must read and write at least: its result, and once what it needs of its factors.

        It needs no inputs that lie between windows, no weights that only ever meet padding, no gradients of outputs
        that read nothing else.
        """
        size, taps, output_size = self.size, (*self.window.kernel, *self.window.tile), self.output_size
        axes = [_used(self.window, axis, size[axis], output_size[axis]) for axis in range(len(size))]
        inputs, weights, outputs = (prod(counts) for counts in zip(*axes, strict=True)) if axes else (1, 1, 1)
        if operation == "forward":
            outputs = prod(output_size)
        elif operation == "input_gradient":
            inputs = prod(size)
        else:
            weights = prod(taps)
        of_weights = self.outputs * (self.channels // self.window.groups)
        elements = self.batch * (self.channels * inputs + self.outputs * outputs) + of_weights * weights
        return self.dtype.itemsize * elements

    def tensors(self, device: torch.device | str, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """x, weight and dy, channels-last: random numbers, or nothing on the device "meta"."""
        window = self.window
        shapes = (
            (self.batch, self.channels, *self.size),
            (window.tiles * self.outputs, self.channels // window.groups, *window.kernel),
            (self.batch, self.outputs, *self.output_size),
        )
        if torch.device(device).type == "meta":
            drawn = [torch.empty(shape, dtype=self.dtype, device=device) for shape in shapes]
        else:
            generator = torch.Generator(device).manual_seed(seed)
            drawn = [torch.randn(shape, dtype=torch.float32, device=device, generator=generator) for shape in shapes]
            drawn[1] *= prod(shapes[1][1:]) ** -0.5
        last = (t.to(self.dtype).contiguous(memory_format=FORMATS.get(t.dim(), torch.contiguous_format)) for t in drawn)
        x, weight, dy = last
        return x, weight, dy

    def run(self, operation: str, x: Tensor, weight: Tensor, dy: Tensor) -> Tensor:
        """y, dx or dw by the launcher of one of OPERATIONS."""
        if operation == "forward":
            return conv.forward(x, weight, None, None, self.window, False)
        if operation == "input_gradient":
            return conv.transpose(dy, weight, None, None, self.window, self.size, False)
        return conv.weight_gradient(x, dy, None, self.window, False)[0]

    def __str__(self) -> str:
        window = self.window
        across = "x".join(map(str, window.kernel)) or "linear"
        grid = f" at {'x'.join(map(str, self.size))}" if self.size else ""
        extra = [
            f"{name} {'x'.join(map(str, values)) if len(set(values)) > 1 else values[0]}"
            for name, values in (("stride", window.stride), ("dilation", window.dilation), ("tile", window.tile))
            if any(value > 1 for value in values)
        ]
        groups = [f"groups {window.groups}"] if window.groups > 1 else []
        dtype = str(self.dtype).removeprefix("torch.")
        first = f"{across} {self.channels} -> {self.outputs}{grid}"
        return ", ".join([first, *extra, *groups, f"N {self.batch}", dtype])


def _used(window: Window, axis: int, size: int, output_size: int) -> tuple[int, int, int]:
    """Return the inputs, weights and outputs along an axis that are in a product at all, padding apart: how many."""
    stride, (before, _), dilation = window.stride[axis], window.padding[axis], window.dilation[axis]
    tile = window.tile[axis] if window.tile else 1
    inputs: dict[int, list[range]] = {}  # that are read, over the stride, by remainder
    outputs: list[range] = []
    weights = 0
    for tap in range(window.kernel[axis]):
        first = tap * dilation - before  # the input that the tap reads for output 0
        its = range(max(0, cdiv(-first, stride)), min(output_size, (size - 1 - first) // stride + 1))
        if its:
            outputs.append(its)
            weights += min(tile, len(its))
            whole, rest = divmod(first, stride)
            inputs.setdefault(rest, []).append(range(its.start + whole, its.stop + whole))
    return sum(map(_union, inputs.values())), weights, _union(outputs)


def _union(ranges: list[range]) -> int:
    """Return how many numbers are in any of the ranges, none of which has one below 0."""
    count = end = 0
    for each in sorted(ranges, key=lambda its: its.start):
        count += max(0, each.stop - max(each.start, end))
        end = max(end, each.stop)
    return count
