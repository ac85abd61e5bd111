"""The maxout network: instead of an activation function, the largest of some channels, each of them linear.

For images of 32x32x3 the volumes are

    INPUT            32 x 32 x   3   a fifth of the values are dropped
    CONV1 + MAXOUT   33 x 33 x  96   8x8 windows, padded by 4; the larger of each two channels
    POOL1            16 x 16 x  96   the largest of each 4x4 window, stride 2; then half of the values are dropped
    CONV2 + MAXOUT   15 x 15 x 192   8x8 windows, padded by 3; the larger of each two channels
    POOL2             7 x  7 x 192   4x4 windows, stride 2; then half of the values are dropped
    CONV3 + MAXOUT    9 x  9 x 192   5x5 windows, padded by 3; the larger of each two channels
    POOL3             5 x  5 x 192   2x2 windows, stride 2; then half of the values are dropped
    FC1 + MAXOUT           500       the largest of each five; then half of the values are dropped
    FC2                     10       a score a class

Windows of pooling that reach over the edge count, too. For MNIST there are 48, 48 and 24 channels, of 2, 2 and 4
pieces, no padding of the first convolution, and no FC1.

Source: Goodfellow, Warde-Farley, Mirza, Courville and Bengio, "Maxout networks" (2013), sections 5.1 and 5.2, with the
sizes of its published configurations (cifar10.yaml, mnist.yaml). These draw weights from -0.005 to 0.005 and bound the
norm of each kernel; here weights are normal with the variance 1 / fan-in, at which the larger of two pieces has the
mean square of the input, and norms are the optimizer's business.
"""

from torch import Tensor, nn

from kernels.layers import Conv2d, CrossChannelMaxPool, Linear, MaxPool2d
from lightning_modules.architectures.shapes import check_images

Sizes = tuple[int, int, int]
STRIDE = 2  # of the pooling, in pixels


class MaxoutNet(nn.Module):
    """Three stages of convolution, maximum over channels and pooling, then a maxout layer and a linear one.

    Args:
        input_shape: channels, height and width of the images.
        filters: channels after each stage.
        pieces: number of channels that compete for one, in each stage.
        kernel_sizes, paddings: of the convolutions, in pixels.
        pool_sizes: sides of the pooling windows, in pixels; 2 at least, their stride is 2.
        hidden: width of the fully connected maxout layer; 0 leaves it out.
        hidden_pieces: number of its units that compete for one.
        dropout: probabilities that a value of the input, and of the output of each maxout layer, is dropped.
        classes: number of scores.

    Raises:
        ValueError: the images are too small.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int] = (3, 32, 32),
        filters: Sizes = (96, 192, 192),
        pieces: Sizes = (2, 2, 2),
        kernel_sizes: Sizes = (8, 8, 5),
        paddings: Sizes = (4, 3, 3),
        pool_sizes: Sizes = (4, 4, 2),
        hidden: int = 500,
        hidden_pieces: int = 5,
        dropout: tuple[float, float] = (0.2, 0.5),
        classes: int = 10,
    ) -> None:
        super().__init__()
        channels, height, width = input_shape
        stages = list(zip(kernel_sizes, paddings, pool_sizes, strict=True))
        for stage in stages:
            height, width = pooled(height, *stage), pooled(width, *stage)
        if channels < 1 or min(height, width) < 1:
            raise ValueError(
                f"input_shape must be (C, H, W) of which windows of {tuple(kernel_sizes)} pixels, padded "
                f"by {tuple(paddings)}, and pooling by {tuple(pool_sizes)} leave something, got {tuple(input_shape)}"
            )
        self.input_shape = input_shape
        self.classes = classes
        self.body = nn.Sequential(nn.Dropout(dropout[0]))
        for few, many, compete, (kernel, padding, pool) in zip(
            (channels, *filters), filters, pieces, stages, strict=False
        ):
            maxout = CrossChannelMaxPool(compete)
            self.body.append(Conv2d(few, many * compete, kernel, padding=padding, pool=maxout))
            self.body.append(MaxPool2d(pool, STRIDE, ceil_mode=True))
            self.body.append(nn.Dropout(dropout[1]))
        self.head = nn.Sequential()
        units = filters[-1] * height * width
        if hidden:
            maxout = CrossChannelMaxPool(hidden_pieces)
            self.head.append(Linear(units, hidden * hidden_pieces, pool=maxout))
            self.head.append(nn.Dropout(dropout[1]))
        self.head.append(Linear(hidden or units, classes))
        for layer in self.modules():
            if isinstance(layer, Conv2d | Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
                nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, classes] of images [N, C, H, W]."""
        check_images(images, self.input_shape)
        return self.head(self.body(images).flatten(1))


def pooled(extent: int, kernel_size: int, padding: int, pool_size: int) -> int:
    """What a stage leaves of an extent; 0 where it has less than one window of pooling."""
    positions = extent + 2 * padding - kernel_size + 1
    return -((pool_size - positions) // STRIDE) + 1 if extent and positions >= pool_size else 0
