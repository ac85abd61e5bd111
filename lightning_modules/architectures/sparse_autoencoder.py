"""Convolutional sparse autoencoder: kernels that take images to a code, and in the transpose the code back to images.

For images of 24x24x1, 64 kernels of 11x11 and stride 1 the volumes are

    INPUT            24 x 24 x  1
    CODE             14 x 14 x 64   CONV with the kernels W, every window within the image
    RECONSTRUCTION   24 x 24 x  1   transposed CONV with the same W

Of images as large as the kernels, the code has one position, and z = W x, r = W' z: reconstruction ICA.

Source: Le, Karpenko, Ngiam and Ng, "ICA with reconstruction cost for efficient overcomplete feature learning" (2011);
Masci, Meier, Ciresan and Schmidhuber, "Stacked convolutional auto-encoders for hierarchical feature extraction" (2011),
for the tied convolution. Images should be whitened. Kernels are initialised as normal noise of a norm at which code and
images have equal energy, if the images are white: 1 / sqrt(positions of the code that see a pixel x filters).
"""

from typing import NamedTuple

from torch import Tensor, nn

from kernels.layers import Conv2d
from lightning_modules.architectures.shapes import check_any_size, check_input_shape


class Reconstructed(NamedTuple):
    """What an autoencoder makes of images: their reconstruction, of the same shape, and the code it is made from."""

    reconstruction: Tensor
    code: Tensor


class SparseAutoencoder(nn.Module):
    """A convolution and its transpose with the same kernels, without bias or activation.

    Args:
        input_shape: channels, height and width of an example; images may have any size from the kernels' on.
        filters: number of kernels, the channels of the code.
        kernel_size: side of their square windows, in pixels.
        stride: pixels from one position of the code to the next.

    Raises:
        ValueError: the images are smaller than the windows.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int] = (1, 24, 24),
        filters: int = 64,
        kernel_size: int = 11,
        stride: int = 1,
    ) -> None:
        super().__init__()
        check_input_shape(input_shape, kernel_size)
        self.input_shape = input_shape
        self.conv = Conv2d(input_shape[0], filters, kernel_size, stride=stride, bias=False)
        nn.init.normal_(self.conv.weight, std=stride / (filters**0.5 * kernel_size))

    def forward(self, images: Tensor) -> Reconstructed:
        """The reconstruction [N, C, H, W] and the code [N, filters, P, Q] of images [N, C, H, W]."""
        check_any_size(images, self.input_shape[0], self.conv.kernel_size[0])
        code = self.conv(images)
        beyond = [
            (n - k) % s for n, k, s in zip(images.shape[2:], self.conv.kernel_size, self.conv.stride, strict=True)
        ]
        return Reconstructed(self.conv.transpose(code, beyond), code)
