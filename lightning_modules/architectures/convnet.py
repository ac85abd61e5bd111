"""The ConvNet of the lecture: INPUT - CONV - RELU - POOL - FC.

For images of 32x32x3 and 12 filters the volumes are

    INPUT        32 x 32 x  3
    CONV + RELU  32 x 32 x 12   one operation: the ReLU is the convolution's epilogue
    POOL         16 x 16 x 12   the largest of each 2x2 window
    FC            1 x  1 x 10   a score a class

Source: Stanford CS231n, "Convolutional Neural Networks: Architectures, Convolution / Pooling Layers";
Goodfellow, Bengio and Courville, Deep Learning (2016), chapter 9.
"""

from torch import Tensor, nn

from kernels.layers import Conv2d, Linear, MaxPool2d
from lightning_modules.architectures.shapes import check_images, halved


class ConvNet(nn.Module):
    """One convolution with ReLU, one pooling, one fully connected layer.

    Args:
        input_shape: channels, height and width of the images.
        filters: number of kernels that the convolution learns.
        kernel_size: side of their square windows, in pixels.
        classes: number of scores.

    Raises:
        ValueError: the images are too small to be pooled.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int] = (3, 32, 32),
        filters: int = 12,
        kernel_size: int = 5,
        classes: int = 10,
    ) -> None:
        super().__init__()
        height, width = halved(input_shape, times=1)
        self.input_shape = input_shape
        self.classes = classes
        self.conv = Conv2d(input_shape[0], filters, kernel_size, padding="same", activation="relu")
        self.pool = MaxPool2d(2)
        self.fc = Linear(filters * height * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, classes] of images [N, C, H, W]."""
        check_images(images, self.input_shape)
        volume = self.pool(self.conv(images))  # [N, filters, H/2, W/2]
        return self.fc(volume.flatten(1))
