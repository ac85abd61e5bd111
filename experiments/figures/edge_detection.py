"""Edges by subtracting each pixel's left neighbour: how much a convolution saves.

The output, one pixel narrower, shows the vertical edges. It is a linear function of the picture: one could write it as
a matrix product. But the matrix would have 8 billion entries, nearly all of them zero, for what a convolution does with
two weights and three operations a pixel. A sparse matrix, which stores nothing but the entries that are not zero, needs
no more operations than the convolution; but it stores two weights for each pixel, the same two again and again.

A dense matrix of this size, 32 GB, is not made here: its time is that of a 64x56 crop, extrapolated by the number of
entries. Times are of one CPU thread, where the interpreter would say nothing: those are PyTorch's of the same
operations.
"""

import torch
from scipy import sparse
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from experiments.gallery.exact import differing
from experiments.gallery.example import Claim, Example, written
from experiments.gallery.style import BLUE, GREEN, ORANGE, SIZE, chart, mosaic, picture
from experiments.gallery.timing import seconds
from kernels import conv, use_backend
from kernels.functional import conv2d, matmul
from kernels.shape import Window
from lightning_modules.data.photographs import photograph

SOURCE = "Deep Learning, figure 9.6 and section 9.2"
SHOWS = (conv2d, conv._forward_kernel)
BACKEND = "triton"

HEIGHT, WIDTH = 280, 320
CROP = (56, 64)
EDGES = torch.tensor([[[[-1.0, 1.0]]]])
PRODUCT = Window((), (), (), ())  # on a grid of no axes
TITLES = ("floats stored", "operations", "seconds, dense extrapolated")
WAYS = ("convolution", "sparse matrix", "dense matrix")


def draw() -> Example:
    image = photograph("chelsea", color=False)[:, 10 : 10 + HEIGHT, 60 : 60 + WIDTH].contiguous()
    with FlopCounterMode(display=False) as counter:
        output = conv2d(image, EDGES)
    pixels, outputs = image.numel(), output.numel()
    few = difference_matrix(HEIGHT, WIDTH)

    floats = [EDGES.numel(), few.nnz, outputs * pixels]
    product = conv.flops(1, pixels, outputs, (), PRODUCT)
    # FLOPs have an addition for each product; the first of a sum adds nothing.
    operations = [counter.get_total_flops() - outputs, 2 * few.nnz - outputs, product - outputs]
    times, crop_differs = timed(image, few)

    figure, axes = mosaic(6.2, "AAABBB;CCDDEE", height_ratios=(1.6, 1))
    picture(axes["A"], image[0], f"{WIDTH}x{HEIGHT} pixels")
    picture(
        axes["B"], output[0].clamp(-0.2, 0.2), f"{output.shape[-1]}x{HEIGHT}: each less its left neighbour", signed=True
    )
    for panel, values, title in zip("CDE", (floats, operations, times), TITLES, strict=True):
        bars = axes[panel].barh(WAYS, values, color=(BLUE, GREEN, ORANGE), log=True)
        axes[panel].bar_label(bars, [written(value) for value in values], fontsize=SIZE - 2, padding=3)
        axes[panel].set_xlim(min(values) / 3, max(values) * 1e3)
        axes[panel].tick_params(labelleft=panel == "C")
        axes[panel].invert_yaxis()
        chart(axes[panel], title, "", "")

    return Example(
        figure,
        [
            Claim("floats of the convolution", 2, floats[0], "book"),
            Claim("operations of the convolution: 319 * 280 * 3", 267_960, operations[0], "book"),
            Claim("floats of the dense matrix: 320 * 280 * 319 * 280", 8e9, floats[2], "book", ">="),
            Claim("operations of the dense matrix product", 16e9, operations[2], "book", ">="),
            Claim("floats of the sparse matrix: 2 * 319 * 280", 178_640, floats[1], "book"),
            Claim("operations of the sparse matrix product, as of the convolution", 267_960, operations[1]),
            Claim("times the operations of the convolution, dense, to the nearest ten thousand", 60_000,
                round(operations[2] / operations[0], -4), "book"),
            Claim("pixels that the sparse product gives otherwise", 0,
                differing(torch.from_numpy(few @ image.numpy().ravel()), output.flatten())),
            Claim("pixels of the crop that the dense product gives otherwise", 0, crop_differs),
            Claim("times as long as the convolution, dense, extrapolated", 100, times[2] / times[0],
                "stated beforehand", ">="),
        ],
        {"seconds": dict(zip(WAYS, times, strict=True)), "extrapolated": WAYS[2]},
    )  # fmt: skip


def difference_matrix(height: int, width: int) -> sparse.csr_array:
    """Of the convolution of height x width pixels: -1 and 1 in each row, [height * (width - 1), height * width]."""
    line = sparse.diags_array([-1.0, 1.0], offsets=[0, 1], shape=(width - 1, width), dtype="float32")
    return sparse.kron(sparse.eye_array(height, dtype="float32"), line, format="csr")


def timed(image: Tensor, few: sparse.csr_array) -> tuple[list[float], float]:
    """Seconds of each of the WAYS, the last extrapolated from a crop; and how many pixels of it the dense product gives
    otherwise than the convolution."""
    crop = image[:, : CROP[0], : CROP[1]].contiguous()
    dense, column, pixels = (
        torch.from_numpy(difference_matrix(*CROP).toarray()),
        crop.view(-1, 1),
        image.numpy().ravel(),
    )
    larger = few.shape[0] * few.shape[1] / dense.numel()
    with use_backend("torch"):
        times = [seconds(lambda: conv2d(image, EDGES)), seconds(lambda: few @ pixels)]
        times.append(seconds(lambda: matmul(dense, column)) * larger)
        return times, differing(matmul(dense, column).flatten(), conv2d(crop, EDGES).flatten())
