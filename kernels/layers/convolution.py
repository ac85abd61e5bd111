"""Convolution, transposed convolution and linear layers, and those of other connectivity."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import functional
from kernels.backend import autocast_dtype
from kernels.checks import POOLING_ARGUMENTS, IntOrTuple, check_activation, check_int, make_window, per_axis
from kernels.functional.connectivity import check_table, connect
from kernels.layers.pooling import CrossChannelMaxPool


class _Convolution(nn.modules.conv._ConvNd):
    """What the convolution layers share: torch's layer, plus padding="full" and what is fused into it.

    Args:
        activation: None or "relu".
        pool: a MaxPool layer of as many axes (torch's or ours) or a CrossChannelMaxPool, to be fused.

    Called with the input, and if wanted with a residual that is added before the activation: fused too, where the sum
    has the shape and dtype of the output; `activation` and `max_pool` of a call are fused into that call.
    """

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
        pool: nn.Module | None = None,
    ) -> None:
        name = type(self).__name__
        full = isinstance(padding, str) and padding == "full"
        if full and padding_mode != "zeros":
            raise ValueError(f"{name}: padding='full' needs padding_mode='zeros', got {padding_mode!r}")
        known = 0 if full else padding
        super().__init__(
            in_channels, out_channels, kernel_size, stride, known, dilation, groups, bias, padding_mode, device, dtype
        )
        if full:
            self.padding = padding
        self.activation = check_activation(name, activation)
        self.pool = pool
        self._fused_pooling()  # refuses what cannot be fused

    def forward(
        self, input: Tensor, residual: Tensor | None = None,
        *, activation: str | None = None, max_pool: dict[str, Any] | None = None,
    ) -> Tensor:  # fmt: skip
        activation = activation or self.activation
        if max_pool is not None and self.pool is not None:
            raise ValueError(f"{type(self).__name__}: max_pool cannot be asked of a layer that has a pool already")
        pooling = self._fused_pooling() if max_pool is None else {"max_pool": max_pool}
        if residual is None or pooling or fuses_residual(residual, self._output_shape(input), output_dtype(input)):
            return self._convolve(input, residual, activation, pooling)
        y = self._convolve(input, None, None, {}) + residual
        return y.relu() if check_activation(type(self).__name__, activation) else y

    def transpose(self, output: Tensor, output_padding: IntOrTuple = 0) -> Tensor:
        """The transpose of this convolution without its bias, by the same weight: from an output back to an input.

        Args:
            output: [N, out_channels, *grid].
            output_padding: positions to add after each axis of the result, where a stride leaves open how many.
        """
        transposed = getattr(functional, f"conv_transpose{len(self.kernel_size)}d")
        return transposed(
            output, self.weight, None, self.stride, self.padding, output_padding, self.groups, self.dilation
        )

    def _convolve(
        self, input: Tensor, residual: Tensor | None, activation: str | None, pooling: dict[str, Any]
    ) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return self.functional(
            input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups,
            activation=activation, residual=residual, **pooling,
        )  # fmt: skip

    def _output_shape(self, input: Tensor) -> tuple[int, ...]:
        axes = len(self.kernel_size)
        window = make_window(type(self).__name__, self.kernel_size, self.stride, self.padding, self.dilation)
        return (*input.shape[: -axes - 1], self.out_channels, *window.output_size(input.shape[-axes:]))

    def _fused_pooling(self) -> dict[str, Any]:
        pool, axes = self.pool, len(self.kernel_size)
        if pool is None:
            return {}
        if isinstance(pool, CrossChannelMaxPool):
            check_divides(type(self).__name__, pool.pool_size, self.out_channels // self.groups)
            return {"maxout": pool.pool_size}
        fusible = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[axes - 1]
        if not isinstance(pool, fusible) or pool.return_indices:
            wanted = f"a {fusible.__name__} without indices or a CrossChannelMaxPool"
            raise ValueError(f"{type(self).__name__}: pool must be {wanted}, got {pool!r}")
        return {"max_pool": max_pool_arguments(pool)}

    def extra_repr(self) -> str:
        return _with_activation(super().extra_repr(), self.activation)


def fuses_residual(residual: Any, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether adding `residual` to an output of `shape` and `dtype` leaves these as they are."""
    return isinstance(residual, Tensor) and residual.shape == shape and residual.dtype == dtype


def output_dtype(input: Tensor) -> torch.dtype:
    """Of a convolution or a product, which autocast casts."""
    dtype = autocast_dtype(input)
    return input.dtype if dtype is None or input.dtype == torch.float64 else dtype


def max_pool_arguments(pool: nn.Module) -> dict[str, Any]:
    """The arguments of a MaxPool layer by name, as `functional.conv2d` takes them to fuse it."""
    return {name: getattr(pool, name) for name in POOLING_ARGUMENTS}


def check_divides(name: str, pool_size: int, channels: int) -> None:
    if channels % pool_size:
        raise ValueError(f"{name}: pool_size must divide the output channels of a group, {channels}, got {pool_size}")


class Conv1d(_Convolution, nn.Conv1d):
    """torch.nn.Conv1d by `functional.conv1d`; `activation="relu"` and `pool` are fused into it."""

    functional = staticmethod(functional.conv1d)


class Conv2d(_Convolution, nn.Conv2d):
    """torch.nn.Conv2d by `functional.conv2d`; `activation="relu"` and `pool` are fused into it."""

    functional = staticmethod(functional.conv2d)


class Conv3d(_Convolution, nn.Conv3d):
    """torch.nn.Conv3d by `functional.conv3d`; `activation="relu"` and `pool` are fused into it."""

    functional = staticmethod(functional.conv3d)


class _ConvolutionTranspose(nn.modules.conv._ConvTransposeNd):
    functional: Callable[..., Tensor]

    def __init__(self, *args: Any, activation: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation = check_activation(type(self).__name__, activation)

    def forward(self, input: Tensor, output_size: list[int] | None = None, *, activation: str | None = None) -> Tensor:
        extra = self.output_padding
        if output_size is not None:
            extra = self._output_padding(
                input, output_size, self.stride, self.padding, self.kernel_size, len(self.kernel_size), self.dilation
            )
        return self.functional(
            input, self.weight, self.bias, self.stride, self.padding, extra, self.groups, self.dilation,
            activation=activation or self.activation,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return _with_activation(super().extra_repr(), self.activation)


class ConvTranspose1d(_ConvolutionTranspose, nn.ConvTranspose1d):
    """torch.nn.ConvTranspose1d by `functional.conv_transpose1d`; `activation="relu"` is fused into it."""

    functional = staticmethod(functional.conv_transpose1d)


class ConvTranspose2d(_ConvolutionTranspose, nn.ConvTranspose2d):
    """torch.nn.ConvTranspose2d by `functional.conv_transpose2d`; `activation="relu"` is fused into it."""

    functional = staticmethod(functional.conv_transpose2d)


class ConvTranspose3d(_ConvolutionTranspose, nn.ConvTranspose3d):
    """torch.nn.ConvTranspose3d by `functional.conv_transpose3d`; `activation="relu"` is fused into it."""

    functional = staticmethod(functional.conv_transpose3d)


class Linear(nn.Linear):
    """torch.nn.Linear by `functional.linear`; `activation="relu"` and a CrossChannelMaxPool are fused into it."""

    functional = staticmethod(functional.linear)

    def __init__(
        self, *args: Any, activation: str | None = None, pool: CrossChannelMaxPool | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.activation = check_activation("Linear", activation)
        if pool is not None and not isinstance(pool, CrossChannelMaxPool):
            raise ValueError(f"Linear: pool must be a CrossChannelMaxPool, got {pool!r}")
        if pool is not None:
            check_divides("Linear", pool.pool_size, self.out_features)
        self.pool = pool

    def forward(self, input: Tensor, residual: Tensor | None = None, *, activation: str | None = None) -> Tensor:
        activation = activation or self.activation
        if self.pool is None and residual is not None:
            shape = (*input.shape[:-1], self.out_features)
            if not fuses_residual(residual, shape, output_dtype(input)):
                y = self.functional(input, self.weight, self.bias) + residual
                return y.relu() if check_activation("Linear", activation) else y
        maxout = 1 if self.pool is None else self.pool.pool_size
        return self.functional(input, self.weight, self.bias, activation=activation, residual=residual, maxout=maxout)

    def extra_repr(self) -> str:
        return _with_activation(super().extra_repr(), self.activation)


class _Connectivity(nn.Module):
    """A 2-D convolution whose weight is not [O, C/groups, KH, KW], initialised as torch's is, by fan-in."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: IntOrTuple, stride: IntOrTuple,
        padding: IntOrTuple | str, dilation: IntOrTuple, groups: int, activation: str | None,
    ) -> None:  # fmt: skip
        super().__init__()
        name = type(self).__name__
        self.in_channels = check_int(name, "in_channels", in_channels, least=1)
        self.out_channels = check_int(name, "out_channels", out_channels, least=1)
        self.kernel_size = per_axis(name, "kernel_size", kernel_size, 2, least=1)
        self.window = make_window(name, self.kernel_size, stride, padding, dilation, groups)
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"{name}: groups must divide {in_channels} and {out_channels} channels, got {groups}")
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.activation = check_activation(name, activation)

    def _initialise(self, weight: tuple[int, ...], bias: tuple[int, ...] | None, fan_in: int, **factory: Any) -> None:
        """Parameters of these shapes, uniform within 1 / sqrt(fan_in) as torch's."""
        bound = 1 / math.sqrt(fan_in)
        self.weight = nn.Parameter(torch.empty(weight, **factory).uniform_(-bound, bound))
        self.bias = None if bias is None else nn.Parameter(torch.empty(bias, **factory).uniform_(-bound, bound))

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        return _with_activation(f"{text}, padding={self.padding}, dilation={self.dilation}", self.activation)


class TiledConv2d(_Connectivity):
    """Convolution with `tile` (TH, TW) kernels that take turns over the positions, by `functional.tiled_conv2d`.

    Parameters:
        weight: [TH, TW, O, C/groups, KH, KW]; bias: [TH, TW, O].
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: IntOrTuple, tile: IntOrTuple,
        stride: IntOrTuple = 1, padding: IntOrTuple | str = 0, dilation: IntOrTuple = 1, groups: int = 1,
        bias: bool = True, device: torch.device | str | None = None, dtype: torch.dtype | None = None,
        *, activation: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, activation)
        self.tile = per_axis(type(self).__name__, "tile", tile, 2, least=1)
        kernel = (in_channels // groups, *self.kernel_size)
        outputs = (*self.tile, out_channels)
        self._initialise((*outputs, *kernel), outputs if bias else None, math.prod(kernel), device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        return functional.tiled_conv2d(
            input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups,
            activation=self.activation,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, tile={self.tile}"


class LocalConv2d(_Connectivity):
    """Local connections, a kernel for each output position of images of `input_size`, by `functional.local_conv2d`.

    Parameters:
        weight: [P, Q, O, C/groups, KH, KW]; bias: [P, Q, O].
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: IntOrTuple, input_size: IntOrTuple,
        stride: IntOrTuple = 1, padding: IntOrTuple | str = 0, dilation: IntOrTuple = 1, groups: int = 1,
        bias: bool = True, device: torch.device | str | None = None, dtype: torch.dtype | None = None,
        *, activation: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, activation)
        name = type(self).__name__
        self.input_size = per_axis(name, "input_size", input_size, 2, least=1)
        size = self.window.output_size(self.input_size)
        if min(size) < 1:
            raise ValueError(f"{name}: kernel_size {self.kernel_size} does not fit on input_size {self.input_size}")
        kernel = (in_channels // groups, *self.kernel_size)
        outputs = (*size, out_channels)
        self._initialise((*outputs, *kernel), outputs if bias else None, math.prod(kernel), device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        return functional.local_conv2d(
            input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups,
            activation=self.activation,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, input_size={self.input_size}"


class TableConv2d(_Connectivity):
    """Convolution whose output channels see the input channels that `table` [O, C] of bool names, as LeNet-5's C3.

    Parameters:
        weight: [K, KH, KW], one kernel for each of the K connections, in the order of the table's rows; bias: [O].
    """

    def __init__(
        self, table: Tensor, kernel_size: IntOrTuple,
        stride: IntOrTuple = 1, padding: IntOrTuple | str = 0, dilation: IntOrTuple = 1,
        bias: bool = True, device: torch.device | str | None = None, dtype: torch.dtype | None = None,
        *, activation: str | None = None,
    ) -> None:  # fmt: skip
        index = check_table(type(self).__name__, table)
        super().__init__(table.shape[1], table.shape[0], kernel_size, stride, padding, dilation, 1, activation)
        self.register_buffer("table", table.clone().to(device))
        self.register_buffer("index", index.to(device), persistent=False)  # a call need not look the table up
        taps = math.prod(self.kernel_size)
        fan_in = taps * table.sum(1).clamp(min=1)
        outputs = (table.shape[0],) if bias else None
        self._initialise((len(index), *self.kernel_size), outputs, 1, device=device, dtype=dtype)
        with torch.no_grad():
            self.weight /= fan_in[index // table.shape[1]].sqrt().view(-1, 1, 1).to(device)
            if bias:
                self.bias /= fan_in.sqrt().to(device)

    def forward(self, input: Tensor) -> Tensor:
        dense = connect(type(self).__name__, self.weight, self.index, tuple(self.table.shape))
        return functional.conv2d(
            input, dense, self.bias, self.stride, self.padding, self.dilation, activation=self.activation
        )

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.index = check_table("TableConv2d", self.table)


def _with_activation(text: str, activation: str | None) -> str:
    return text if activation is None else f"{text}, activation={activation}"
