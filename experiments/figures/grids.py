"""One kernel for sound, images and video, of any size.

A convolution needs a grid, of however many axes: here the same Triton kernel finds where a sound rises and falls, the
upright edges of a photograph, and what moves in a video. It works on three axes always; a grid of fewer is given axes
of one position.

Nor does the size of the grid matter. An image of 8192x8192 need not be in memory with all that the layers make of it:
each part of the output depends on a part of the image only, which receptive field and stride tell. Computed part by
part the output is the same to the last bit, all numbers being whole here. The parts and the three grids are computed by
Triton; the large image as a whole by PyTorch, since Triton's interpreter takes long.
"""

from itertools import product

import torch
from scipy import ndimage
from torch import Tensor, nn

from experiments.gallery.exact import differing
from experiments.gallery.example import Claim, Example
from experiments.gallery.memory import PeakMemory
from experiments.gallery.style import BLUE, GREY, ORANGE, canvas, chart, picture
from experiments.summary.trace import Row, layers_of
from kernels import conv, use_backend
from kernels.functional import conv1d, conv2d, conv3d
from kernels.layers import Conv2d
from lightning_modules.data import MovingDigitsDataModule, WaveformsDataModule
from lightning_modules.data.photographs import photograph

SOURCE = "Deep Learning, section 9.7, table 9.1"
SHOWS = (conv1d, conv2d, conv3d, conv.forward, conv._forward_kernel)
BACKEND = "triton"

CONVOLUTIONS = (conv1d, conv2d, conv3d)
DIFFERENCE, AVERAGE = torch.tensor([-1.0, 0, 1]), torch.tensor([1.0, 2, 1])
SIDE, TILE = 8192, 256  # of the large image, in pixels, and of a part of its output


