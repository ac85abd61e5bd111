"""One network, three ways of sharing kernels between positions: by all, by those that take turns, by none.

For digits of 12x12 and the default sizes the volumes are

    INPUT          12 x 12 x  1
    CONV1 + RELU   12 x 12 x 16   5x5 windows
    POOL1           6 x  6 x 16
    CONV2 + RELU    6 x  6 x 32   3x3 windows; connects the channels of a group only
    POOL2           3 x  3 x 32
    FC                 10         a score a class

The two convolutions have, for the connectivity "full", one kernel for all positions; for "tiled", `tile` x `tile`
kernels that take turns; for "local", one for each position: as many times the parameters, and as many connections.

Source: Goodfellow, Bengio and Courville, Deep Learning (2016), section 9.5, figures 9.14 and 9.16 for the positions and
figure 9.15 for the channels; Ngiam et al., "Tiled convolutional neural networks" (2010).
"""

from typing import Any

from torch import Tensor, nn

from kernels.layers import Conv2d, Linear, LocalConv2d, MaxPool2d, TiledConv2d
from lightning_modules.architectures.shapes import check_images, halved

CONNECTIVITIES = ("full", "tiled", "local")


class ConnectivityNet(nn.Module):
    """Two stages of convolution and pooling, then a fully connected layer.

    Args:
        input_shape: channels, height and width of the images.
        connectivity: who shares a kernel: "full" (all positions), "tiled" or "local" (none).
        tile: number of kernels that take turns along each axis, where it is "tiled".
        groups: of channels that the second stage does not connect. Half as many as channels of the first: each output
            channel sees two.
        filters: channels after the first and after the second stage.
        kernel_sizes: sides of the square windows of the two convolutions, in pixels; odd.
        classes: number of scores.

    Raises:
        ValueError: the connectivity is none of these, the images are too small to be pooled twice, a window is even, or
            the groups do not divide the channels.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int] = (1, 12, 12),
        connectivity: str = "full",
        tile: int = 2,
        groups: int = 1,
        filters: tuple[int, int] = (16, 32),
        kernel_sizes: tuple[int, int] = (5, 3),
        classes: int = 10,
    ) -> None:
        super().__init__()
        channels, height, width = input_shape
        if connectivity not in CONNECTIVITIES:
            raise ValueError(f"connectivity must be one of {', '.join(CONNECTIVITIES)}, got {connectivity!r}")
        if any(kernel % 2 == 0 for kernel in kernel_sizes):
            raise ValueError(f"kernel_sizes must be odd, got {tuple(kernel_sizes)}")
        rows, columns = halved(input_shape, times=2)
        self.input_shape = input_shape
        self.classes = classes

        def convolution(few: int, many: int, kernel: int, size: tuple[int, int], groups: int) -> nn.Module:
            window: dict[str, Any] = {"padding": kernel // 2, "groups": groups, "activation": "relu"}
            if connectivity == "tiled":
                return TiledConv2d(few, many, kernel, tile, **window)
            if connectivity == "local":
                return LocalConv2d(few, many, kernel, size, **window)
            return Conv2d(few, many, kernel, **window)

        self.conv1 = convolution(channels, filters[0], kernel_sizes[0], (height, width), 1)
        self.pool1 = MaxPool2d(2)
        self.conv2 = convolution(filters[0], filters[1], kernel_sizes[1], (height // 2, width // 2), groups)
        self.pool2 = MaxPool2d(2)
        self.fc = Linear(filters[1] * rows * columns, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, classes] of images [N, C, H, W]."""
        check_images(images, self.input_shape)
        volume = self.pool1(self.conv1(images))  # [N, filters[0], H/2, W/2]
        return self.fc(self.pool2(self.conv2(volume)).flatten(1))
