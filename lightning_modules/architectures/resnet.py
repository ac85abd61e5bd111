"""ResNet-18 and ResNet-50: what a block computes is added to what it was given.

For images of 224x224x3 the volumes are

                                ResNet-18          ResNet-50
    INPUT     224 x 224 x                   3                  3
    CONV1     112 x 112 x                  64                 64   7x7 windows, stride 2
    POOL       56 x  56 x                  64                 64   the largest of 3x3 windows, stride 2
    LAYER1     56 x  56 x   2 blocks       64   3 blocks     256
    LAYER2     28 x  28 x   2 blocks      128   4 blocks     512   the first block of a layer has stride 2
    LAYER3     14 x  14 x   2 blocks      256   6 blocks   1,024
    LAYER4      7 x   7 x   2 blocks      512   3 blocks   2,048
    AVERAGE     1 x   1 x                 512              2,048
    FC                                  1,000              1,000   a score a class

A block of ResNet-18 has two convolutions of 3x3 windows; one of ResNet-50 has 1x1, 3x3 and 1x1, the first two with a
quarter of its channels. After each convolution there is batch norm, and after it ReLU, which in the last waits for the
sum with the block's input. That input goes through a 1x1 convolution and batch norm where the shapes differ.

Source: He, Zhang, Ren and Sun, "Deep residual learning for image recognition" (2016), table 1, with the stride of a
block of ResNet-50 in its 3x3 convolution as in torchvision's `resnet50`; torchvision's models have the same state_dict
and initialisation (He et al., "Delving deep into rectifiers", 2015).
"""

from typing import ClassVar

from torch import Tensor, nn

from kernels.layers import AdaptiveAvgPool2d, BatchNorm2d, Conv2d, Linear, MaxPool2d
from lightning_modules.architectures.shapes import check_any_size, check_input_shape, scaled
from lightning_modules.architectures.weights import load_weights


class BasicBlock(nn.Module):
    """Two convolutions of 3x3 windows.

    Args:
        channels: of the input.
        filters: of the convolutions.
        stride: of the first.
        downsample: makes the input as large as the output, where it is not.
    """

    expansion = 1  # channels of the output as a multiple of `filters`

    def __init__(self, channels: int, filters: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = Conv2d(channels, filters, 3, stride, 1, bias=False)
        self.bn1 = BatchNorm2d(filters, activation="relu")
        self.conv2 = Conv2d(filters, filters, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(filters, activation="relu")
        self.downsample = downsample

    def forward(self, volume: Tensor) -> Tensor:
        """[N, channels, H, W] -> [N, filters, H / stride, W / stride]."""
        residual = volume if self.downsample is None else self.downsample(volume)
        return self.bn2(self.conv2(self.bn1(self.conv1(volume))), residual)


class Bottleneck(nn.Module):
    """A convolution of 3x3 windows between two of 1x1, the last of which has four times the filters.

    Args:
        channels, filters, downsample: as of BasicBlock.
        stride: of the 3x3 convolution.
    """

    expansion = 4

    def __init__(self, channels: int, filters: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        outputs = self.expansion * filters
        self.conv1 = Conv2d(channels, filters, 1, bias=False)
        self.bn1 = BatchNorm2d(filters, activation="relu")
        self.conv2 = Conv2d(filters, filters, 3, stride, 1, bias=False)
        self.bn2 = BatchNorm2d(filters, activation="relu")
        self.conv3 = Conv2d(filters, outputs, 1, bias=False)
        self.bn3 = BatchNorm2d(outputs, activation="relu")
        self.downsample = downsample

    def forward(self, volume: Tensor) -> Tensor:
        """[N, channels, H, W] -> [N, 4 filters, H / stride, W / stride]."""
        residual = volume if self.downsample is None else self.downsample(volume)
        volume = self.bn2(self.conv2(self.bn1(self.conv1(volume))))
        return self.bn3(self.conv3(volume), residual)


class ResNet(nn.Module):
    """A convolution and a pooling, four layers of blocks, and an average.

    Args:
        input_shape: channels, height and width of the images; a batch may have another size.
        classes: number of scores.
        width: channels as a multiple of the paper's.
        weights: a file with a state_dict, or the name of one of torchvision's weights: see `load_weights`.

    Raises:
        ValueError: the images have no pixels, or the weights cannot be loaded.
    """

    model: ClassVar[str]  # torchvision's name
    block: ClassVar[type[BasicBlock] | type[Bottleneck]]
    blocks: ClassVar[tuple[int, int, int, int]]  # in each layer

    def __init__(
        self,
        input_shape: tuple[int, int, int] = (3, 224, 224),
        classes: int = 1000,
        width: float = 1.0,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        check_input_shape(input_shape, 1)
        self.input_shape = input_shape
        self.classes = classes
        filters = channels = scaled(64, width)
        self.conv1 = Conv2d(input_shape[0], channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = BatchNorm2d(channels, activation="relu")
        self.maxpool = MaxPool2d(3, 2, 1)
        layers = []
        for number, blocks in enumerate(self.blocks):
            layers.append(self._layer(channels, filters, blocks, stride=2 if number else 1))
            channels, filters = self.block.expansion * filters, 2 * filters
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.avgpool = AdaptiveAvgPool2d(1)
        self.fc = Linear(channels, classes)
        for layer in self.modules():
            if isinstance(layer, Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        load_weights(self, weights, self.model)

    def _layer(self, channels: int, filters: int, blocks: int, stride: int) -> nn.Sequential:
        outputs, downsample = filters * self.block.expansion, None
        if stride > 1 or channels != outputs:
            downsample = nn.Sequential(Conv2d(channels, outputs, 1, stride, bias=False), BatchNorm2d(outputs))
        rest = (self.block(outputs, filters, 1, None) for _ in range(blocks - 1))
        return nn.Sequential(self.block(channels, filters, stride, downsample), *rest)

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, classes] of images [N, C, H, W]."""
        check_any_size(images, self.input_shape[0], 1)
        volume = self.maxpool(self.bn1(self.conv1(images)))  # [N, 64, H/4, W/4]
        volume = self.layer4(self.layer3(self.layer2(self.layer1(volume))))  # [N, 512 or 2048, H/32, W/32]
        return self.fc(self.avgpool(volume).flatten(1))


class ResNet18(ResNet):
    """Eight blocks of two convolutions; arguments as of ResNet."""

    model = "resnet18"
    block = BasicBlock
    blocks = (2, 2, 2, 2)


class ResNet50(ResNet):
    """Sixteen blocks of three convolutions; arguments as of ResNet."""

    model = "resnet50"
    block = Bottleneck
    blocks = (3, 4, 6, 3)
