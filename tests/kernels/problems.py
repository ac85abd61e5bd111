"""Named convolution and pooling problems, shared by the tests of every layer of the package."""

from dataclasses import dataclass
from math import prod

import pytest
import torch
from torch import Tensor

from kernels.checks import make_window
from kernels.shape import Window

LAYOUTS = ("contiguous", "channels_last", "strided", "expanded")


@dataclass(frozen=True)
class Problem:
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    batch: int = 2
    channels: int = 4
    outputs: int = 5
    stride: int | tuple[int, ...] = 1
    padding: int | tuple[int, ...] | str = 0
    dilation: int | tuple[int, ...] = 1
    groups: int = 1
    tile: tuple[int, ...] = ()
    layout: str = "contiguous"

    @property
    def window(self) -> Window:
        return make_window("problem", self.kernel, self.stride, self.padding, self.dilation, self.groups, self.tile)

    @property
    def steps(self) -> int:
        """Products summed in one output."""
        return prod(self.kernel) * self.channels // self.groups

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (self.batch, self.outputs, *self.window.output_size(self.size))

    def tensors(self, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """float64 input, weight, bias and gradient of the output, input and gradient in the problem's layout."""
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(device)  # noqa: E731
        x = lay_out(draw(self.batch, self.channels, *self.size), self.layout)
        dy = lay_out(draw(*self.output_shape), self.layout)
        outputs = prod(self.tile) * self.outputs
        return x, draw(outputs, self.channels // self.groups, *self.kernel), draw(outputs), dy


def lay_out(x: Tensor, layout: str) -> Tensor:
    """x with the same shape in another memory layout; "expanded" repeats its first sample with stride 0."""
    if layout == "channels_last":
        return x.to(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    if layout == "strided":
        wide = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1])
        wide[..., ::2] = x
        return wide[..., ::2]
    if layout == "expanded":
        return x[:1].expand_as(x)
    return x


CONVOLUTIONS = [
    pytest.param(Problem((9, 7), (3, 3)), id="no-power-of-two"),
    pytest.param(Problem((9, 7), (3, 3), padding=1, batch=1), id="batch-1"),
    pytest.param(Problem((9, 7), (3, 3), batch=0), id="empty-batch"),
    pytest.param(Problem((8, 8), (7, 7), padding="same", channels=1, outputs=16), id="one-channel-7x7"),
    pytest.param(Problem((15, 15), (7, 7), stride=2, padding=3, channels=3, outputs=6), id="stem-7x7-stride-2"),
    pytest.param(Problem((23, 23), (11, 11), stride=4, padding=2, channels=3, outputs=6), id="alexnet-11x11-stride-4"),
    pytest.param(Problem((11, 10), (2, 2), stride=3), id="stride-over-kernel"),
    pytest.param(Problem((9, 12), (1, 5), stride=(2, 1), padding=(0, 2)), id="asymmetric-window"),
    pytest.param(Problem((12, 11), (3, 2), dilation=(2, 3), padding=(2, 1)), id="dilation"),
    pytest.param(Problem((13, 13), (3, 3), stride=4, dilation=2, padding=2), id="dilation-divides-stride"),
    pytest.param(Problem((14, 13), (4, 3), stride=(2, 3), dilation=(3, 2)), id="dilation-coprime-to-stride"),
    pytest.param(Problem((7, 7), (4, 4), padding="same"), id="same-even-window"),
    pytest.param(Problem((5, 4), (3, 3), padding="full"), id="full"),
    pytest.param(Problem((5, 6), (5, 6)), id="window-as-large-as-image"),
    pytest.param(Problem((6, 6), (3, 3), padding=1, channels=6, outputs=4, groups=2), id="grouped"),
    pytest.param(Problem((6, 6), (3, 3), padding=1, stride=2, channels=6, outputs=6, groups=6), id="depthwise"),
    pytest.param(Problem((7, 6), (3, 3), dilation=2, channels=5, outputs=10, groups=5), id="depthwise-multiplier"),
    pytest.param(Problem((9,), (4,), stride=2, padding=2, channels=3, outputs=3, groups=3), id="depthwise-1-d"),
    pytest.param(Problem((7, 9), (3, 3), padding=1, tile=(2, 3)), id="tiled"),
    pytest.param(Problem((11, 12), (3, 2), stride=(2, 1), dilation=(1, 3), padding=2, tile=(3, 2)), id="tiled-strided"),
    pytest.param(Problem((7, 7), (3, 3), channels=4, outputs=6, groups=2, tile=(2, 2)), id="tiled-grouped"),
    pytest.param(Problem((6, 5), (3, 3), padding=1, stride=2, tile=(3, 3)), id="local"),
    pytest.param(Problem((4, 5, 4), (2, 2, 2), channels=2, tile=(1, 2, 2)), id="tiled-3-d"),
    pytest.param(Problem((6, 6), (3, 3), channels=3, outputs=3, groups=3, tile=(2, 2)), id="tiled-depthwise"),
    pytest.param(Problem((8, 8), (1, 1), channels=16, outputs=20, stride=2), id="pointwise-stride-2"),
    pytest.param(Problem((6, 6), (3, 3), padding=1, channels=32, outputs=48), id="channels-fill-a-step"),
    pytest.param(Problem((9, 7), (3, 3), padding=1, layout="channels_last"), id="channels-last"),
    pytest.param(Problem((9, 7), (3, 3), padding=1, stride=2, layout="strided"), id="non-contiguous"),
    pytest.param(Problem((9, 7), (3, 3), padding=1, layout="expanded"), id="expanded"),
    pytest.param(Problem((), (), channels=12, outputs=10, batch=7), id="linear"),
    pytest.param(Problem((17,), (4,), stride=3, padding=2), id="1-d"),
    pytest.param(Problem((5, 6, 7), (2, 3, 3), stride=(1, 2, 2), padding=1), id="3-d"),
    pytest.param(Problem((4, 6, 5), (3, 3, 3), padding=1, layout="channels_last"), id="3-d-channels-last"),
]


@dataclass(frozen=True)
class Pooling:
    """Max or average pooling; adaptive if it has an `output`, and fixed if it has a `kernel`."""

    size: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    stride: int | tuple[int, ...] | None = None
    padding: int | tuple[int, ...] = 0
    dilation: int | tuple[int, ...] = 1
    ceil_mode: bool = False
    batch: int = 2
    channels: int = 3
    values: str = "normal"
    layout: str = "contiguous"
    output: tuple[int, ...] = ()
    count_include_pad: bool = True
    divisor: int | None = None

    @property
    def window(self) -> Window:
        if self.output:
            return Window.dividing(self.size, self.output)
        stride = self.kernel if self.stride is None else self.stride
        return make_window("problem", self.kernel, stride, self.padding, self.dilation)

    @property
    def output_size(self) -> tuple[int, ...]:
        return self.output or self.window.output_size(self.size, self.ceil_mode)

    @property
    def max_call(self) -> tuple[str, tuple]:
        """Name and arguments, but the input, of the function of torch.nn.functional; with indices."""
        if self.output:
            return f"adaptive_max_pool{len(self.size)}d", (self.output, True)
        arguments = (self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode, True)
        return f"max_pool{len(self.size)}d", arguments

    @property
    def average_call(self) -> tuple[str, tuple]:
        if self.output:
            return f"adaptive_avg_pool{len(self.size)}d", (self.output,)
        arguments = (self.kernel, self.stride, self.padding, self.ceil_mode, self.count_include_pad)
        return f"avg_pool{len(self.size)}d", arguments if len(self.size) == 1 else (*arguments, self.divisor)

    def input(self, device: str, dtype: torch.dtype) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch, self.channels, *self.size)
        x = torch.randn(shape, generator=generator)
        if self.values == "positive":
            x = x.abs()
        if self.values == "ties":
            x = torch.randint(0, 3, shape, generator=generator).float()
        if self.values == "nan-and-infinite":
            x.view(-1)[::5], x.view(-1)[::3], x.view(-1)[::7] = float("nan"), float("-inf"), float("inf")
        return lay_out(x.to(device, dtype), self.layout)


