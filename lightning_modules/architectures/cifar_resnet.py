"""The residual network for CIFAR-10, of 6n + 2 layers, and the plain one of the same depth.

For images of 32x32x3 the volumes are

    INPUT            32 x 32 x  3
    CONV1            32 x 32 x 16   3x3 windows, as all; batch norm and ReLU after each
    STAGE1           32 x 32 x 16   n blocks of two convolutions
    STAGE2           16 x 16 x 32   n blocks, the first with stride 2
    STAGE3            8 x  8 x 64   n blocks, the first with stride 2
    AVERAGE           1 x  1 x 64
    FC                      10      a score a class

In a block the second ReLU waits for the sum with the block's input. Where that has another shape it takes the shortcut
without parameters, option A of the paper: every second row and column, and zeros for the channels that it lacks.

Source: He, Zhang, Ren and Sun, "Deep residual learning for image recognition" (2016), section 4.2; n = 3, 5, 7, 9 and
18 are its networks of 20, 32, 44, 56 and 110 layers. Initialised as there, by He et al., "Delving deep into rectifiers"
(2015).
"""

from torch import Tensor, nn
from torch.nn import functional as F

from kernels.layers import AdaptiveAvgPool2d, BatchNorm2d, Conv2d, Linear
from lightning_modules.architectures.shapes import check_any_size, check_input_shape


class Block(nn.Module):
    """Two convolutions, whose output is added to their input.

    Args:
        channels: of the input.
        filters: of the output; `channels` at least.
        stride: of the first convolution.
        residual: False leaves the sum out.
    """

    def __init__(self, channels: int, filters: int, stride: int, residual: bool) -> None:
        super().__init__()
        self.stride = stride
        self.extra = filters - channels
        self.residual = residual
        self.conv1 = Conv2d(channels, filters, 3, stride, 1, bias=False)
        self.bn1 = BatchNorm2d(filters, activation="relu")
        self.conv2 = Conv2d(filters, filters, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(filters, activation="relu")

    def forward(self, volume: Tensor) -> Tensor:
        """[N, channels, H, W] -> [N, filters, H / stride, W / stride], rounded up."""
        branch = self.conv2(self.bn1(self.conv1(volume)))
        if not self.residual:
            return self.bn2(branch)
        if self.stride > 1 or self.extra:
            volume = F.pad(volume[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
        return self.bn2(branch, volume)


class CifarResNet(nn.Module):
    """A convolution, three stages of n blocks, an average and a fully connected layer: 6n + 2 with parameters.

    Args:
        input_shape: channels, height and width of the images; a batch may have another size.
        blocks: n, in each stage.
        filters: channels of the three stages, none fewer than those before.
        residual: False makes the plain network, without shortcuts.
        classes: number of scores.

    Raises:
        ValueError: the images have no pixels, there are no blocks, or a stage has fewer channels than the one before.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int] = (3, 32, 32),
        blocks: int = 3,
        filters: tuple[int, int, int] = (16, 32, 64),
        residual: bool = True,
        classes: int = 10,
    ) -> None:
        super().__init__()
        check_input_shape(input_shape, 1)
        if blocks < 1:
            raise ValueError(f"blocks must be at least 1, got {blocks}")
        if list(filters) != sorted(filters):
            raise ValueError(f"filters must not decrease, for shortcuts that add zero channels, got {tuple(filters)}")
        self.input_shape = input_shape
        self.classes = classes
        self.conv1 = Conv2d(input_shape[0], filters[0], 3, padding=1, bias=False)
        self.bn1 = BatchNorm2d(filters[0], activation="relu")
        before, stages = filters[0], []
        for number, channels in enumerate(filters):
            first = Block(before, channels, 2 if number else 1, residual)
            stages.append(nn.Sequential(first, *(Block(channels, channels, 1, residual) for _ in range(blocks - 1))))
            before = channels
        self.stage1, self.stage2, self.stage3 = stages
        self.average = AdaptiveAvgPool2d(1)
        self.fc = Linear(before, classes)
        for layer in self.modules():
            if isinstance(layer, Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, classes] of images [N, C, H, W]."""
        check_any_size(images, self.input_shape[0], 1)
        volume = self.bn1(self.conv1(images))  # [N, 16, H, W]
        volume = self.stage3(self.stage2(self.stage1(volume)))  # [N, 64, H/4, W/4]
        return self.fc(self.average(volume).flatten(1))
