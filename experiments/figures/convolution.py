"""Convolution, symbol by symbol, and its flipped twin.

A kernel of four weights w, x, y, z slides over an image of twelve pixels a to l, and each output is the sum of four
products. The symbols were not written by hand: each comes from a convolution of an image that is one at one letter and
zero elsewhere with a kernel that is one at another. Where the output is one, the two are multiplied.

What networks call convolution slides the kernel as it is; strictly that is cross-correlation. True convolution flips
the kernel first. The difference shows in the image of a single point: convolution gives the kernel back, and
cross-correlation gives it turned about. And it shows when image and kernel change places: only convolution does not
mind. To a network that learns its kernels it is all the same, since it can learn a flipped one.
"""

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from experiments.gallery.exact import differing, whole_numbers
from experiments.gallery.example import Claim, Example
from experiments.gallery.style import BLUE, SIZE, mosaic, picture
from kernels import conv
from kernels.functional import conv2d

SOURCE = "Deep Learning, figure 9.1 and equations 9.4 to 9.6"
SHOWS = (conv2d, conv._forward_kernel)
BACKEND = "triton"

PIXELS, WEIGHTS = "abcdefghijkl", "wxyz"
BOOK = ["aw + bx + ey + fz", "bw + cx + fy + gz", "cw + dx + gy + hz",
        "ew + fx + iy + jz", "fw + gx + jy + kz", "gw + hx + ky + lz"]  # fmt: skip
POINT = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
KERNEL = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])


def draw() -> Example:
    symbols = sums_of_products()
    image, kernel = whole_numbers(6, 7), whole_numbers(3, 3)
    convolved, correlated = convolution(POINT, KERNEL), correlation(POINT, KERNEL)

    figure, axes = mosaic(4.6, "ABCC;DEFG")
    letters(axes["A"], PIXELS, 4, "image")
    letters(axes["B"], WEIGHTS, 2, "kernel")
    letters(axes["C"], symbols, 3, "output")
    middle = slice(1, 4)  # of a full convolution, as large as the kernel
    images = {"a point": POINT, "a kernel": KERNEL, "convolved": convolved[middle, middle],
              "cross-correlated": correlated[middle, middle]}  # fmt: skip
    for panel, (title, values) in zip("DEFG", images.items(), strict=True):
        picture(axes[panel], values, title, numbered=True)

    return Example(
        figure,
        [
            Claim("outputs of figure 9.1 with the book's symbols", 6,
                sum(mine == its for mine, its in zip(symbols, BOOK, strict=True)), "book"),
            Claim("pixels that differ from equation 9.4", 0,
                differing(convolution(image, kernel), definition(image, kernel))),
            Claim("pixels that differ when image and kernel change places (9.5)", 0,
                differing(convolution(image, kernel), convolution(kernel, image)), "book"),
            Claim("pixels that differ when they do in cross-correlation (9.6)", 1,
                differing(correlation(image, kernel), correlation(kernel, image)), "book", ">="),
            Claim("the same, one of the two turned about", 0,
                differing(correlation(image, kernel), correlation(kernel, image).flip(0, 1))),
            Claim("values by which a convolved point differs from the kernel", 0,
                differing(convolved[middle, middle], KERNEL)),
            Claim("values by which a cross-correlated one does: all but the middle", 8,
                differing(correlated[middle, middle], KERNEL)),
        ],
        {"symbols": symbols},
    )  # fmt: skip


def sums_of_products() -> list[str]:
    """What each output of 2x2 windows over 3x4 pixels sums, in letters."""
    images, kernels = torch.eye(12).view(12, 1, 3, 4), torch.eye(4).view(4, 1, 2, 2)
    products = conv2d(images, kernels).flatten(2)  # [12 pixels, 4 weights, 6 outputs]
    return [" + ".join(PIXELS[pixel] + WEIGHTS[weight] for pixel, weight in output.nonzero().tolist())
        for output in products.unbind(-1)]  # fmt: skip


def correlation(image: Tensor, kernel: Tensor) -> Tensor:
    """Equation 9.6, of all positions where image [H, W] and kernel [KH, KW] meet."""
    return conv2d(image[None], kernel[None, None], padding="full")[0]


def convolution(image: Tensor, kernel: Tensor) -> Tensor:
    """Equation 9.4: cross-correlation with the flipped kernel."""
    return correlation(image, kernel.flip(0, 1))


def definition(image: Tensor, kernel: Tensor) -> Tensor:
    """Equation 9.4, pixel by pixel: each spreads the kernel."""
    (height, width), (rows, columns) = image.shape, kernel.shape
    output = torch.zeros(height + rows - 1, width + columns - 1)
    for row in range(height):
        for column in range(width):
            output[row : row + rows, column : column + columns] += image[row, column] * kernel
    return output


def letters(axes: Axes, texts: Sequence[str], columns: int, title: str) -> None:
    """Texts in a grid; what the first output is made of is in a frame."""
    rows = len(texts) // columns
    for number, text in enumerate(texts):
        row, column = divmod(number, columns)
        axes.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor="black"))
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=SIZE - 1)
    side = 1 if len(texts[0]) > 1 else 2
    axes.add_patch(Rectangle((0, 0), side, side, fill=False, edgecolor=BLUE, linewidth=3, zorder=2))
    axes.set(xlim=(-0.1, columns + 0.1), ylim=(rows + 0.1, -0.1), aspect=1 if side == 2 else 0.5)
    axes.set_title(title, fontsize=SIZE)
    axes.axis("off")
