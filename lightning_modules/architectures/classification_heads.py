"""The three ways from a convolutional volume to the scores of classes that figure 9.11 of Deep Learning compares.

The volumes, for images of 256x256x3 and 1,000 classes:

    INPUT           256 x 256 x     3
    CONV1 + RELU    256 x 256 x    64
    POOL             64 x  64 x    64   the largest of each 4x4 window
    CONV2 + RELU     64 x  64 x    64

    head            fully_connected         pooled_regions          class_maps
    POOL            16 x 16 x 64            3 x 3 x 64              16 x 16 x 64
                                            a fixed grid            CONV 16 x 16 x 1,000
    VECTOR          16,384                  576
    FC / AVERAGE    1,000                   1,000                   1,000
    images          of one size             of any size             of any size

Source: Goodfellow, Bengio and Courville, Deep Learning (2016), figure 9.11, which calls its sizes too shallow for real
use and does not name its windows; Lin, Chen and Yan, "Network in network" (2014), section 3.2, for the maps of classes.
"""

from itertools import pairwise

from torch import Tensor, nn

from kernels.layers import AdaptiveAvgPool2d, AdaptiveMaxPool2d, Conv2d, Linear, MaxPool2d
from lightning_modules.architectures.shapes import check_any_size, check_images, check_input_shape

HEADS = ("fully_connected", "pooled_regions", "class_maps")


class ClassificationNet(nn.Module):
    """Convolutions with ReLU, pooling between them, and one of three heads.

    Args:
        input_shape: channels, height and width of the images; of the head "fully_connected" the only ones it takes.
        head: "fully_connected": the pooled volume as a vector, and a fully connected layer. "pooled_regions": the
            largest values of a fixed grid of regions, which grow with the image, and a fully connected layer.
            "class_maps": a 1x1 convolution to a map for each class, and the average of each map.
        filters: channels of each convolution.
        kernel_size: side of the square windows, in pixels; of all convolutions or one for each.
        pool: side and stride of the pooling windows, in pixels.
        regions: rows and columns of the grid of the head "pooled_regions".
        classes: number of scores.

    Raises:
        ValueError: the head is none of these, there are not as many windows as convolutions, or the images are too
            small.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int] = (3, 256, 256),
        head: str = "fully_connected",
        filters: tuple[int, ...] = (64, 64),
        kernel_size: int | tuple[int, ...] = 3,
        pool: int = 4,
        regions: int = 3,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise ValueError(f"head must be one of {', '.join(HEADS)}, got {head!r}")
        sides = (kernel_size,) * len(filters) if isinstance(kernel_size, int) else kernel_size
        if len(sides) != len(filters):
            raise ValueError(f"kernel_size must be one number, or one for each of {len(filters)} filters, got {sides}")
        before = pool ** (len(filters) - 1)  # the last pooling is the head's
        self.smallest = before * (regions if head == "pooled_regions" else pool)
        check_input_shape(input_shape, self.smallest)
        channels, height, width = input_shape
        self.input_shape = input_shape
        self.head = head
        self.classes = classes
        self.body = nn.Sequential()
        for (few, many), side in zip(pairwise((channels, *filters)), sides, strict=True):
            self.body.append(Conv2d(few, many, side, padding="same", activation="relu"))
            self.body.append(MaxPool2d(pool))
        if head == "pooled_regions":
            self.body[-1] = AdaptiveMaxPool2d(regions)
            self.fc = Linear(filters[-1] * regions**2, classes)
        elif head == "fully_connected":
            self.fc = Linear(filters[-1] * (height // (before * pool)) * (width // (before * pool)), classes)
        else:
            self.maps = Conv2d(filters[-1], classes, 1)
            self.average = AdaptiveAvgPool2d(1)

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, classes] of images [N, C, H, W]."""
        if self.head == "fully_connected":
            check_images(images, self.input_shape)
        else:
            check_any_size(images, self.input_shape[0], self.smallest)
        volume = self.body(images)  # [N, filters[-1], P, Q]
        return self.average(self.maps(volume)).flatten(1) if self.head == "class_maps" else self.fc(volume.flatten(1))
