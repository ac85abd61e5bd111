"""A one-dimensional network for waveforms: a window long enough for a few periods, then short ones and pooling.

For signals of 1,024 samples and the default sizes the volumes are

    INPUT          1024 x   1
    CONV1 + RELU    256 x  16   windows of 79 samples, stride 4
    POOL1            64 x  16   the largest of each four
    CONV2 + RELU     64 x  32   windows of 3, as all that follow
    POOL2            16 x  32
    CONV3 + RELU     16 x  64
    POOL3             4 x  64
    AVERAGE           1 x  64   over what positions are left: signals have any length
    FC                   10     a score a class

Source: Dai, Dai, Qu, Li and Das, "Very deep convolutional neural networks for raw waveforms" (2017), network M5 with a
stage less and fewer channels, whose windows of 80 samples are here the odd 79.
"""

from itertools import pairwise

from torch import Tensor, nn

from kernels.layers import AdaptiveAvgPool1d, BatchNorm1d, Conv1d, Linear, MaxPool1d
from lightning_modules.architectures.shapes import check_any_size, check_input_shape

STRIDE = 4  # of the first convolution and of every pooling, in samples


class SignalNet(nn.Module):
    """Stages of convolution, batch norm, ReLU and pooling, the average, and a fully connected layer.

    Args:
        input_shape: channels and length of an example; signals may have any length that leaves something.
        filters: channels after each stage.
        kernel_size: length of the windows of the first convolution, in samples; odd.
        classes: number of scores.

    Raises:
        ValueError: the signals are too short, or the window is even.
    """

    def __init__(
        self,
        input_shape: tuple[int, int] = (1, 1024),
        filters: tuple[int, ...] = (16, 32, 64),
        kernel_size: int = 79,
        classes: int = 10,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.smallest = (STRIDE ** (len(filters) + 1) - STRIDE + 1,)  # the first convolution rounds up
        check_input_shape(input_shape, self.smallest)
        self.input_shape = input_shape
        self.classes = classes
        self.body = nn.Sequential()
        windows = [(kernel_size, STRIDE)] + [(3, 1)] * (len(filters) - 1)
        for (few, many), (kernel, stride) in zip(pairwise((input_shape[0], *filters)), windows, strict=True):
            self.body.append(Conv1d(few, many, kernel, stride=stride, padding=kernel // 2, bias=False))
            self.body.append(BatchNorm1d(many, activation="relu"))
            self.body.append(MaxPool1d(STRIDE))
        self.average = AdaptiveAvgPool1d(1)
        self.fc = Linear(filters[-1], classes)

    def forward(self, signals: Tensor) -> Tensor:
        """Scores [N, classes] of signals [N, C, L]."""
        check_any_size(signals, self.input_shape[0], self.smallest)
        return self.fc(self.average(self.body(signals)).flatten(1))
