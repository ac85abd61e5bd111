"""Index arithmetic inside a kernel, shared by convolution and pooling: positions, offsets, bounds, taps of an input."""

import triton.language as tl
from torch import Tensor

from kernels.backend import device_function


def index_type(*tensors: Tensor | None) -> tl.dtype:
    """The integer that a kernel counts rows and elements of `tensors` in: 64 bits only where 32 do not suffice.

    An address outside the grid, which is masked, may lie as far beyond it as the grid is long.
    """
    return tl.int64 if any(t is not None and t.numel() >= 2**30 for t in tensors) else tl.int32


@device_function
def cdiv(a, b):
    """a / b rounded up, for a >= 0; tl.cdiv is a jitted function, see `device_function`."""
    return (a + b - 1) // b


@device_function
def unravel(index, size):
    """index, row-major over (N, *size) -> its coordinates n, d, h, w, each of the shape of index."""
    w = index % size[2]
    index = index // size[2]
    h = index % size[1]
    index = index // size[1]
    return index // size[0], index % size[0], h, w


@device_function
def offset(n, d, h, w, size):
    """Position (n, d, h, w) as a number of positions into a grid [N, *size], in the type of n; see `index_type`."""
    return ((n * size[0] + d) * size[1] + h) * size[2] + w


@device_function
def inside(valid, origin, shift, size, EDGE: tl.constexpr):
    """valid and 0 <= origin + shift < size; only `valid` on an axis where the window cannot leave the grid."""
    result = valid
    if EDGE:
        result = valid & (shift >= -origin) & (shift < size - origin)  # the bounds are of a row, outside its loop
    return result


@device_function
def first_tap(position, AXIS: tl.constexpr, WINDOW: tl.constexpr):
    """First tap that reads the input at `position` = i + before of one axis, see Window.common.

    A tap beyond the window (>= kernel) says that none does.
    """
    common: tl.constexpr = WINDOW.common[AXIS]
    tap = position % WINDOW.stride[AXIS] // common * WINDOW.inverse[AXIS] % WINDOW.every[AXIS]
    if common > 1:
        tap = tl.where(position % common == 0, tap, WINDOW.kernel[AXIS])
    return tap
