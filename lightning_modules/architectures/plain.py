"""One switch from our layers to torch.nn's: the same network, computed by PyTorch and by nothing of `kernels`.

Layers change their class and nothing else, as in `kernels.convert`, of which this is the way back: parameters, buffers,
hooks and names stay, so that the state_dict does, and checkpoints of the one load into the other.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels import layers


def plain(network: nn.Module) -> nn.Module:
    """A copy of `network` in which every layer of `kernels.layers` is one of torch.nn, or of this file.

    The layers of this file subclass torch.nn's and are called as ours are, with `residual`, `activation` and
    `max_pool`, which they compute one after another. The network is left as it is. It must compute by layers: what it
    calls of `kernels.functional` by itself is called by the copy, too.

    Raises:
        TypeError: a module of `network` is made from one of `kernels` and has no counterpart: a subclass of a layer, or
            a model that `kernels.convert` traced.
    """
    network = copy.deepcopy(network)
    for name, module in network.named_modules():
        if type(module) in COUNTERPARTS:
            module.__class__ = COUNTERPARTS[type(module)]
            if isinstance(module, _Convolution | _Connectivity):
                module.take_over()
        elif any(kind.__module__.split(".")[0] == "kernels" for kind in type(module).__mro__):
            raise TypeError(f"plain: {name or 'network'} is a {type(module).__name__}, which torch.nn has nothing for")
    return network


class _Activation(nn.Module):
    """What our layers with an activation of None or "relu" share."""

    activation: str | None

    def _activated(self, y: Tensor, residual: Tensor | None = None, activation: str | None = None) -> Tensor:
        if residual is not None:
            y = y + residual
        return y.relu_() if activation or self.activation else y

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.activation is None else f"{text}, activation={self.activation}"


class _Convolution(_Activation):
    weight: Tensor
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    groups: int
    padding: Any
    dilation: tuple[int, ...]
    pool: nn.Module | None

    def take_over(self) -> None:
        """torch's layers know no padding="full": every overlap of the window and the grid."""
        if self.padding == "full":
            self.padding = tuple(d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True))

    def forward(
        self, input: Tensor, residual: Tensor | None = None,
        *, activation: str | None = None, max_pool: dict[str, Any] | None = None,
    ) -> Tensor:  # fmt: skip
        y = self._activated(super().forward(input), residual, activation)
        if max_pool is not None:
            y = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(self.kernel_size) - 1](y, **max_pool)
        return y if self.pool is None else self.pool(y)

    def transpose(self, output: Tensor, output_padding: int | list[int] = 0) -> Tensor:
        transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(self.kernel_size) - 1]
        return transposed(
            output, self.weight, None, self.stride, self.padding, output_padding, self.groups, self.dilation
        )


class Conv1d(_Convolution, nn.Conv1d):
    """kernels.layers.Conv1d, by torch."""


class Conv2d(_Convolution, nn.Conv2d):
    """kernels.layers.Conv2d, by torch."""


class Conv3d(_Convolution, nn.Conv3d):
    """kernels.layers.Conv3d, by torch."""


class _ConvolutionTranspose(_Activation):
    def forward(self, input: Tensor, output_size: list[int] | None = None, *, activation: str | None = None) -> Tensor:
        return self._activated(super().forward(input, output_size), activation=activation)


class ConvTranspose1d(_ConvolutionTranspose, nn.ConvTranspose1d):
    """kernels.layers.ConvTranspose1d, by torch."""


class ConvTranspose2d(_ConvolutionTranspose, nn.ConvTranspose2d):
    """kernels.layers.ConvTranspose2d, by torch."""


class ConvTranspose3d(_ConvolutionTranspose, nn.ConvTranspose3d):
    """kernels.layers.ConvTranspose3d, by torch."""


class Linear(_Activation, nn.Linear):
    """kernels.layers.Linear, by torch."""

    pool: "CrossChannelMaxPool | None"

    def forward(self, input: Tensor, residual: Tensor | None = None, *, activation: str | None = None) -> Tensor:
        y = self._activated(super().forward(input), residual, activation)
        return y if self.pool is None else y.unflatten(-1, (-1, self.pool.pool_size)).max(-1).values


