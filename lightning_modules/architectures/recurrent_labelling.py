"""Recurrent labelling of pixels: an estimate of the labels is fed back beside the image, and refined step by step.

With the image X [C, H, W], the estimate Y [classes, H, W] and the kernels U, V and W of figure 9.17,

    H(t) = relu(U * X + W * Y(t-1))     without the second term in the first step
    Y(t) = softmax(V * H(t))

The same kernels serve all steps, so that more steps can be taken than were learned. U and V have several layers here;
U * X, which no step changes, is computed once. For images of 48x48x3 and the default sizes the volumes are

    X    INPUT           48 x 48 x  3
    U    CONV + RELU     24 x 24 x 32   5x5 windows, stride 2; batch norm follows each convolution of U
         CONV + RELU     24 x 24 x 32   3x3 windows
         CONV            24 x 24 x 32   3x3 windows with dilation 2
    W    CONV            24 x 24 x 32   5x5 windows, stride 2, over the probabilities of the 11 labels
    H    SUM + RELU      24 x 24 x 32   of U and W, in the kernel of W
    V    CONV + RELU     24 x 24 x 32   3x3 windows with dilation 2
         TRANSPOSED CONV 48 x 48 x 11   3x3 windows, stride 2: the scores of each pixel

Images have any size: a stride of two makes (n + 1) // 2 of n pixels, and its transpose n again, be n odd or even.

Source: Goodfellow, Bengio and Courville, Deep Learning (2016), figure 9.17; Pinheiro and Collobert, "Recurrent
convolutional neural networks for scene labeling" (2014), section 3.2; Yu and Koltun, "Multi-scale context aggregation
by dilated convolutions" (2016), for the dilation.
"""

from torch import Tensor, nn

from kernels.layers import BatchNorm2d, Conv2d, ConvTranspose2d
from lightning_modules.architectures.shapes import check_any_size, check_input_shape


class RecurrentLabelling(nn.Module):
    """Convolutions of the image and of the last estimate of its labels, which give the next estimate.

    In training it gives the scores of all steps, the last ones first: (scores, those of step 1, of step 2, ...).

    Args:
        input_shape: channels, height and width of an example; images may have any size.
        filters: channels of all hidden volumes.
        steps: number of estimates, of which the last one counts. The attribute may be changed after training.
        classes: number of scores of a pixel.

    Raises:
        ValueError: there is no channel, or no step.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int] = (3, 48, 48),
        filters: int = 32,
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
        self.U = nn.Sequential(
            Conv2d(input_shape[0], filters, 5, stride=2, padding=2, bias=False),
            BatchNorm2d(filters, activation="relu"),
            Conv2d(filters, filters, 3, padding=1, bias=False),
            BatchNorm2d(filters, activation="relu"),
            Conv2d(filters, filters, 3, padding=2, dilation=2, bias=False),
            BatchNorm2d(filters),
        )
        self.W = Conv2d(classes, filters, 5, stride=2, padding=2, bias=False, activation="relu")
        self.V = nn.ModuleList(
            [
                Conv2d(filters, filters, 3, padding=2, dilation=2, activation="relu"),
                ConvTranspose2d(filters, classes, 3, stride=2, padding=1),
            ]
        )

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Scores [N, classes, H, W] of images [N, C, H, W]; in training those of every step, the last ones first."""
        *earlier, last = self.refinements(images)
        return (last, *earlier) if self.training else last

    def refinements(self, images: Tensor) -> list[Tensor]:
        """The scores [N, classes, H, W] of each step, in order."""
        check_any_size(images, self.input_shape[0], 1)
        seen = self.U(images)  # [N, filters, H/2, W/2]
        hidden_layer, spread = self.V
        scores: list[Tensor] = []
        for _ in range(self.steps):
            hidden = self.W(scores[-1].softmax(1), seen) if scores else seen.relu()
            scores.append(spread(hidden_layer(hidden), images.shape[2:]))
        return scores
