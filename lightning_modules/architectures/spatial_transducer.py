"""Spatial transducer net: nothing but convolutions, so that the output grows with the input; a label for every pixel.

For images of 64x64x3 and the default sizes the volumes are

    INPUT          64 x 64 x   3
    STEM + RELU    64 x 64 x  16   3x3 windows, as all that follow but the last
    DOWN1 + RELU   32 x 32 x  32   a convolution of stride 2, and one of stride 1
    DOWN2 + RELU   16 x 16 x  64
    DOWN3 + RELU    8 x  8 x  64
    UP3 + RELU     16 x 16 x  64   a transposed convolution of stride 2, plus the volume of this size on the way down,
    UP2 + RELU     32 x 32 x  32   and a convolution of stride 1
    UP1 + RELU     64 x 64 x  16
    SCORES         64 x 64 x  11   1x1 windows: the scores of each pixel

A stride of two makes (n + 1) // 2 of n pixels, and its transpose n again, be n odd or even: images have any size.

Source: Goodfellow, lecture slides for chapter 9 of Deep Learning (2016), "Major architectures", for the name and the
idea; Long, Shelhamer and Darrell, "Fully convolutional networks for semantic segmentation" (2015), for transposed
convolutions that are added to finer volumes.
"""

from itertools import pairwise

from torch import Tensor, nn

from kernels.layers import BatchNorm2d, Conv2d, ConvTranspose2d
from lightning_modules.architectures.shapes import check_any_size, check_input_shape


class SpatialTransducer(nn.Module):
    """Strided convolutions down to small volumes, and transposed ones back to the size of the images.

    Args:
        input_shape: channels, height and width of an example; images may have any size.
        filters: channels of the first convolution and after each stride of two.
        classes: number of scores of a pixel.

    Raises:
        ValueError: there is no channel.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int] = (3, 64, 64),
        filters: tuple[int, ...] = (16, 32, 64, 64),
        classes: int = 11,
    ) -> None:
        super().__init__()
        check_input_shape(input_shape, 1)
        self.input_shape = input_shape
        self.classes = classes
        self.stem = normalised(input_shape[0], filters[0])
        self.down = nn.ModuleList(
            nn.Sequential(normalised(few, many, stride=2), normalised(many, many)) for few, many in pairwise(filters)
        )
        self.up = nn.ModuleList(Up(many, few) for few, many in reversed(list(pairwise(filters))))
        self.scores = Conv2d(filters[0], classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, classes, H, W] of images [N, C, H, W]."""
        check_any_size(images, self.input_shape[0], 1)
        volume = self.stem(images)
        finer = []
        for down in self.down:
            finer.append(volume)
            volume = down(volume)
        for up in self.up:
            volume = up(volume, finer.pop())
        return self.scores(volume)


class Up(nn.Module):
    """A transposed convolution of stride 2, plus a finer volume, and a convolution."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.conv_transpose = ConvTranspose2d(channels, filters, 3, stride=2, padding=1, bias=False)
        self.norm = BatchNorm2d(filters, activation="relu")
        self.conv = normalised(filters, filters)

    def forward(self, volume: Tensor, finer: Tensor) -> Tensor:
        """[N, channels, H/2, W/2] and [N, filters, H, W] -> [N, filters, H, W]."""
        return self.conv(self.norm(self.conv_transpose(volume, finer.shape[2:]), finer))


def normalised(channels: int, filters: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution, batch norm and ReLU."""
    return nn.Sequential(
        Conv2d(channels, filters, 3, stride=stride, padding=1, bias=False), BatchNorm2d(filters, activation="relu")
    )