class _BatchNorm(_Activation):
    def forward(self, input: Tensor, residual: Tensor | None = None, *, activation: str | None = None) -> Tensor:
        return self._activated(super().forward(input), residual, activation)


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """kernels.layers.BatchNorm1d, by torch."""


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """kernels.layers.BatchNorm2d, by torch."""


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """kernels.layers.BatchNorm3d, by torch."""


class CrossChannelMaxPool(nn.Module):
    """kernels.layers.CrossChannelMaxPool, by torch."""

    pool_size: int

    def forward(self, input: Tensor) -> Tensor:
        return input.unflatten(1, (-1, self.pool_size)).max(2).values

    def extra_repr(self) -> str:
        return f"pool_size={self.pool_size}"


class _Connectivity(_Activation):
    """A 2-D convolution whose weight is not [O, C/groups, KH, KW]."""

    weight: Tensor
    bias: Tensor | None

    def take_over(self) -> None:
        """Keep the numbers of the window, which is of `kernels`."""
        window = vars(self).pop("window")
        self.kernel_size, self.stride, self.dilation = window.kernel, window.stride, window.dilation
        self.padding = window.flat_padding_from_last


class TiledConv2d(_Connectivity):
    """kernels.layers.TiledConv2d, by torch: all windows of the input as one tensor, times the kernels by turns."""

    groups: int

    def forward(self, input: Tensor) -> Tensor:
        x = F.pad(input if input.dim() == 4 else input.unsqueeze(0), self.padding)
        for axis, (extent, step) in enumerate(zip(self.kernel_size, self.dilation, strict=True)):
            x = x.unfold(2 + axis, step * (extent - 1) + 1, self.stride[axis])
        x = x[..., :: self.dilation[0], :: self.dilation[1]]  # [N, C, P, Q, KH, KW]
        height, width = x.shape[2:4]
        th, tw = min(self.weight.shape[0], height), min(self.weight.shape[1], width)
        x = F.pad(x, (0, 0, 0, 0, 0, -width % tw, 0, -height % th))  # to whole rounds of turns
        x = x.unflatten(3, (-1, tw)).unflatten(2, (-1, th)).unflatten(1, (self.groups, -1))
        weight = self.weight[:th, :tw].unflatten(2, (self.groups, -1))
        y = torch.einsum("ngcaibjuv,ijgocuv->ngoaibj", x, weight).flatten(1, 2)  # [N, O, P/TH, TH, Q/TW, TW]
        if self.bias is not None:
            y = y + self.bias[:th, :tw].movedim(2, 0)[:, None, :, None, :]
        y = y.flatten(4, 5).flatten(2, 3)[:, :, :height, :width].contiguous()
        return self._activated(y if input.dim() == 4 else y.squeeze(0))


class LocalConv2d(TiledConv2d):
    """kernels.layers.LocalConv2d, by torch: every position has its turn."""

    input_size: tuple[int, int]

    def forward(self, input: Tensor) -> Tensor:
        if tuple(input.shape[-2:]) != self.input_size:
            raise ValueError(f"LocalConv2d: input must be of {self.input_size}, got {tuple(input.shape[-2:])}")
        return super().forward(input)


class TableConv2d(_Connectivity):
    """kernels.layers.TableConv2d, by torch: a dense convolution whose absent connections are zero."""

    table: Tensor

    def take_over(self) -> None:
        super().take_over()
        del self.index

    def forward(self, input: Tensor) -> Tensor:
        turn = self.table.flatten().cumsum(0).sub(1).clamp(min=0)  # of the kernel of a connection
        dense = self.weight[turn].unflatten(0, self.table.shape).masked_fill(~self.table[..., None, None], 0)
        return self._activated(F.conv2d(F.pad(input, self.padding), dense, self.bias, self.stride, 0, self.dilation))


_HERE = (
    Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d, Linear, BatchNorm1d, BatchNorm2d,
    BatchNorm3d, CrossChannelMaxPool, TiledConv2d, LocalConv2d, TableConv2d,
)  # fmt: skip
COUNTERPARTS: dict[type[nn.Module], type[nn.Module]] = {
    getattr(layers, name): {kind.__name__: kind for kind in _HERE}.get(name) or getattr(nn, name)
    for name in layers.__all__
}
