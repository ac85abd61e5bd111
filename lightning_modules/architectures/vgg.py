"""VGG-11: eight convolutions of 3x3 windows, the maps halved and the channels doubled on the way.

For images of 224x224x3 the volumes are

    INPUT                  224 x 224 x   3
    CONV1_1 + RELU + POOL  112 x 112 x  64   one operation: the 224x224x64 before the pooling are never written
    CONV2_1 + RELU + POOL   56 x  56 x 128   the largest of each 2x2 window, as in all poolings
    CONV3_1 + RELU          56 x  56 x 256
    CONV3_2 + RELU + POOL   28 x  28 x 256
    CONV4_1 + RELU          28 x  28 x 512
    CONV4_2 + RELU + POOL   14 x  14 x 512
    CONV5_1 + RELU          14 x  14 x 512
    CONV5_2 + RELU + POOL    7 x   7 x 512
    AVERAGE                  7 x   7 x 512   the regions of a 7x7 grid: for images of any size
    FC6 + RELU                  4096         half of its outputs are dropped, as of FC7's
    FC7 + RELU                  4096
    FC8                         1000         a score a class

Source: Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition" (2015), table 1,
configuration A; torchvision's `vgg11` has the same state_dict, and this initialisation (He et al., "Delving deep into
rectifiers", 2015).
"""

from torch import Tensor, nn

from kernels.layers import AdaptiveAvgPool2d, Conv2d, Linear, MaxPool2d
from lightning_modules.architectures.blocks import numbered
from lightning_modules.architectures.shapes import check_any_size, check_input_shape, scaled
from lightning_modules.architectures.weights import load_weights

SMALLEST = 32  # pixels that five poolings by two leave one of

# Channels of each convolution, whether a pooling follows, and its number in torchvision's model.
CONVOLUTIONS = (
    (64, True, 0), (128, True, 3), (256, False, 6), (256, True, 8),
    (512, False, 11), (512, True, 13), (512, False, 16), (512, True, 18),
)  # fmt: skip


class VGG11(nn.Module):
    """Eight convolutions, the maxima of five of them, and three fully connected layers.

    Args:
        input_shape: channels, height and width of the images; a batch may have another size.
        classes: number of scores.
        dropout: probability that an output of the first two fully connected layers is dropped.
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
        self.features = nn.Sequential()
        before, hidden = input_shape[0], scaled(4096, width)
        for channels, pooled, number in CONVOLUTIONS:
            filters, pool = scaled(channels, width), MaxPool2d(2) if pooled else None
            self.features.add_module(str(number), Conv2d(before, filters, 3, padding=1, activation="relu", pool=pool))
            before = filters
        self.avgpool = AdaptiveAvgPool2d(7)
        self.classifier = numbered(
            {
                0: Linear(before * 7 * 7, hidden, activation="relu"),
                2: nn.Dropout(dropout),
                3: Linear(hidden, hidden, activation="relu"),
                5: nn.Dropout(dropout),
                6: Linear(hidden, classes),
            }
        )
        for layer in self.modules():
            if isinstance(layer, Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)
            elif isinstance(layer, Linear):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)
        load_weights(self, weights, "vgg11")

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, classes] of images [N, C, H, W]."""
        check_any_size(images, self.input_shape[0], SMALLEST)
        volume = self.avgpool(self.features(images))  # [N, 512, 7, 7]
        return self.classifier(volume.flatten(1))
