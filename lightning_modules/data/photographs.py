"""The photographs that scikit-learn and scikit-image ship, cut into parts for training, validation and test.

Each photograph is divided into 3 x 4 blocks with gaps of 16 pixels, which are dealt out at random: eight to the
training, two to the validation, two to the test. A crop lies within one block, so no pixel is in two splits; and as the
compression of JPEG works on squares of at most 16 pixels, and the filters used here reach less far than half the gap,
none depends on one of another split.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from skimage import data
from skimage.color import rgb2gray
from skimage.util import img_as_float32
from sklearn.datasets import load_sample_image
from torch import Tensor

PHOTOGRAPHS: dict[str, Callable[[], object]] = {
    "astronaut": data.astronaut,
    "brick": data.brick,
    "camera": data.camera,
    "chelsea": data.chelsea,
    "china": lambda: load_sample_image("china.jpg"),
    "coffee": data.coffee,
    "coins": data.coins,
    "flower": lambda: load_sample_image("flower.jpg"),
    "grass": data.grass,
    "gravel": data.gravel,
    "hubble_deep_field": data.hubble_deep_field,
    "ihc": data.immunohistochemistry,
    "moon": data.moon,
    "motorcycle": lambda: data.stereo_motorcycle()[0],
    "page": data.page,
    "retina": data.retina,
    "rocket": data.rocket,
    "text": data.text,
}
GREY = ("brick", "camera", "coins", "grass", "gravel", "moon", "page", "text")
NATURAL = ("astronaut", "chelsea", "china", "coffee", "flower", "motorcycle", "rocket")  # scenes, in colour

ROWS, COLUMNS = 3, 4
GAP = 16  # pixels between blocks
SHARES = (8, 2, 2)  # blocks of a photograph for training, validation and test


def check_photographs(names: Sequence[str], color: bool) -> None:
    """Raises ValueError for a photograph that is not known or, if colour is wanted, has none; or if there are none."""
    known = [name for name in PHOTOGRAPHS if not (color and name in GREY)]
    if not names or not set(names) <= set(known):
        wanted = "photographs in colour" if color else "photographs"
        raise ValueError(f"photographs must name {wanted}, of {', '.join(known)}, got {', '.join(names) or 'none'}")


def photograph(name: str, color: bool) -> Tensor:
    """A photograph [3, H, W], or [1, H, W] in grey, in 0 to 1."""
    pixels = img_as_float32(PHOTOGRAPHS[name]())  # [H, W], or [H, W, 3] in colour
    picture = torch.from_numpy(pixels if color or name in GREY else rgb2gray(pixels))
    return picture.permute(2, 0, 1).contiguous() if color else picture[None]


class Part(NamedTuple):
    """The blocks of several pictures that belong to one split.

    Attributes:
        pixels: [C, all pixels], picture after picture.
        starts: [pictures], where in `pixels` each begins.
        widths: [pictures], the length of its rows.
        blocks: [pictures, blocks, 4]: top, left, height and width.
    """

    pixels: Tensor
    starts: Tensor
    widths: Tensor
    blocks: Tensor

    def check_size(self, name: str, size: tuple[int, int]) -> None:
        """Raises ValueError if crops of this height and width do not fit into every block."""
        height, width = self.blocks[..., 2:].amin((0, 1)).tolist()
        if size[0] > height or size[1] > width:
            raise ValueError(f"{name} must be at most {height} x {width} for these photographs, got {size}")

    def crops(self, which: Tensor, size: tuple[int, int], generator: torch.Generator | None = None) -> Tensor:
        """Crops [N, C, *size] at random places, all of a block equally likely, of the pictures `which` [N]."""
        return self.pixels[:, self.places(which, size, generator)].transpose(0, 1).contiguous()

    def places(self, which: Tensor, size: tuple[int, int], generator: torch.Generator | None = None) -> Tensor:
        """Where in `pixels` such crops lie, [N, *size]."""
        block = torch.randint(self.blocks.shape[1], which.shape, generator=generator)
        corner, extent = self.blocks[which, block].split(2, dim=1)  # [N, 2] each
        room = extent - torch.tensor(size) + 1
        top, left = (corner + (torch.rand(room.shape, generator=generator) * room).long()).T
        rows = top[:, None] + torch.arange(size[0])  # [N, height]
        columns = left[:, None] + torch.arange(size[1])  # [N, width]
        lines = self.starts[which, None] + self.widths[which, None] * rows
        return lines[:, :, None] + columns[:, None, :]


def parts(pictures: Sequence[Tensor], split_seed: int) -> tuple[Part, Part, Part]:
    """Training, validation and test part of pictures [C, H, W], whose sizes may differ."""
    pixels = torch.cat([picture.flatten(1) for picture in pictures], dim=1)
    lengths = torch.tensor([picture[0].numel() for picture in pictures])
    widths = torch.tensor([picture.shape[2] for picture in pictures])
    generator = torch.Generator().manual_seed(split_seed)
    dealt = []
    for picture in pictures:
        blocks = divide(picture.shape[1], picture.shape[2])
        dealt.append(blocks[torch.randperm(len(blocks), generator=generator)])
    train, val, test = (
        Part(pixels, lengths.cumsum(0) - lengths, widths, blocks) for blocks in torch.stack(dealt).split(SHARES, dim=1)
    )
    return train, val, test


def divide(height: int, width: int) -> Tensor:
    """The blocks of a picture, [ROWS * COLUMNS, 4]: top, left, height and width."""
    rows = torch.linspace(0, height + GAP, ROWS + 1).long()
    columns = torch.linspace(0, width + GAP, COLUMNS + 1).long()
    corners = torch.cartesian_prod(rows[:-1], columns[:-1])
    extents = torch.cartesian_prod(rows.diff() - GAP, columns.diff() - GAP)
    return torch.cat([corners, extents], dim=1)
