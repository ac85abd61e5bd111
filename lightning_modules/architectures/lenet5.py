"""LeNet-5, the network that read cheques.

The volumes, and the trainable parameters that the paper counts, are

    INPUT       32 x 32 x  1
    C1 + RELU   28 x 28 x  6      156   5x5 windows
    S2          14 x 14 x  6       12   averages of 2x2 windows
    C3 + RELU   10 x 10 x 16    1,516   5x5 windows on three, four or six of the maps: table I of the paper
    S4           5 x  5 x 16       32   averages of 2x2 windows
    C5 + RELU    1 x  1 x 120  48,120   one window as large as S4's maps, on all of them
    F6 + RELU          84      10,164
    OUTPUT             10         850   a score a class

Source: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition" (1998), section
II.B. As there, S2 and S4 multiply each map by a trainable coefficient and add a trainable bias. Chosen here is what
trains by cross-entropy: ReLU after C1, C3, C5 and F6 for the scaled hyperbolic tangent after every layer (none after S2
and S4); a fully connected layer for the output units, which measured distances to codes drawn by hand; and PyTorch's
initialisation, uniform within 1 / sqrt(fan-in), for 2.4 / fan-in.
"""

import torch
from torch import Tensor, nn

from kernels.layers import AvgPool2d, Conv2d, Linear, TableConv2d
from lightning_modules.architectures.shapes import check_images, check_input_shape

SMALLEST = 16  # pixels: two 5x5 windows and two poolings leave one

# The maps of S2 that each map of C3 sees: table I.
SEEN = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)  # fmt: skip


class Subsampling(nn.Module):
    """The mean of each 2x2 window, times a coefficient of its map, plus a bias.

    Args:
        channels: number of maps.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = AvgPool2d(2)
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, volume: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H/2, W/2]."""
        return self.pool(volume) * self.weight + self.bias


class LeNet5(nn.Module):
    """Three convolutions with a subsampling after each of the first two, then two fully connected layers.

    Args:
        input_shape: channels, height and width of the images.
        classes: number of scores.

    Raises:
        ValueError: the images are too small.
    """

    def __init__(self, input_shape: tuple[int, int, int] = (1, 32, 32), classes: int = 10) -> None:
        super().__init__()
        check_input_shape(input_shape, SMALLEST)
        channels, *sides = input_shape
        self.input_shape = input_shape
        self.classes = classes
        # On the CPU also where the rest is on meta: what the table says decides on shapes.
        table = torch.tensor([[channel in seen for channel in range(6)] for seen in SEEN], device="cpu")
        self.c1 = Conv2d(channels, 6, 5, activation="relu")
        self.s2 = Subsampling(6)
        self.c3 = TableConv2d(table, 5, activation="relu")
        self.s4 = Subsampling(16)
        self.c5 = Conv2d(16, 120, tuple(((side - 4) // 2 - 4) // 2 for side in sides), activation="relu")
        self.f6 = Linear(120, 84, activation="relu")
        self.output = Linear(84, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, classes] of images [N, C, H, W]."""
        check_images(images, self.input_shape)
        volume = self.s2(self.c1(images))  # [N, 6, 14, 14]
        volume = self.c5(self.s4(self.c3(volume)))  # [N, 120, 1, 1]
        return self.output(self.f6(volume.flatten(1)))
