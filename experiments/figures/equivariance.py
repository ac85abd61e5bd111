"""Convolution commutes with translation, and with little else.

Move the picture and convolve, or convolve and move the result: it is the same, since the same kernel is used
everywhere. An object that moves makes features that move with it. Turn the picture instead, or enlarge it, and the two
differ: a kernel that looks for vertical edges finds others in the picture turned by a quarter. A quarter turn and a
doubling map pixels onto pixels, so no interpolation is at fault.

What differs is the kernel. Where it is turned along with the picture, or looks the same from all four sides,
convolution commutes with a quarter turn, too. And with a stride of two it commutes only with moves by an even number of
pixels.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from experiments.gallery.example import Claim, Example
from experiments.gallery.style import canvas, picture
from kernels import conv
from kernels.functional import avg_pool2d, conv2d
from lightning_modules.data.photographs import photograph

SOURCE = "Deep Learning, section 9.2, equivariance"
SHOWS = (conv2d, conv._forward_kernel)
BACKEND = "triton"

EDGES = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])  # Sobel's, of vertical edges
EVEN = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])  # the Laplace operator: the same when turned
MARGIN = 10  # pixels of zeros about the picture, so that nothing leaves it


def draw() -> Example:
    image = avg_pool2d(photograph("camera", color=False)[:, 30:350, 90:410], 4)  # [1, 80, 80]
    fading = torch.hann_window(image.shape[-1], periodic=False).sqrt()
    image = pad((image - image.mean()) * fading * fading[:, None], (MARGIN,) * 4)  # without an edge of its own
    changes = {"moved by (5, 9)": moved(5, 9), "turned by 90 degrees": turned, "enlarged twice": enlarged}

    figure, axes = canvas(7.2, 3, 4)
    picture(axes[0, 0], image[0], "picture, faded out")
    picture(axes[1, 0], convolved(image)[0], "its vertical edges", signed=True)
    picture(axes[2, 0], EDGES, "by this kernel", signed=True, numbered=True)
    found = {}
    for column, (name, change) in enumerate(changes.items(), start=1):
        one, other = convolved(change(image)), change(convolved(image))
        found[name] = apart(one, other)
        picture(axes[0, column], one[0], f"{name},\nthen convolved", signed=True)
        picture(axes[1, column], other[0], f"convolved,\nthen {name}", signed=True)
        picture(axes[2, column], (one - other)[0], f"difference: {found[name]:.0%}", signed=True)

    translation, rotation, scale = found.values()
    along = apart(convolved(turned(image), turned(EDGES)), turned(convolved(image)))
    even = apart(convolved(turned(image), EVEN), turned(convolved(image, EVEN)))
    by_two = apart(strided(moved(2, 2)(image)), moved(1, 1)(strided(image)))
    by_one = min(apart(strided(moved(1, 1)(image)), move(strided(image))) for move in (moved(0, 0), moved(1, 1)))
    float_error = rounding(image, EDGES)
    return Example(
        figure,
        [
            Claim("moving, first or last: difference as a share of the result", 0, translation, within=float_error),
            Claim("turning", 0.5, rotation, "stated beforehand", ">="),
            Claim("enlarging", 0.25, scale, "stated beforehand", ">="),
            Claim("turning, the kernel too", 0, along, within=float_error),
            Claim("turning, with a kernel that looks the same when turned", 0, even, within=rounding(image, EVEN)),
            Claim("a stride of two, moved by two pixels and one", 0, by_two, within=float_error),
            Claim("a stride of two, moved by one pixel and none or one", 0.1, by_one, "stated beforehand", ">="),
        ],
    )


def convolved(image: Tensor, kernel: Tensor = EDGES) -> Tensor:
    """The image [1, H, W], convolved."""
    return conv2d(image, kernel[None, None], padding="same")


def strided(image: Tensor) -> Tensor:
    """[1, H / 2, W / 2]."""
    return conv2d(image, EDGES[None, None], stride=2, padding=1)


def moved(down: int, right: int) -> Callable[[Tensor], Tensor]:
    return lambda image: image.roll((down, right), (-2, -1))


def turned(image: Tensor) -> Tensor:
    return image.rot90(1, (-2, -1))


def enlarged(image: Tensor) -> Tensor:
    """Each pixel becomes four."""
    return image.repeat_interleave(2, -2).repeat_interleave(2, -1)


def apart(one: Tensor, other: Tensor) -> float:
    """How far one is from the other, as a share of that."""
    return float((one - other).norm() / other.norm())


def rounding(image: Tensor, kernel: Tensor) -> float:
    """How far two ways to sum nine products may be apart, as a share of the convolution: an epsilon for each product,
    times the sum of their sizes."""
    sizes = convolved(image.abs(), kernel.abs())
    return kernel.numel() * torch.finfo(image.dtype).eps * float(sizes.norm() / convolved(image, kernel).norm())
