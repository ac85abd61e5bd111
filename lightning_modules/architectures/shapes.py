"""The sizes of volumes, and the checks that the architectures share."""

from torch import Tensor


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


def check_input_shape(input_shape: tuple[int, int, int], smallest: int) -> None:
    """Hold the images that a network is built for to what it can take.

    Raises:
        ValueError: the images have no channel, or a side of less than `smallest` pixels.
    """
    channels, height, width = input_shape
    if channels < 1 or min(height, width) < smallest:
        raise ValueError(
            f"input_shape must be (channels, height, width) of at least (1, {smallest}, {smallest}), "
            f"got {tuple(input_shape)}"
        )


def check_images(images: Tensor, input_shape: tuple[int, int, int]) -> None:
    """Hold a batch of images to the shape that a network was built for.

    Raises:
        ValueError: `images` is not [N, *input_shape].
    """
    if images.ndim != 4 or tuple(images.shape[1:]) != tuple(input_shape):
        channels, height, width = input_shape
        raise ValueError(f"images must be [N, {channels}, {height}, {width}], got {list(images.shape)}")


def check_any_size(images: Tensor, channels: int, smallest: int) -> None:
    """Hold a batch of images to what a network takes whose images may have any size from `smallest` pixels on.

    Raises:
        ValueError: `images` is not [N, channels, H, W], or H or W is less than `smallest`.
    """
    if images.ndim != 4 or images.shape[1] != channels or min(images.shape[2:]) < smallest:
        raise ValueError(
            f"images must be [N, {channels}, H, W] with H and W of at least {smallest}, got {list(images.shape)}"
        )
