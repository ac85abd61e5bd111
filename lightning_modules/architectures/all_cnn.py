"""All-CNN-C: convolutions and nothing else; where others pool, a stride of two.

For images of 32x32x3 the volumes are

    INPUT            32 x 32 x   3   a fifth of the values are dropped
    CONV1 + RELU     32 x 32 x  96   3x3 windows, as all that follow up to CONV7
    CONV2 + RELU     32 x 32 x  96
    CONV3 + RELU     16 x 16 x  96   stride 2; then half of the values are dropped
    CONV4 + RELU     16 x 16 x 192
    CONV5 + RELU     16 x 16 x 192
    CONV6 + RELU      8 x  8 x 192   stride 2; then half of the values are dropped
    CONV7 + RELU      6 x  6 x 192   not padded
    CONV8 + RELU      6 x  6 x 192   1x1 windows
    CONV9 + RELU      6 x  6 x  10   1x1 windows
    AVERAGE           1 x  1 x  10   a score a class

Source: Springenberg, Dosovitskiy, Brox and Riedmiller, "Striving for simplicity: the all convolutional net" (2015),
tables 1 and 2, and section 3.1 for the dropout. The paper does not say how weights are initialised: here it is as in
He, Zhang, Ren and Sun, "Delving deep into rectifiers" (2015), which keeps the variance through layers with ReLU; but
scores begin near one, as the ReLU would give a class whose score begins below zero for all images no gradient, ever.
"""

from torch import Tensor, nn

from kernels.layers import AdaptiveAvgPool2d, Conv2d
from lightning_modules.architectures.shapes import check_images, check_input_shape

SMALLEST = 9  # pixels: two strides of two leave the three that the last 3x3 window needs


class AllCNN(nn.Module):
    """Nine convolutions with ReLU, and the average over what positions are left.

    Args:
        input_shape: channels, height and width of the images.
        filters: channels of the first three convolutions, and of the next five.
        dropout: probabilities that a value of the input, and of the output of each stride of two, is dropped.
        classes: number of scores.

    Raises:
        ValueError: the images are too small.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int] = (3, 32, 32),
        filters: tuple[int, int] = (96, 192),
        dropout: tuple[float, float] = (0.2, 0.5),
        classes: int = 10,
    ) -> None:
        super().__init__()
        check_input_shape(input_shape, SMALLEST)
        self.input_shape = input_shape
        self.classes = classes
        few, many = filters
        self.drop_input = nn.Dropout(dropout[0])
        self.conv1 = Conv2d(input_shape[0], few, 3, padding=1, activation="relu")
        self.conv2 = Conv2d(few, few, 3, padding=1, activation="relu")
        self.conv3 = Conv2d(few, few, 3, stride=2, padding=1, activation="relu")
        self.drop3 = nn.Dropout(dropout[1])
        self.conv4 = Conv2d(few, many, 3, padding=1, activation="relu")
        self.conv5 = Conv2d(many, many, 3, padding=1, activation="relu")
        self.conv6 = Conv2d(many, many, 3, stride=2, padding=1, activation="relu")
        self.drop6 = nn.Dropout(dropout[1])
        self.conv7 = Conv2d(many, many, 3, activation="relu")
        self.conv8 = Conv2d(many, many, 1, activation="relu")
        self.conv9 = Conv2d(many, classes, 1, activation="relu")
        self.average = AdaptiveAvgPool2d(1)
        for layer in self.children():
            if isinstance(layer, Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.conv9.weight, std=0.01)
        nn.init.ones_(self.conv9.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, classes] of images [N, C, H, W]."""
        check_images(images, self.input_shape)
        volume = self.conv3(self.conv2(self.conv1(self.drop_input(images))))  # [N, few, H/2, W/2]
        volume = self.conv6(self.conv5(self.conv4(self.drop3(volume))))  # [N, many, H/4, W/4]
        volume = self.conv9(self.conv8(self.conv7(self.drop6(volume))))  # [N, classes, H/4 - 2, W/4 - 2]
        return self.average(volume).flatten(1)
