"""Recurrent labelling of pixels: an estimate of the labels is fed back beside the image, and refined step by step.

With the image X [C, H, W], the estimate Y [classes, H, W] and the kernels U, V and W of figure 9.17,

    H(t) = relu(U * X + W * Y(t-1))     without the second term in the first step
    Y(t) = softmax(V * H(t) + S * X)

The same kernels serve all steps, so that more steps can be taken than were learned. U, V and S have several layers
here; U * X and S * X, which no step changes, are computed once. S, which the figure lacks, sees no more than a pixel's
neighbours, but at full size: where something is, while H, at a quarter of it, has what it is. For images of 48x48x3 and
the default sizes the volumes are

    X    INPUT           48 x 48 x  3
    U    CONV + RELU     24 x 24 x 16   5x5 windows, stride 2; batch norm follows each convolution of U
         CONV            12 x 12 x 48   3x3 windows, stride 2
    W    CONV            12 x 12 x 48   7x7 windows, stride 4, over the probabilities of the 11 labels
    H    SUM + RELU      12 x 12 x 48   of U and W, in the kernel of W
    V    CONV + RELU     12 x 12 x 48   3x3 windows
         TRANSPOSED CONV 48 x 48 x 11   7x7 windows, stride 4
    S    CONV + RELU     48 x 48 x 16   3x3 windows, batch norm
         CONV            48 x 48 x 11   1x1 windows; the scores of each pixel are V's and these

Images have any size: two strides of two, or one of four, make (n + 3) // 4 of n pixels, and the transpose n again.

Source: Goodfellow, Bengio and Courville, Deep Learning (2016), figure 9.17; Pinheiro and Collobert, "Recurrent
convolutional neural networks for scene labeling" (2014), section 3.2; Long, Shelhamer and Darrell, "Fully convolutional
networks for semantic segmentation" (2015), for coarse scores that are added to finer ones.
"""

from torch import Tensor, nn

from kernels.layers import BatchNorm2d, Conv2d, ConvTranspose2d
from lightning_modules.architectures.shapes import check_any_size, check_input_shape


class RecurrentLabelling(nn.Module):
    """Convolutions of the image and of the last estimate of its labels, which give the next estimate.

    In training it gives the scores of all steps, the last ones first: (scores, those of step 1, of step 2, ...).

    Args:
        input_shape: channels, height and width of an example; images may have any size.
        filters: channels of the hidden volumes of full and of half size, and of those at a quarter.
        steps: number of estimates, of which the last one counts. The attribute may be changed after training.
        classes: number of scores of a pixel.

    Raises:
        ValueError: there is no channel, or no step.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int] = (3, 48, 48),
        filters: tuple[int, int] = (16, 48),
        steps: int = 3,
        classes: int = 11,
    ) -> None:
        super().__init__()
        check_input_shape(input_shape, 1)
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self.input_shape = input_shape
        self.classes = classes
        self.steps = steps
        few, many = filters
        self.U = nn.Sequential(
            Conv2d(input_shape[0], few, 5, stride=2, padding=2, bias=False),
            BatchNorm2d(few, activation="relu"),
            Conv2d(few, many, 3, stride=2, padding=1, bias=False),
            BatchNorm2d(many),
        )
        self.W = Conv2d(classes, many, 7, stride=4, padding=3, bias=False, activation="relu")
        self.V = nn.ModuleList(
            [
                Conv2d(many, many, 3, padding=1, activation="relu"),
                ConvTranspose2d(many, classes, 7, stride=4, padding=3),
            ]
        )
        self.S = nn.Sequential(
            Conv2d(input_shape[0], few, 3, padding=1, bias=False),
            BatchNorm2d(few, activation="relu"),
            Conv2d(few, classes, 1),
        )

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Scores [N, classes, H, W] of images [N, C, H, W]; in training those of every step, the last ones first."""
        *earlier, last = self.refinements(images)
        return (last, *earlier) if self.training else last

    def refinements(self, images: Tensor) -> list[Tensor]:
        """The scores [N, classes, H, W] of each step, in order."""
        check_any_size(images, self.input_shape[0], 1)
        seen, local = self.U(images), self.S(images)  # [N, many, H/4, W/4], [N, classes, H, W]
        hidden_layer, spread = self.V
        scores: list[Tensor] = []
        for _ in range(self.steps):
            hidden = self.W(scores[-1].softmax(1), seen) if scores else seen.relu()
            scores.append(spread(hidden_layer(hidden), images.shape[2:]) + local)
        return scores
