"""Convolution and linear layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kernels import functional
from kernels.checks import IntOrTuple, check_activation


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
        self.activation = check_activation(name, activation)

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
        self.activation = check_activation("Linear", activation)

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight, self.bias, activation=self.activation)

    def extra_repr(self) -> str:
        return _with_activation(super().extra_repr(), self.activation)


def _with_activation(text: str, activation: str | None) -> str:
    return text if activation is None else f"{text}, activation={activation}"
