"""Index arithmetic inside a kernel, shared by convolution and pooling: positions, offsets, bounds, taps of an input."""

from collections.abc import Sequence

import torch
import triton.language as tl
from torch import Tensor

from kernels.backend import device_function
from kernels.shape import remembered


def index_type(*counts: int) -> tl.dtype:
    """Return the integer that a kernel counts in: 64 bits only where 32 do not suffice.

    Args:
        counts: elements of its tensors, and whatever else it computes. An address outside the grid, which is masked,
            may lie as far beyond it as the grid is long.
    """
    return tl.int64 if max(counts) >= 2**30 else tl.int32


def accumulator_type(x: Tensor) -> tl.dtype:
    """What a kernel adds the values of x up in."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32


@device_function
def cdiv(a, b):
    """a / b rounded up, for a >= 0; tl.cdiv is a jitted function, see `device_function`."""
    return (a + b - 1) // b


@remembered
def odd(extents: Sequence[int]) -> tuple[int, ...]:
    """Return extents as a kernel takes them, 2 e - 1 for e; see `extents`.

    Triton compiles a kernel anew for integers that 16 divides, and for those that are 1. What is computed of an extent
    gains by the second only: of these numbers 16 divides none, and that of 1 is 1.
    """
    return tuple(2 * extent - 1 for extent in extents)


@device_function
def extents(odd, UNIT: tl.constexpr = 1):
    """Three extents of their `odd` numbers; the last is a multiple of UNIT, and the compiler knows it."""
    return (odd[0] + 1) // 2, (odd[1] + 1) // 2, (odd[2] + 1) // 2 * UNIT


@remembered
def divisors(extents: Sequence[int]) -> tuple[int, ...]:
    """Extents of three axes as `unravel` takes them: beside the last two, what divides by them without dividing.

    For i < 2**30, i // e = i * multiplier >> shift (Granlund and Montgomery, "Division by invariant integers using
    multiplication", 1994, theorem 4.2), which takes two instructions where a division takes some fifteen. They are all
    `odd`, the multipliers less 2**30.
    """
    last = [max(1, extent) for extent in extents[1:]]
    shifts = [30 + (extent - 1).bit_length() for extent in last]
    multipliers = [2**shift // extent + 1 for shift, extent in zip(shifts, last, strict=True)]
    return *odd(extents), *(2 * (m - 2**30) + 1 for m in multipliers), *(2 * shift + 1 for shift in shifts)


@device_function
def unravel(index, counts):
    """index, row-major over (N, D, H, W) -> its coordinates n, d, h, w, each of the shape of index.

    `counts` are the `divisors` of D, H, W.
    """
    depth = (counts[0] + 1) // 2
    index, w = _divide(index, counts[2], counts[4], counts[6])
    index, h = _divide(index, counts[1], counts[3], counts[5])
    return index // depth, index % depth, h, w


@device_function
def _divide(index, extent, multiplier, shift):
    """Quotient and remainder, of numbers as `divisors` gives them."""
    extent = (extent + 1) // 2
    if index.dtype == tl.int64:
        quotient = index // extent
    else:
        quotient = ((index.to(tl.int64) * (multiplier // 2 + 2**30)) >> (shift // 2)).to(tl.int32)
    return quotient, index - quotient * extent


@device_function
def offset(n, d, h, w, size):
    """Position (n, d, h, w) as a number of positions into a grid [N, *size], in the type of n; see `index_type`."""
    return ((n * size[0] + d) * size[1] + h) * size[2] + w


@device_function
def inside(valid, origin, shift, size, EDGE: tl.constexpr):
    """valid and 0 <= origin + shift < size; only `valid` on an axis where the window cannot leave the grid."""
    result = valid
    if EDGE:
        result = valid & within(origin + shift, size)
    return result


@device_function
def within(position, size):
    """0 <= position < size: as unsigned integers one comparison, since a negative one is larger than any size."""
    if position.dtype == tl.int64:
        result = position.to(tl.uint64, bitcast=True) < size
    else:
        result = position.to(tl.uint32, bitcast=True) < size
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


@device_function
def span(p, AXIS: tl.constexpr, x_size, y_size, WINDOW: tl.constexpr):
    """First input of window p of one axis, off the grid where it is padded, and the bound that it or the grid has."""
    if WINDOW.adaptive:
        start = p * x_size[AXIS] // y_size[AXIS]
        end = cdiv((p + 1) * x_size[AXIS], y_size[AXIS])
    else:
        start = p * WINDOW.stride[AXIS] - WINDOW.padding[AXIS][0]
        end = x_size[AXIS]
    return start, end


@device_function
def count(p, AXIS: tl.constexpr, x_size, y_size, WINDOW: tl.constexpr, PADDED: tl.constexpr):
    """Inputs in window p of one axis, among them the padding if PADDED; without dilation."""
    start, end = span(p, AXIS, x_size, y_size, WINDOW)
    if not WINDOW.adaptive:
        if PADDED:
            end = tl.minimum(start + WINDOW.kernel[AXIS], end + WINDOW.padding[AXIS][1])
        else:
            end = tl.minimum(start + WINDOW.kernel[AXIS], end)
            start = tl.maximum(start, 0)
    return end - start


@device_function
def readers(i, AXIS: tl.constexpr, x_size, y_size, WINDOW: tl.constexpr):
    """What `reader` counts from and to: the first tap that reads input i of one axis; if adaptive, the windows that do.

    See kernels.shape.longest_part.
    """
    if WINDOW.adaptive:
        first = i * y_size[AXIS] // x_size[AXIS]
        end = cdiv((i + 1) * y_size[AXIS], x_size[AXIS])
    else:
        first = first_tap(i + WINDOW.padding[AXIS][0], AXIS, WINDOW)
        end = WINDOW.kernel[AXIS]
    return first, end


@device_function
def reader(i, j, bounds, valid, AXIS: tl.constexpr, x_size, y_size, WINDOW: tl.constexpr):
    """The j-th window that reads input i of one axis, the tap with which it does, and valid and whether it exists."""
    if WINDOW.adaptive:
        p = bounds[0] + j
        tap = i - p * x_size[AXIS] // y_size[AXIS]
        valid = valid & (p < bounds[1])
    else:
        tap = bounds[0] + j * WINDOW.every[AXIS]
        p = (i + WINDOW.padding[AXIS][0] - tap * WINDOW.dilation[AXIS]) // WINDOW.stride[AXIS]
        valid = inside(valid & (tap < bounds[1]), p, 0, y_size[AXIS], WINDOW.edges[AXIS])
    return p, tap, valid
