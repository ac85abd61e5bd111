"""Layers that subclass torch.nn's, with the same arguments, initialisation and state_dict, on `kernels.functional`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kernels import functional
from kernels.shape import IntOrTuple


class _Convolution(nn.modules.conv._ConvNd):
    """What the convolution layers share: torch's layer, plus padding="full" and a fused activation."""

    functional: Callable[..., Tensor]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrTuple,
        stride: IntOrTuple = 1,
        padding: IntOrTuple | str = 0,
        dilation: IntOrTuple = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
    ) -> None:
        name = type(self).__name__
        if padding_mode != "zeros":
            raise ValueError(f"{name}: padding_mode must be 'zeros', got {padding_mode!r}")
        full = isinstance(padding, str) and padding == "full"
        known = 0 if full else padding
        super().__init__(
            in_channels, out_channels, kernel_size, stride, known, dilation, groups, bias, padding_mode, device, dtype
        )
        if full:
            self.padding = padding
        self.activation = functional.check_activation(name, activation)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return type(self).functional(
            input, weight, bias, self.stride, self.padding, self.dilation, self.groups, activation=self.activation
        )

    def extra_repr(self) -> str:
        return _with_activation(super().extra_repr(), self.activation)


class Conv1d(_Convolution, nn.Conv1d):
    """torch.nn.Conv1d by `functional.conv1d`; `activation="relu"` is fused into it."""

    functional = staticmethod(functional.conv1d)


class Conv2d(_Convolution, nn.Conv2d):
    """torch.nn.Conv2d by `functional.conv2d`; `activation="relu"` is fused into it."""

    functional = staticmethod(functional.conv2d)


class Conv3d(_Convolution, nn.Conv3d):
    """torch.nn.Conv3d by `functional.conv3d`; `activation="relu"` is fused into it."""

    functional = staticmethod(functional.conv3d)


class Linear(nn.Linear):
    """torch.nn.Linear by `functional.linear`; `activation="relu"` is fused into it."""

    def __init__(self, *args: Any, activation: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation = functional.check_activation("Linear", activation)

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight, self.bias, activation=self.activation)

    def extra_repr(self) -> str:
        return _with_activation(super().extra_repr(), self.activation)


class _MaxPool(nn.modules.pooling._MaxPoolNd):
    functional: Callable[..., Tensor | tuple[Tensor, Tensor]]

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return type(self).functional(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


class MaxPool1d(_MaxPool, nn.MaxPool1d):
    """torch.nn.MaxPool1d by `functional.max_pool1d`."""

    functional = staticmethod(functional.max_pool1d)


class MaxPool2d(_MaxPool, nn.MaxPool2d):
    """torch.nn.MaxPool2d by `functional.max_pool2d`."""

    functional = staticmethod(functional.max_pool2d)


class MaxPool3d(_MaxPool, nn.MaxPool3d):
    """torch.nn.MaxPool3d by `functional.max_pool3d`."""

    functional = staticmethod(functional.max_pool3d)


class CrossChannelMaxPool(nn.Module):
    """Maxout: the largest of each `pool_size` consecutive channels, [N, C, *] -> [N, C / pool_size, *]."""

    def __init__(self, pool_size: int) -> None:
        super().__init__()
        self.pool_size = functional.check_pool_size("CrossChannelMaxPool", pool_size)

    def forward(self, input: Tensor) -> Tensor:
        return functional.cross_channel_max_pool(input, self.pool_size)

    def extra_repr(self) -> str:
        return f"pool_size={self.pool_size}"


def _with_activation(text: str, activation: str | None) -> str:
    return text if activation is None else f"{text}, activation={activation}"
