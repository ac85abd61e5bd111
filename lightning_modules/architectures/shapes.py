"""The checks that the architectures share."""

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


def check_images(images: Tensor, input_shape: tuple[int, int, int]) -> None:
    """Hold a batch of images to the shape that a network was built for.

    Raises:
        ValueError: `images` is not [N, *input_shape].
    """
    if images.ndim != 4 or tuple(images.shape[1:]) != tuple(input_shape):
        channels, height, width = input_shape
        raise ValueError(f"images must be [N, {channels}, {height}, {width}], got {list(images.shape)}")
