"""A convolution is a matrix product.

Each entry of the product C = AB is a sum over one axis: a row of A times a column of B. The transpose exchanges rows
and columns, and that of a product is the product of the transposes in the other order. Our kernels multiply matrices by
the operations of a convolutional layer, and read a transposed factor as it lies.

A convolution over a line is a product, too, with a Toeplitz matrix, whose rows are the kernel, each moved on by one
place: along every diagonal the values are the same. Over an image the matrix is made of such blocks, which are
themselves the same along every diagonal of blocks. Both are mostly zeros, the larger the picture the more, and the
convolution never builds them: it multiplies by the few values that there are.
"""

import numpy as np
import torch
from torch import Tensor

from experiments.gallery.exact import differing, whole_numbers
from experiments.gallery.example import Claim, Example
from experiments.gallery.style import canvas, picture
from kernels import conv
from kernels.functional import conv1d, conv2d, matmul

SOURCE = "Deep Learning, equations 2.3 to 2.5 and 2.9, section 9.1"
SHOWS = (matmul, conv.transpose)
BACKEND = "triton"

KERNEL = torch.tensor([-1.0, 2.0, 1.0])
KERNEL_2D = torch.tensor([[1.0, 2.0], [-1.0, 1.0]])


def draw() -> Example:
    a, b = whole_numbers(3, 4), whole_numbers(4, 5)
    c = matmul(a, b)
    c_transposed, a_transposed = matmul(b.t(), a.t()), matmul(torch.eye(4), a.t())
    by_definition = torch.tensor([[sum(a[i, k] * b[k, j] for k in range(4)) for j in range(5)] for i in range(3)])

    line = whole_numbers(8)
    band = banded(KERNEL, len(line))
    convolved = conv1d(line[None], KERNEL[None, None])[0]

    image = whole_numbers(5, 6)
    blocks = doubly_banded(KERNEL_2D, *image.shape)
    convolved_2d = conv2d(image[None], KERNEL_2D[None, None])[0]

    figure, axes = canvas(5.4, 2, 4, width_ratios=(1.1, 1.1, 1.4, 1.7))
    picture(axes[0, 0], a, "A", signed=True, numbered=True)
    picture(axes[0, 1], b, "B", signed=True, numbered=True)
    picture(axes[0, 2], c, "C = AB", signed=True, numbered=True)
    picture(axes[0, 3], c_transposed, "B'A' = C'", signed=True, numbered=True)
    picture(axes[1, 0], line[:, None], "a line x", signed=True, numbered=True)
    picture(axes[1, 1], convolved[:, None], "its convolution Tx", signed=True, numbered=True)
    picture(axes[1, 2], band, "the Toeplitz matrix T", signed=True, numbered=True)
    picture(axes[1, 3], blocks, f"of 2x2 windows over 5x6 pixels, {len(blocks)}x{len(blocks.t())}", signed=True)

    return Example(
        figure,
        [
            Claim("entries of AB that differ from the sum of equation 2.5", 0, differing(c, by_definition)),
            Claim("entries of B'A' that differ from C'", 0, differing(c_transposed, c.t())),
            Claim("entries of A' that are not those of A, rows and columns exchanged", 0,
                sum(float(a_transposed[j, i] != a[i, j]) for i in range(3) for j in range(4))),
            Claim("entries of Tx that differ from the convolution", 0, differing(matmul(band, line), convolved)),
            Claim("values of T that differ from that of the row before, one place back", 0,
                differing(band[1:, 1:], band[:-1, :-1])),
            Claim("values of T that are not zero, of 48: 6 outputs of 3 weights", 18, float(band.count_nonzero())),
            Claim("pixels that differ, over an image", 0,
                differing(matmul(blocks, image.flatten()), convolved_2d.flatten())),
            Claim("values of its matrix that are not zero, of 600: 20 outputs of 4 weights", 80,
                float(blocks.count_nonzero())),
        ],
    )  # fmt: skip


def banded(kernel: Tensor, size: int) -> Tensor:
    """The matrix [P, W] that convolves W = `size` places with a kernel [K]: each weight along a diagonal."""
    outputs = size - len(kernel) + 1
    return torch.stack([weight * diagonal(outputs, size, tap) for tap, weight in enumerate(kernel)]).sum(0)


def doubly_banded(kernel: Tensor, height: int, width: int) -> Tensor:
    """The matrix [P * Q, H * W] that convolves H x W pixels with a kernel [KH, KW]: bands along diagonals of blocks."""
    outputs = height - len(kernel) + 1
    bands = [torch.kron(diagonal(outputs, height, tap), banded(row, width)) for tap, row in enumerate(kernel)]
    return torch.stack(bands).sum(0)


def diagonal(rows: int, columns: int, offset: int) -> Tensor:
    """Ones `offset` places to the right of the main diagonal."""
    return torch.from_numpy(np.eye(rows, columns, offset)).float()
