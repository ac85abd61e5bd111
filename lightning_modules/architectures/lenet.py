"""A network of LeNet's size, with a cross-channel maximum (maxout) in its second stage.

For digits of 8x8 and the default sizes the volumes are

    INPUT          8 x 8 x  1
    CONV1 + RELU   8 x 8 x 16   7x7 windows, large enough to have a shape that can be looked at
    POOL1          4 x 4 x 16
    CONV2          4 x 4 x 32   3x3 windows
    MAXOUT         4 x 4 x 16   the larger of each two consecutive channels
    POOL2          2 x 2 x 16
    FC1 + RELU         64
    FC2                10       a score a class

Source: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition" (1998), for the
two stages of convolution and pooling before the fully connected layers; Goodfellow et al., "Maxout networks" (2013),
and Deep Learning (2016), chapter 9, for the pooling over channels.
"""

from torch import Tensor, nn

from kernels.layers import Conv2d, CrossChannelMaxPool, Linear, MaxPool2d
from lightning_modules.architectures.shapes import check_images, halved


class LeNet(nn.Module):
    """Two stages of convolution and pooling, then two fully connected layers.

    Args:
        input_shape: channels, height and width of the images.
        filters: channels after the first and after the second stage.
        kernel_sizes: sides of the square windows of the two convolutions, in pixels.
        maxout: number of channels of the second convolution that compete for one channel after it.
        hidden: width of the first fully connected layer.
        classes: number of scores.

    Raises:
        ValueError: the images are too small to be pooled twice.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int] = (1, 8, 8),
        filters: tuple[int, int] = (16, 16),
        kernel_sizes: tuple[int, int] = (7, 3),
        maxout: int = 2,
        hidden: int = 64,
        classes: int = 10,
    ) -> None:
        super().__init__()
        height, width = halved(input_shape, times=2)
        self.input_shape = input_shape
        self.classes = classes
        self.conv1 = Conv2d(input_shape[0], filters[0], kernel_sizes[0], padding="same", activation="relu")
        self.pool1 = MaxPool2d(2)
        self.conv2 = Conv2d(filters[0], filters[1] * maxout, kernel_sizes[1], padding="same")
        self.maxout = CrossChannelMaxPool(maxout)
        self.pool2 = MaxPool2d(2)
        self.fc1 = Linear(filters[1] * height * width, hidden, activation="relu")
        self.fc2 = Linear(hidden, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, classes] of images [N, C, H, W]."""
        check_images(images, self.input_shape)
        volume = self.pool1(self.conv1(images))  # [N, filters[0], H/2, W/2]
        volume = self.pool2(self.maxout(self.conv2(volume)))  # [N, filters[1], H/4, W/4]
        return self.fc2(self.fc1(volume.flatten(1)))
