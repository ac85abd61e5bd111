"""The sizes of volumes, and the checks that the architectures share."""

from torch import Tensor

GRIDS = {  # by the number of axes
    1: {"L": "length"},
    2: {"H": "height", "W": "width"},
    3: {"D": "depth", "H": "height", "W": "width"},
}


def halved(input_shape: tuple[int, int, int], times: int) -> tuple[int, int]:
    """Height and width after `times` poolings by two, each rounding down.

    Raises:
        ValueError: nothing would be left of the image, or it has no channel.
    """
    channels, height, width = input_shape
    smallest = 2**times
    if channels < 1 or min(height, width) < smallest:
        raise ValueError(
            f"input_shape must be (channels, height, width) of at least (1, {smallest}, {smallest}) "
            f"for {times} poolings by two, got {tuple(input_shape)}"
        )
    return height // smallest, width // smallest


def scaled(channels: int, width: float) -> int:
    """`width` times as many channels, rounded, one at least."""
    return max(1, round(channels * width))


def check_input_shape(input_shape: tuple[int, ...], smallest: int | tuple[int, ...]) -> None:
    """Hold the images that a network is built for to what it can take.

    Args:
        input_shape: (C, *grid).
        smallest: extents of the smallest grid; an int stands for both sides of an image.

    Raises:
        ValueError: the images have no channel, an extent is smaller, or there are more or fewer of them.
    """
    least = (1, smallest, smallest) if isinstance(smallest, int) else (1, *smallest)
    if len(input_shape) != len(least) or any(n < m for n, m in zip(input_shape, least, strict=True)):
        grid = ", ".join(GRIDS[len(least) - 1].values())
        raise ValueError(f"input_shape must be (channels, {grid}) of at least {least}, got {tuple(input_shape)}")


def check_images(images: Tensor, input_shape: tuple[int, int, int]) -> None:
    """Hold a batch of images to the shape that a network was built for.

    Raises:
        ValueError: `images` is not [N, *input_shape].
    """
    if images.ndim != 4 or tuple(images.shape[1:]) != tuple(input_shape):
        channels, height, width = input_shape
        raise ValueError(f"images must be [N, {channels}, {height}, {width}], got {list(images.shape)}")


def check_any_size(images: Tensor, channels: int, smallest: int | tuple[int, ...]) -> None:
    """Hold a batch of images to what a network takes whose images may have any size from `smallest` on.

    Args:
        images: should be [N, channels, *grid].
        smallest: as of `check_input_shape`.

    Raises:
        ValueError: `images` has another number of channels or axes, or an extent is smaller.
    """
    least = (smallest, smallest) if isinstance(smallest, int) else smallest
    fits = images.ndim == len(least) + 2 and images.shape[1] == channels
    if not fits or any(n < m for n, m in zip(images.shape[2:], least, strict=True)):
        letters = GRIDS[len(least)]
        extents = str(least[0]) if len(set(least)) == 1 else " and ".join(map(str, least))
        raise ValueError(
            f"images must be [N, {channels}, {', '.join(letters)}] with {' and '.join(letters)} of at least {extents}, "
            f"got {list(images.shape)}"
        )
