"""Pooling layers."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from kernels import functional
from kernels.checks import check_int


class _MaxPool(nn.modules.pooling._MaxPoolNd):
    functional: Callable[..., Tensor | tuple[Tensor, Tensor]]

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.functional(
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


class _AvgPool(nn.modules.pooling._AvgPoolNd):
    functional: Callable[..., Tensor]

    def forward(self, input: Tensor) -> Tensor:
        divisor = () if isinstance(self, nn.AvgPool1d) else (self.divisor_override,)  # torch's has none on one axis
        return self.functional(
            input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad, *divisor
        )


class AvgPool1d(_AvgPool, nn.AvgPool1d):
    """torch.nn.AvgPool1d by `functional.avg_pool1d`."""

    functional = staticmethod(functional.avg_pool1d)


class AvgPool2d(_AvgPool, nn.AvgPool2d):
    """torch.nn.AvgPool2d by `functional.avg_pool2d`."""

    functional = staticmethod(functional.avg_pool2d)


class AvgPool3d(_AvgPool, nn.AvgPool3d):
    """torch.nn.AvgPool3d by `functional.avg_pool3d`."""

    functional = staticmethod(functional.avg_pool3d)


class _AdaptiveMaxPool(nn.modules.pooling._AdaptiveMaxPoolNd):
    functional: Callable[..., Tensor | tuple[Tensor, Tensor]]

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.functional(input, self.output_size, self.return_indices)


class AdaptiveMaxPool1d(_AdaptiveMaxPool, nn.AdaptiveMaxPool1d):
    """torch.nn.AdaptiveMaxPool1d by `functional.adaptive_max_pool1d`."""

    functional = staticmethod(functional.adaptive_max_pool1d)


class AdaptiveMaxPool2d(_AdaptiveMaxPool, nn.AdaptiveMaxPool2d):
    """torch.nn.AdaptiveMaxPool2d by `functional.adaptive_max_pool2d`."""

    functional = staticmethod(functional.adaptive_max_pool2d)


class AdaptiveMaxPool3d(_AdaptiveMaxPool, nn.AdaptiveMaxPool3d):
    """torch.nn.AdaptiveMaxPool3d by `functional.adaptive_max_pool3d`."""

    functional = staticmethod(functional.adaptive_max_pool3d)


class _AdaptiveAvgPool(nn.modules.pooling._AdaptiveAvgPoolNd):
    functional: Callable[..., Tensor]

    def forward(self, input: Tensor) -> Tensor:
        return self.functional(input, self.output_size)


class AdaptiveAvgPool1d(_AdaptiveAvgPool, nn.AdaptiveAvgPool1d):
    """torch.nn.AdaptiveAvgPool1d by `functional.adaptive_avg_pool1d`."""

    functional = staticmethod(functional.adaptive_avg_pool1d)


class AdaptiveAvgPool2d(_AdaptiveAvgPool, nn.AdaptiveAvgPool2d):
    """torch.nn.AdaptiveAvgPool2d by `functional.adaptive_avg_pool2d`."""

    functional = staticmethod(functional.adaptive_avg_pool2d)


class AdaptiveAvgPool3d(_AdaptiveAvgPool, nn.AdaptiveAvgPool3d):
    """torch.nn.AdaptiveAvgPool3d by `functional.adaptive_avg_pool3d`."""

    functional = staticmethod(functional.adaptive_avg_pool3d)


class CrossChannelMaxPool(nn.Module):
    """Maxout: the largest of each `pool_size` consecutive channels, [N, C, *] -> [N, C / pool_size, *]."""

    def __init__(self, pool_size: int) -> None:
        super().__init__()
        self.pool_size = check_int("CrossChannelMaxPool", "pool_size", pool_size, least=1)

    def forward(self, input: Tensor) -> Tensor:
        return functional.cross_channel_max_pool(input, self.pool_size)

    def extra_repr(self) -> str:
        return f"pool_size={self.pool_size}"
