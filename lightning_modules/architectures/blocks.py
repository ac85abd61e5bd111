"""What several architectures are built of."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kernels.layers import BatchNorm2d, Conv2d


class ConvNorm(nn.Module):
    """A convolution without bias, batch norm and ReLU.

    Args:
        channels, filters: of the input and of the output.
        kernel_size: side of the square windows.
        eps: of the batch norm.
        arguments: others of the convolution.
    """

    def __init__(self, channels: int, filters: int, kernel_size: int, eps: float = 1e-5, **arguments: Any) -> None:
        super().__init__()
        self.conv = Conv2d(channels, filters, kernel_size, bias=False, **arguments)
        self.bn = BatchNorm2d(filters, eps=eps, activation="relu")

    def forward(self, volume: Tensor) -> Tensor:
        """[N, channels, H, W] -> [N, filters, P, Q]."""
        return self.bn(self.conv(volume))


def numbered(layers: Mapping[int, nn.Module]) -> nn.Sequential:
    """Layers in a row, named by numbers as torchvision's, where what is fused here is a layer that has a number."""
    row = nn.Sequential()
    for number, layer in layers.items():
        row.add_module(str(number), layer)
    return row
