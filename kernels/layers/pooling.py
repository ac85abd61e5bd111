"""Pooling layers."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from kernels import functional
from kernels.checks import check_pool_size


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
        self.pool_size = check_pool_size("CrossChannelMaxPool", pool_size)

    def forward(self, input: Tensor) -> Tensor:
        return functional.cross_channel_max_pool(input, self.pool_size)

    def extra_repr(self) -> str:
        return f"pool_size={self.pool_size}"
