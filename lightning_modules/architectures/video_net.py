"""A three-dimensional network for video: windows over rows, columns and frames, which see motion.

For videos of 8 frames of 24x24 and the default sizes the volumes are (frames, rows, columns, channels)

    INPUT          8 x 24 x 24 x  1
    CONV1 + RELU   8 x 24 x 24 x  8   3x3x3 windows, as all
    POOL1          8 x 12 x 12 x  8   the largest of each 1x2x2 window: time is kept at first
    CONV2 + RELU   8 x 12 x 12 x 16
    POOL2          4 x  6 x  6 x 16   2x2x2 windows from here on
    CONV3 + RELU   4 x  6 x  6 x 32
    POOL3          2 x  3 x  3 x 32
    AVERAGE        1 x  1 x  1 x 32   over what positions are left: videos have any size
    FC                 9              a score a class

Source: Tran, Bourdev, Fergus, Torresani and Paluri, "Learning spatiotemporal features with 3D convolutional networks"
(2015), section 3, with fewer stages and an average for its fully connected layers.
"""

from itertools import pairwise

from torch import Tensor, nn

from kernels.layers import AdaptiveAvgPool3d, Conv3d, Linear, MaxPool3d
from lightning_modules.architectures.shapes import check_any_size, check_input_shape


class VideoNet(nn.Module):
    """Stages of convolution, ReLU and pooling, the average, and a fully connected layer.

    Args:
        input_shape: channels, frames, height and width of an example; videos may have any size that leaves something.
        filters: channels after each stage.
        classes: number of scores.

    Raises:
        ValueError: the videos are too small.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int, int] = (1, 8, 24, 24),
        filters: tuple[int, ...] = (8, 16, 32),
        classes: int = 9,
    ) -> None:
        super().__init__()
        self.smallest = (2 ** (len(filters) - 1), 2 ** len(filters), 2 ** len(filters))
        check_input_shape(input_shape, self.smallest)
        self.input_shape = input_shape
        self.classes = classes
        self.body = nn.Sequential()
        for stage, (few, many) in enumerate(pairwise((input_shape[0], *filters))):
            pool = MaxPool3d(2 if stage else (1, 2, 2))
            self.body.append(Conv3d(few, many, 3, padding=1, activation="relu", pool=pool))
        self.average = AdaptiveAvgPool3d(1)
        self.fc = Linear(filters[-1], classes)

    def forward(self, videos: Tensor) -> Tensor:
        """Scores [N, classes] of videos [N, C, D, H, W]."""
        check_any_size(videos, self.input_shape[0], self.smallest)
        return self.fc(self.average(self.body(videos)).flatten(1))
