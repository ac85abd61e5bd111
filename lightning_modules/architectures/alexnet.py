"""AlexNet, in torchvision's layout: that of one tower.

For images of 224x224x3 the volumes are

    INPUT           224 x 224 x   3
    CONV1 + RELU     55 x  55 x  64   11x11 windows, stride 4
    POOL1            27 x  27 x  64   the largest of 3x3 windows that overlap: stride 2, as all poolings
    CONV2 + RELU     27 x  27 x 192   5x5 windows
    POOL2            13 x  13 x 192
    CONV3 + RELU     13 x  13 x 384   3x3 windows, as those that follow
    CONV4 + RELU     13 x  13 x 256
    CONV5 + RELU     13 x  13 x 256
    POOL5             6 x   6 x 256
    AVERAGE           6 x   6 x 256   the regions of a 6x6 grid: for images of any size
    FC6 + RELU            4096        half of its inputs are dropped, as of FC7's
    FC7 + RELU            4096
    FC8                   1000        a score a class

Source: Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional neural networks" (2012), with
the channels of Krizhevsky, "One weird trick for parallelizing convolutional neural networks" (2014), which torchvision
has: its `alexnet`, with the same state_dict.
"""

from torch import Tensor, nn

from kernels.layers import AdaptiveAvgPool2d, Conv2d, Linear, MaxPool2d
from lightning_modules.architectures.blocks import numbered
from lightning_modules.architectures.shapes import check_any_size, check_input_shape, scaled
from lightning_modules.architectures.weights import load_weights

SMALLEST = 63  # pixels that leave one to the last pooling


class AlexNet(nn.Module):
    """Five convolutions, the maxima of three of them, and three fully connected layers.

    Args:
        input_shape: channels, height and width of the images; a batch may have another size.
        classes: number of scores.
        dropout: probability that an input of the first two fully connected layers is dropped.
        width: channels and hidden units as a multiple of the paper's.
        weights: a file with a state_dict, or the name of one of torchvision's weights: see `load_weights`.

    Raises:
        ValueError: the images are too small, or the weights cannot be loaded.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int] = (3, 224, 224),
        classes: int = 1000,
        dropout: float = 0.5,
        width: float = 1.0,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        check_input_shape(input_shape, SMALLEST)
        self.input_shape = input_shape
        self.classes = classes
        c1, c2, c3, c4, c5 = (scaled(channels, width) for channels in (64, 192, 384, 256, 256))
        hidden = scaled(4096, width)
        self.features = numbered(
            {
                0: Conv2d(input_shape[0], c1, 11, stride=4, padding=2, activation="relu"),
                2: MaxPool2d(3, 2),
                3: Conv2d(c1, c2, 5, padding=2, activation="relu"),
                5: MaxPool2d(3, 2),
                6: Conv2d(c2, c3, 3, padding=1, activation="relu"),
                8: Conv2d(c3, c4, 3, padding=1, activation="relu"),
                10: Conv2d(c4, c5, 3, padding=1, activation="relu"),
                12: MaxPool2d(3, 2),
            }
        )
        self.avgpool = AdaptiveAvgPool2d(6)
        self.classifier = numbered(
            {
                0: nn.Dropout(dropout),
                1: Linear(c5 * 6 * 6, hidden, activation="relu"),
                3: nn.Dropout(dropout),
                4: Linear(hidden, hidden, activation="relu"),
                6: Linear(hidden, classes),
            }
        )
        load_weights(self, weights, "alexnet")

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, classes] of images [N, C, H, W]."""
        check_any_size(images, self.input_shape[0], SMALLEST)
        volume = self.avgpool(self.features(images))  # [N, 256, 6, 6]
        return self.classifier(volume.flatten(1))