LEAST = (4 * SIDE**2 + 4 * 4 * (SIDE // 4 - 1) ** 2) / 2**20  # MiB: an image, and four channels after a stride of 4


def draw() -> Example:
    grids = {"sound": sound(), "image": whole(photograph("camera", False)[0]), "video": video()}
    kernels = {
        "sound": DIFFERENCE,
        "image": torch.einsum("i,j->ij", AVERAGE, DIFFERENCE),
        "video": torch.einsum("i,j,k->ijk", DIFFERENCE, AVERAGE, AVERAGE),
    }
    found = {name: convolved(grid, kernels[name]) for name, grid in grids.items()}
    by_scipy = {
        name: torch.from_numpy(ndimage.correlate(grid.numpy(), kernels[name].numpy(), mode="constant"))
        for name, grid in grids.items()
    }
    wrong = {name: differing(found[name], by_scipy[name]) for name in grids}
    lifted = [convolved(grids["sound"].view(*ones, -1), DIFFERENCE.view(*ones, -1)) for ones in ((1,), (1, 1))]

    image, network = large_image(), strided_network()
    last = layers_of(network, (1, SIDE, SIDE))[-1]
    with torch.no_grad(), PeakMemory() as in_parts:
        parts = by_parts(network, image, last)
    with torch.no_grad(), use_backend("torch"), PeakMemory() as at_once:
        complete = network(image[None, None].float())[0]
    megabytes = [peak.bytes / 2**20 for peak in (at_once, in_parts)]

    figure, axes = canvas(5.6, rows=2, columns=4, height_ratios=(1, 1))
    axes[0, 0].plot(grids["sound"], color=GREY, label="sound")
    axes[0, 0].plot(found["sound"], color=BLUE, label="convolved")
    axes[0, 0].legend(fontsize=8, loc="upper right", ncols=2)
    axes[0, 0].set_ylim(-320, 420)
    chart(axes[0, 0], "1-D: a sound", "samples", "")
    picture(axes[0, 1], found["image"], "2-D: a photograph", signed=True)
    middle = len(grids["video"]) // 2
    picture(axes[0, 2], grids["video"][middle], "3-D: a video, one frame")
    picture(axes[0, 3], found["video"][middle], "convolved: what moves", signed=True)
    picture(axes[1, 0], image[::16, ::16], f"an image of {SIDE}x{SIDE}")
    picture(axes[1, 1], parts[0, ::2, ::2], f"a channel of {parts.shape[1]}x{parts.shape[2]}\nby parts")
    for place in range(0, parts.shape[1] // 2, TILE // 2):
        axes[1, 1].axhline(place, color=ORANGE, linewidth=0.7)
        axes[1, 1].axvline(place, color=ORANGE, linewidth=0.7)
    picture(axes[1, 2], (parts - complete).abs().amax(0)[::2, ::2], "difference to the whole")
    bars = axes[1, 3].bar(["at once", "by parts"], megabytes, color=[GREY, BLUE])
    axes[1, 3].bar_label(bars, fmt="{:.0f}", fontsize=8)
    chart(axes[1, 3], "memory at most, in MiB", "", "")

    output = parts.nbytes / 2**20
    return Example(
        figure,
        [
            *(Claim(f"{name}: outputs that differ from SciPy's", 0, count) for name, count in wrong.items()),
            *(
                Claim(f"sound on {grid.dim()} axes: outputs that differ", 0, differing(grid.flatten(), found["sound"]))
                for grid in lifted
            ),
            Claim(f"{SIDE}x{SIDE}: side of the output", ((SIDE - 4) // 4 + 1 - 3) // 2 + 1, parts.shape[1]),
            Claim("outputs by parts that differ from those at once", 0, differing(parts, complete)),
            Claim("MiB at once, with the image as floats and the first volume", LEAST, megabytes[0], relation=">="),
            Claim("times the memory of the parts", 5, megabytes[0] / megabytes[1], "stated beforehand", ">="),
            Claim("MiB by parts beside the output", 32, megabytes[1] - output, "stated beforehand", "<="),
        ],
        {"MiB at once": megabytes[0], "MiB by parts": megabytes[1], "MiB of the output": output},
    )  # fmt: skip


def whole(values: Tensor) -> Tensor:
    """Values rounded to steps of 1/255, as whole numbers: sums of them are exact."""
    return (255 * values).round()


def sound() -> Tensor:
    """A chirp [120] in noise."""
    module = WaveformsDataModule(length=120, noise=0.05, train_samples=8, eval_samples=8)
    return whole(module.make_splits()[0][1][0][0])


def video() -> Tensor:
    """A digit that moves [frames, H, W], in noise."""
    module = MovingDigitsDataModule(image_size=24, digit_size=14, noise=0.1, train_samples=8, eval_samples=8)
    return whole(module.make_splits()[0][0][0][0])


def convolved(grid: Tensor, kernel: Tensor) -> Tensor:
    """A grid of one to three axes under a window with zeros around it: as large as the grid."""
    return CONVOLUTIONS[grid.dim() - 1](grid[None, None], kernel[None, None], padding="same")[0, 0]


def large_image() -> Tensor:
    """A photograph of stars enlarged to [SIDE, SIDE], in bytes."""
    small = whole(photograph("hubble_deep_field", False)[0]).byte()
    rows, columns = (torch.arange(SIDE) * extent // SIDE for extent in small.shape)
    return small[rows][:, columns]


def strided_network() -> nn.Sequential:
    """Two convolutions with whole numbers as weights, which make about an eighth of each side."""
    layers = [Conv2d(1, 4, 4, stride=4, bias=False, activation="relu"), Conv2d(4, 4, 3, stride=2, bias=False)]
    for layer in layers:
        layer.weight.data = torch.randint(-1, 3, layer.weight.shape).float()
    return nn.Sequential(*layers)


def by_parts(network: nn.Module, image: Tensor, last: Row) -> Tensor:
    """The output [C, P, Q] of the layer `last` for an image [H, W], a part at a time from the pixels that it sees."""
    assert last.field is not None and last.jump is not None
    field, jump = last.field[0], int(last.jump[0])
    output = torch.empty(last.output)
    for rows, columns in product(*(torch.arange(extent).split(TILE) for extent in last.output[1:])):
        seen = [slice(int(axis[0]) * jump, int(axis[-1]) * jump + field) for axis in (rows, columns)]
        part = network(image[tuple(seen)][None, None].float())[0]
        output[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = part
    return output
