"""Image files as a viewer shows them, in 8 bits a value, whatever mode they are stored in."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.Image import DecompressionBombError

DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # grey levels of 16 bits; Pillow widens some of them to 32
LARGEST = 2**16 - 1


def read_image(path: str) -> Image.Image:
    """Read a file as an RGB image.

    The rotation in its EXIF data is applied, 16-bit grey levels are scaled to 8 bits, and transparent pixels show a
    white background. Of an animation it is the first image.

    Raises:
        ValueError: the file cannot be read, or its values have no fixed range. The message names it.
    """
    if not Path(path).is_file():
        raise ValueError(f"image {path} cannot be read: it is no file")  # a pipe would be waited for
    try:
        with Image.open(path) as file:
            file.load()
            image = ImageOps.exif_transpose(file)
    except UnidentifiedImageError:
        raise ValueError(f"image {path} cannot be read: no format that Pillow knows") from None
    except (OSError, SyntaxError, ValueError, EOFError, DecompressionBombError) as error:
        raise ValueError(f"image {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if image.mode in DEEP:
        return _from_16_bits(image, path)
    if image.mode == "F":
        raise ValueError(f"image {path} has floating-point values, whose range is unknown: save it with 8 or 16 bits")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _from_16_bits(image: Image.Image, path: str) -> Image.Image:
    levels = np.asarray(image).astype(np.int64)
    if levels.min() < 0 or levels.max() > LARGEST:
        raise ValueError(
            f"image {path} must have grey levels from 0 to {LARGEST}, got {levels.min()} to {levels.max()}: "
            f"save it with 8 or 16 bits"
        )
    return Image.fromarray(np.rint(levels * (255 / LARGEST)).astype(np.uint8)).convert("RGB")
