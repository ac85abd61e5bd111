"""GoogLeNet: modules of parallel convolutions, and two auxiliary heads that train the middle of the network.

For images of 224x224x3 the volumes are

    INPUT          224 x 224 x    3
    CONV1          112 x 112 x   64   7x7 windows, stride 2; after every convolution batch norm and ReLU
    POOL1           56 x  56 x   64   the largest of 3x3 windows, stride 2, as in POOL2 and POOL3
    CONV2           56 x  56 x   64   1x1 windows
    CONV3           56 x  56 x  192   3x3 windows
    POOL2           28 x  28 x  192
    INCEPTION 3A    28 x  28 x  256
    INCEPTION 3B    28 x  28 x  480
    POOL3           14 x  14 x  480
    INCEPTION 4A    14 x  14 x  512   here the first auxiliary head begins
    INCEPTION 4B    14 x  14 x  512
    INCEPTION 4C    14 x  14 x  512
    INCEPTION 4D    14 x  14 x  528   here the second
    INCEPTION 4E    14 x  14 x  832
    POOL4            7 x   7 x  832   the largest of each 2x2 window
    INCEPTION 5A     7 x   7 x  832
    INCEPTION 5B     7 x   7 x 1024
    AVERAGE          1 x   1 x 1024   then a fifth of the values are dropped
    FC                       1000     a score a class

and those of an auxiliary head

    AVERAGE          4 x   4 x  512   the regions of a 4x4 grid; 528 channels in the second
    CONV             4 x   4 x  128   1x1 windows
    FC1 + RELU               1024     then 0.7 of the values are dropped
    FC2                      1000     a score a class

Source: Szegedy et al., "Going deeper with convolutions" (2015), table 1 and section 5. As torchvision's `googlenet`,
which has the same state_dict and initialisation, it has batch norm (Ioffe and Szegedy, 2015), and 3x3 windows where the
paper has 5x5.
"""

import torch
from torch import Tensor, nn

from kernels.layers import AdaptiveAvgPool2d, Conv2d, Linear, MaxPool2d
from lightning_modules.architectures.blocks import ConvNorm
from lightning_modules.architectures.shapes import check_any_size, check_input_shape, scaled
from lightning_modules.architectures.weights import load_weights

SMALLEST = 15  # pixels that leave one to the last pooling
EPS = 1e-3  # of the batch norms

# Filters of each Inception module: 1x1; before the 3x3, and these; before the "5x5", and these; after the pooling.
INCEPTIONS = (
    (64, 96, 128, 16, 32, 32),  # 3a
    (128, 128, 192, 32, 96, 64),  # 3b
    (192, 96, 208, 16, 48, 64),  # 4a
    (160, 112, 224, 24, 64, 64),  # 4b
    (128, 128, 256, 24, 64, 64),  # 4c
    (112, 144, 288, 32, 64, 64),  # 4d
    (256, 160, 320, 32, 128, 128),  # 4e
    (256, 160, 320, 32, 128, 128),  # 5a
    (384, 192, 384, 48, 128, 128),  # 5b
)

# torchvision's own weights were trained on (x - 0.5) / 0.5 of pixels x in [0, 1], not on (x - MEAN) / STD.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Inception(nn.Module):
    """Four branches, side by side in the channels of the output: 1x1, 3x3, twice 3x3 in effect, and pooled.

    Args:
        channels: of the input.
        filters: as in INCEPTIONS.
    """

    def __init__(self, channels: int, filters: tuple[int, ...]) -> None:
        super().__init__()
        ones, before_threes, threes, before_fives, fives, pooled = filters
        self.branch1 = ConvNorm(channels, ones, 1, EPS)
        self.branch2 = nn.Sequential(
            ConvNorm(channels, before_threes, 1, EPS), ConvNorm(before_threes, threes, 3, EPS, padding=1)
        )
        self.branch3 = nn.Sequential(
            ConvNorm(channels, before_fives, 1, EPS), ConvNorm(before_fives, fives, 3, EPS, padding=1)
        )
        self.branch4 = nn.Sequential(MaxPool2d(3, 1, 1), ConvNorm(channels, pooled, 1, EPS))
        self.channels = ones + threes + fives + pooled

    def forward(self, volume: Tensor) -> Tensor:
        """[N, channels, H, W] -> [N, self.channels, H, W]."""
        return torch.cat([branch(volume) for branch in (self.branch1, self.branch2, self.branch3, self.branch4)], 1)


