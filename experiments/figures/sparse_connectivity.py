"""Sparse connectivity: few inputs to an output, few outputs to an input.

Five units, and a kernel of width three. Above, seen from below: of a convolution one input reaches the three outputs
about it, of a matrix product all five. Below, seen from above: one output sees three inputs, its receptive field, or
all five. The lines are where the Jacobian of the real layer is not zero, that is, where moving an input moves an
output.

What is not connected is neither stored nor multiplied. With k inputs to each of n outputs the work grows as k times n,
not as m times n, and k does not grow with the picture.
"""

import torch

from experiments.gallery.example import Claim, Example
from experiments.gallery.style import canvas
from experiments.gallery.wiring import connections, derivative
from kernels import transpose
from kernels.functional import conv1d
from kernels.layers import Conv1d, Linear

SOURCE = "Deep Learning, figures 9.2 and 9.3"
SHOWS = (conv1d, transpose._transpose_kernel)
BACKEND = "triton"

UNITS, WIDTH, MIDDLE = 5, 3, 2
SIZES = (10, 20)


def draw() -> Example:
    sparse, dense = Conv1d(1, 1, WIDTH, padding="same", bias=False), Linear(UNITS, UNITS, bias=False)
    moved = {"convolution": derivative(sparse, UNITS), "matrix product": derivative(dense, UNITS)}

    figure, axes = canvas(4.2, 2, 2)
    from_middle, to_middle = torch.zeros(2, UNITS, UNITS)
    from_middle[:, MIDDLE], to_middle[MIDDLE] = 1, 1
    for column, (name, matrix) in enumerate(moved.items()):
        connections(axes[0, column], matrix, from_middle, f"{name}: what $x_3$ reaches")
        connections(axes[1, column], matrix, to_middle, f"{name}: what $s_3$ sees")

    few, all_of_them = moved.values()
    return Example(
        figure,
        [
            Claim("outputs that one input reaches, convolution", 3, float(few[:, MIDDLE].count_nonzero()), "book"),
            Claim("outputs that one input reaches, matrix product", 5,
                float(all_of_them[:, MIDDLE].count_nonzero()), "book"),
            Claim("inputs that one output sees, convolution", 3, float(few[MIDDLE].count_nonzero()), "book"),
            Claim("inputs that one output sees, matrix product", 5, float(all_of_them[MIDDLE].count_nonzero()), "book"),
            Claim("connections of the convolution: 5 of 3, less two beyond the edges", 13, float(few.count_nonzero())),
            Claim("connections of the matrix product", 25, float(all_of_them.count_nonzero())),
            *(Claim(f"connections of the convolution, of {size} units", WIDTH * size - 2,
                float(derivative(sparse, size).count_nonzero())) for size in SIZES),
        ],
    )  # fmt: skip