POOLINGS = [
    pytest.param(Pooling((8, 8), (2, 2)), id="halving"),
    pytest.param(Pooling((9, 7), (3, 3), stride=2, padding=1), id="overlapping"),
    pytest.param(Pooling((7, 9), (3, 3), stride=2), id="ragged-edge-dropped"),
    pytest.param(Pooling((7, 10), (3, 3), stride=2, ceil_mode=True), id="ragged-edge-kept"),
    pytest.param(Pooling((10, 11), (2, 3), stride=(3, 2), padding=(1, 0), ceil_mode=True), id="asymmetric"),
    pytest.param(Pooling((11, 12), (3, 2), stride=2, padding=1, dilation=(2, 3)), id="dilated"),
    pytest.param(Pooling((12, 12), (3, 3), stride=4, dilation=2), id="dilation-divides-stride"),
    pytest.param(Pooling((9, 9), (2, 2), stride=3), id="stride-over-kernel"),
    pytest.param(Pooling((9, 9), (3, 3), stride=1, padding=1, values="ties"), id="ties"),
    pytest.param(Pooling((9, 9), (3, 3), stride=2, padding=1, values="nan-and-infinite"), id="nan-and-infinite"),
    pytest.param(Pooling((6, 5), (6, 5), channels=1), id="global"),
    pytest.param(Pooling((17, 18), (17, 17), stride=1), id="more-than-256-taps"),
    pytest.param(Pooling((8, 8), (2, 2), batch=0), id="empty-batch"),
    pytest.param(Pooling((9, 7), (3, 3), stride=2, layout="channels_last"), id="channels-last"),
    pytest.param(Pooling((9, 7), (3, 3), stride=2, layout="strided"), id="non-contiguous"),
    pytest.param(Pooling((9, 7), (3, 3), stride=2, layout="expanded"), id="expanded"),
    pytest.param(Pooling((30,), (5,), stride=2, padding=2, dilation=4, ceil_mode=True), id="1-d"),
    pytest.param(Pooling((5, 6, 7), (3, 3, 2), stride=(2, 1, 2), padding=1, ceil_mode=True), id="3-d"),
    pytest.param(Pooling((9, 7), output=(4, 3)), id="adaptive"),
    pytest.param(Pooling((8, 6), output=(4, 2)), id="adaptive-even"),
    pytest.param(Pooling((8, 7), output=(4, 3), channels=20), id="adaptive-even-on-one-axis"),
    pytest.param(Pooling((3, 4), output=(7, 6)), id="more-outputs-than-inputs"),
    pytest.param(Pooling((6, 5), output=(1, 1)), id="adaptive-global"),
    pytest.param(Pooling((11, 7), output=(3, 5), values="ties"), id="adaptive-ties"),
    pytest.param(Pooling((11, 7), output=(3, 5), values="nan-and-infinite"), id="adaptive-nan-and-infinite"),
    pytest.param(Pooling((35, 36), output=(2, 2)), id="adaptive-more-than-256-taps"),
    pytest.param(Pooling((9, 7), output=(4, 3), batch=0), id="adaptive-empty-batch"),
    pytest.param(Pooling((9, 7), output=(4, 3), layout="channels_last"), id="adaptive-channels-last"),
    pytest.param(Pooling((9, 7), output=(4, 3), layout="expanded"), id="adaptive-expanded"),
    pytest.param(Pooling((17,), output=(5,)), id="adaptive-1-d"),
    pytest.param(Pooling((5, 6, 7), output=(3, 8, 2)), id="adaptive-3-d"),
]

AVERAGES = [
    *(p for p in POOLINGS if p.values[0].dilation == 1),
    pytest.param(Pooling((9, 10), (3, 3), stride=2, padding=1, ceil_mode=True), id="ragged-edge-in-padding"),
    pytest.param(Pooling((8, 9), (3, 3), stride=2, padding=1, count_include_pad=False), id="padding-not-counted"),
    pytest.param(
        Pooling((10, 11), (2, 3), stride=(3, 2), padding=(1, 0), ceil_mode=True, count_include_pad=False),
        id="ragged-edge-not-counted",
    ),
    pytest.param(Pooling((9, 7), (3, 2), stride=2, padding=1, divisor=7), id="divisor"),
    pytest.param(Pooling((9, 7), (3, 3), stride=2, ceil_mode=True, divisor=-2), id="negative-divisor"),
    pytest.param(Pooling((30,), (5,), stride=2, padding=2, ceil_mode=True), id="average-1-d"),
]