class AuxiliaryHead(nn.Module):
    """Scores from the middle of the network.

    Args:
        channels: of the input.
        filters, hidden: of the convolution and of the first fully connected layer.
        classes: number of scores.
        dropout: probability that an input of the second fully connected layer is dropped.
    """

    def __init__(self, channels: int, filters: int, hidden: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.pool = AdaptiveAvgPool2d(4)
        self.conv = ConvNorm(channels, filters, 1, EPS)
        self.fc1 = Linear(filters * 4 * 4, hidden, activation="relu")
        self.dropout = nn.Dropout(dropout)
        self.fc2 = Linear(hidden, classes)

    def forward(self, volume: Tensor) -> Tensor:
        """Scores [N, classes] of a volume [N, channels, H, W]."""
        return self.fc2(self.dropout(self.fc1(self.conv(self.pool(volume)).flatten(1))))


class GoogLeNet(nn.Module):
    """Three convolutions, nine Inception modules and an average, with two auxiliary heads while it is trained.

    Args:
        input_shape: channels, height and width of the images; a batch may have another size.
        classes: number of scores.
        dropout: probabilities that a value is dropped before the last layer, and before that of an auxiliary head.
        width: channels and hidden units as a multiple of the paper's.
        weights: a file with a state_dict, or the name of one of torchvision's weights: see `load_weights`.
        transform_input: take images that were normalised by torchvision's mean and deviation of ImageNet, and normalise
            them as those were that torchvision's weights were trained on; None does so where `weights` are given.

    Raises:
        ValueError: the images are too small, or have no three colours to transform, or the weights cannot be loaded.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int] = (3, 224, 224),
        classes: int = 1000,
        dropout: tuple[float, float] = (0.2, 0.7),
        width: float = 1.0,
        weights: str | None = None,
        transform_input: bool | None = None,
    ) -> None:
        super().__init__()
        check_input_shape(input_shape, SMALLEST)
        self.input_shape = input_shape
        self.classes = classes
        self.transform_input = weights is not None if transform_input is None else transform_input
        if self.transform_input and input_shape[0] != len(MEAN):
            raise ValueError(f"transform_input needs images of {len(MEAN)} channels, got {input_shape[0]}")
        c1, c3 = scaled(64, width), scaled(192, width)
        self.conv1 = ConvNorm(input_shape[0], c1, 7, EPS, stride=2, padding=3)
        self.maxpool1 = MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = ConvNorm(c1, c1, 1, EPS)
        self.conv3 = ConvNorm(c1, c3, 3, EPS, padding=1)
        self.maxpool2 = MaxPool2d(3, 2, ceil_mode=True)
        channels, inceptions = c3, []
        for filters in INCEPTIONS:
            inceptions.append(Inception(channels, tuple(scaled(number, width) for number in filters)))
            channels = inceptions[-1].channels
        (
            self.inception3a, self.inception3b, self.inception4a, self.inception4b, self.inception4c,
            self.inception4d, self.inception4e, self.inception5a, self.inception5b,
        ) = inceptions  # fmt: skip
        self.maxpool3 = MaxPool2d(3, 2, ceil_mode=True)
        self.maxpool4 = MaxPool2d(2, 2, ceil_mode=True)
        head = (scaled(128, width), scaled(1024, width), classes, dropout[1])
        self.aux1 = AuxiliaryHead(self.inception4a.channels, *head)
        self.aux2 = AuxiliaryHead(self.inception4d.channels, *head)
        self.avgpool = AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout[0])
        self.fc = Linear(channels, classes)
        for layer in self.modules():
            if isinstance(layer, Conv2d | Linear):
                nn.init.trunc_normal_(layer.weight, std=0.01)
        load_weights(self, weights, "googlenet")

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Scores [N, classes] of images [N, C, H, W]; in training also those of the second and of the first head."""
        check_any_size(images, self.input_shape[0], SMALLEST)
        if self.transform_input:
            mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
            images = images * (std / 0.5) + (mean - 0.5) / 0.5
        volume = self.conv3(self.conv2(self.maxpool1(self.conv1(images))))  # [N, 192, 56, 56]
        volume = self.inception3b(self.inception3a(self.maxpool2(volume)))  # [N, 480, 28, 28]
        volume = self.inception4a(self.maxpool3(volume))  # [N, 512, 14, 14]
        first = self.aux1(volume) if self.training else None
        volume = self.inception4d(self.inception4c(self.inception4b(volume)))  # [N, 528, 14, 14]
        second = self.aux2(volume) if self.training else None
        volume = self.inception5a(self.maxpool4(self.inception4e(volume)))  # [N, 832, 7, 7]
        volume = self.avgpool(self.inception5b(volume))  # [N, 1024, 1, 1]
        scores = self.fc(self.dropout(volume.flatten(1)))
        return scores if first is None or second is None else (scores, second, first)
