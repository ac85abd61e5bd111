"""A small Inception for CIFAR-10.

For images of 32x32x3 the volumes are, with the filters of 1x1 and of 3x3 windows for a module,

    INPUT            32 x 32 x   3
    CONV1            32 x 32 x  96   3x3 windows; after every convolution batch norm and ReLU
    INCEPTION1       32 x 32 x  64    32 +  32
    INCEPTION2       32 x 32 x  80    32 +  48
    DOWNSAMPLE1      16 x 16 x 160    80 of stride 2, beside the largest values of 3x3 windows of stride 2
    INCEPTION3       16 x 16 x 160   112 +  48
    INCEPTION4       16 x 16 x 160    96 +  64
    INCEPTION5       16 x 16 x 160    80 +  80
    INCEPTION6       16 x 16 x 144    48 +  96
    DOWNSAMPLE2       8 x  8 x 240    96 of stride 2, beside the largest values
    INCEPTION7        8 x  8 x 336   176 + 160
    INCEPTION8        8 x  8 x 336   176 + 160
    AVERAGE           1 x  1 x 336
    FC                      10       a score a class

Source: Zhang, Bengio, Hardt, Recht and Vinyals, "Understanding deep learning requires rethinking generalization"
(2017), appendix A, figure 3. The paper's images are the middle 28x28 pixels, and its batch norms do not scale. It does
not say how strides are padded: here by one pixel, so that an even size is halved; nor how weights are initialised: here
as in He et al., "Delving deep into rectifiers" (2015).
"""

import torch
from torch import Tensor, nn

from kernels.layers import AdaptiveAvgPool2d, Conv2d, Linear, MaxPool2d
from lightning_modules.architectures.blocks import ConvNorm
from lightning_modules.architectures.shapes import check_any_size, check_input_shape, scaled

# Filters of the 1x1 and 3x3 branches of an Inception module, or of the convolution of a Downsample module.
MODULES: tuple[tuple[int, ...], ...] = (
    (32, 32), (32, 48), (80,), (112, 48), (96, 64), (80, 80), (48, 96), (96,), (176, 160), (176, 160),
)  # fmt: skip


class Inception(nn.Module):
    """Convolutions of 1x1 and of 3x3 windows side by side: [N, channels, H, W] -> [N, ones + threes, H, W]."""

    def __init__(self, channels: int, ones: int, threes: int) -> None:
        super().__init__()
        self.ones = ConvNorm(channels, ones, 1)
        self.threes = ConvNorm(channels, threes, 3, padding=1)

    def forward(self, volume: Tensor) -> Tensor:
        return torch.cat([self.ones(volume), self.threes(volume)], 1)


class Downsample(nn.Module):
    """A convolution and a max pooling of stride 2 side by side: [N, C, H, W] -> [N, filters + C, H/2, W/2]."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.conv = ConvNorm(channels, filters, 3, stride=2, padding=1)
        self.pool = MaxPool2d(3, 2, 1)

    def forward(self, volume: Tensor) -> Tensor:
        return torch.cat([self.conv(volume), self.pool(volume)], 1)


class SmallInception(nn.Module):
    """A convolution, eight Inception and two Downsample modules, an average and a fully connected layer.

    Args:
        input_shape: channels, height and width of the images; a batch may have another size.
        width: filters as a multiple of the paper's.
        classes: number of scores.

    Raises:
        ValueError: the images have no pixels.
    """

    def __init__(self, input_shape: tuple[int, int, int] = (3, 32, 32), width: float = 1.0, classes: int = 10) -> None:
        super().__init__()
        check_input_shape(input_shape, 1)
        self.input_shape = input_shape
        self.classes = classes
        channels = scaled(96, width)
        self.conv1 = ConvNorm(input_shape[0], channels, 3, padding=1)
        self.trunk = nn.Sequential()
        inceptions = downsamples = 0
        for numbers in MODULES:
            filters = [scaled(number, width) for number in numbers]
            if len(filters) == 1:
                downsamples += 1
                self.trunk.add_module(f"downsample{downsamples}", Downsample(channels, *filters))
                channels += filters[0]
            else:
                inceptions += 1
                self.trunk.add_module(f"inception{inceptions}", Inception(channels, *filters))
                channels = sum(filters)
        self.average = AdaptiveAvgPool2d(1)
        self.fc = Linear(channels, classes)
        for layer in self.modules():
            if isinstance(layer, Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, classes] of images [N, C, H, W]."""
        check_any_size(images, self.input_shape[0], 1)
        volume = self.trunk(self.conv1(images))  # [N, 336, H/4, W/4]
        return self.fc(self.average(volume).flatten(1))
