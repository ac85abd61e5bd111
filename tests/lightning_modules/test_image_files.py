"""Image files of every mode are read as a viewer shows them, or refused by name."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from lightning_modules.data.image_files import read_image

GREYS = np.arange(0, 256, 5, dtype=np.uint8)[None].repeat(2, 0)  # [2, 52]
COLOURS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def read(path) -> np.ndarray:
    image = read_image(str(path))
    assert image.mode == "RGB"
    return np.asarray(image)


def in_colour(greys: np.ndarray) -> np.ndarray:
    return np.stack([greys] * 3, axis=-1)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled(tmp_path, suffix):
    levels = GREYS.astype(np.uint16) * 257
    Image.fromarray(levels).save(tmp_path / f"deep.{suffix}")
    assert np.array_equal(read(tmp_path / f"deep.{suffix}"), in_colour(GREYS))


def test_big_endian_16_bits_are_scaled(tmp_path):
    header = b"P5 52 2 65535\n"
    (tmp_path / "deep.pgm").write_bytes(header + (GREYS.astype(">u2") * 257).tobytes())
    assert np.array_equal(read(tmp_path / "deep.pgm"), in_colour(GREYS))


def test_one_bit(tmp_path):
    bits = COLOURS[..., 0] > 128
    Image.fromarray(bits).save(tmp_path / "bits.png")
    assert np.array_equal(read(tmp_path / "bits.png"), in_colour(np.where(bits, 255, 0).astype(np.uint8)))


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_modes_without_transparency(tmp_path, mode):
    image = Image.fromarray(COLOURS).convert(mode, palette=Image.Palette.ADAPTIVE)
    image.save(tmp_path / "it.png")
    assert np.array_equal(read(tmp_path / "it.png"), np.asarray(image.convert("RGB")))


def test_transparency_shows_white(tmp_path):
    alpha = np.full((4, 6), 255, np.uint8)
    alpha[0, 0], alpha[1, 1] = 0, 51
    expected = COLOURS.copy()
    expected[0, 0] = 255
    expected[1, 1] = np.rint(0.2 * COLOURS[1, 1] + 0.8 * 255)
    Image.fromarray(np.dstack([COLOURS, alpha])).save(tmp_path / "alpha.png")
    assert np.abs(read(tmp_path / "alpha.png").astype(int) - expected).max() <= 1  # one rounding
    Image.fromarray(np.dstack([GREYS, 0 * GREYS]), "LA").save(tmp_path / "hidden.png")
    assert (read(tmp_path / "hidden.png") == 255).all()


def test_a_transparent_colour_of_a_palette_shows_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    image.save(tmp_path / "palette.png", transparency=1)
    assert read(tmp_path / "palette.png").tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_cmyk_is_not_inverted(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    assert np.abs(read(tmp_path / "red.jpg").astype(int) - [255, 0, 0]).max() < 5  # JPEG is lossy


@pytest.mark.parametrize("orientation, turned", [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_the_camera_s_rotation_is_applied(tmp_path, orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOURS).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read(tmp_path / "turned.png"), np.rot90(COLOURS, turned))


def test_an_animation_gives_its_first_image(tmp_path):
    frames = [Image.new("L", (2, 2), level) for level in (10, 200)]
    frames[0].save(tmp_path / "it.gif", save_all=True, append_images=frames[1:])
    assert (read(tmp_path / "it.gif") == 10).all()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def write_damaged(path, kind: str) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    huge = whole[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)) + whole[33:]
    path.write_bytes({"truncated": whole[:2000], "text": b"no image", "empty": b"", "huge": huge}[kind])


@pytest.mark.parametrize(
    "kind, says",
    [
        ("truncated", "truncated"), ("text", "no format that Pillow knows"), ("empty", "no format that Pillow knows"),
        ("huge", "400000000 pixels"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_name(tmp_path, kind, says):
    write_damaged(tmp_path / "cat.png", kind)
    with pytest.raises(ValueError, match=rf"^image .*cat\.png cannot be read: .*{says}"):
        read_image(str(tmp_path / "cat.png"))


def test_a_pipe_and_a_dangling_link_are_no_images(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("absent")
    for name in ("pipe.png", "link.png"):
        with pytest.raises(ValueError, match=f"{name} cannot be read: it is no file"):
            read_image(str(tmp_path / name))


def test_values_without_a_range_are_refused_by_name(tmp_path):
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "floats.tif")
    with pytest.raises(ValueError, match=r"floats.tif has floating-point values"):
        read_image(str(tmp_path / "floats.tif"))
    Image.fromarray(np.full((2, 2), 70_000, np.int32)).save(tmp_path / "integers.tif")
    with pytest.raises(ValueError, match=r"integers.tif must have grey levels from 0 to 65535, got 70000 to 70000"):
        read_image(str(tmp_path / "integers.tif"))
