"""A tile, and the matrix product that it is chosen for: plain numbers, which tables hold and launchers pass on."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

OPERATIONS = ("forward", "forward_max", "transpose", "transpose_tiled", "weight_gradient")
ITEMSIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
LARGEST_BLOCK = 2**20  # elements, of Triton


@dataclass(frozen=True)
class Tile:
    """Block of a matrix product: `m` rows and `n` columns of the result, `k` of the reduced axis a step.

    Args:
        warps, stages: warps of a program and depth of its software pipeline; the interpreter ignores both.
        splits: programs that share the reduced axis (weight gradient), or the positions (batch norm).
        boxes: load the input by TMA where that can be, see kernels/boxes.py.
        dot: multiply matrices. Without, as for depthwise convolution, the channels of a block are each multiplied by a
            weight of their own: k (in the weight gradient n) is 1 whatever it says, and n (m) counts all groups.
    """

    m: int
    n: int
    k: int
    warps: int = 4
    stages: int = 3
    splits: int = 1
    dot: bool = True
    boxes: bool = False

    @functools.cached_property
    def constants(self) -> dict[str, object]:
        """As the kernels of convolution take it: without a matrix product, one channel at a time."""
        return {
            "ROWS": parts(self.m), "COLUMNS": parts(self.n), "BK": self.k, "DOT": self.dot,
            "num_warps": self.warps, "num_stages": self.stages,
        }  # fmt: skip

    def blocks(self, channels: int, groups: int, block: int | None = None) -> int:
        """Blocks of `block` (or n) channels that cover `groups` times `channels` of them."""
        block = block or self.n
        return -(-channels // block) * groups if self.dot else -(-channels * groups // block)

    def __str__(self) -> str:
        extra = f", {self.splits} splits" if self.splits > 1 else ", boxes" if self.boxes else ""
        return f"{self.m}x{self.n}x{self.k}, {self.warps} warps, {self.stages} stages{extra}"


@dataclass(frozen=True)
class Product:
    """What is known of a launch when its tile is chosen.

    Args:
        operation: one of OPERATIONS: "forward", "forward_max" (pooled as it is computed), "transpose",
            "transpose_tiled" (whose kernels take turns) or "weight_gradient".
        dtype: of the factors, as in "float16".
        rows, columns, depth: extents of the product, of one group: (positions, O, C), (positions, C, O), (O, C,
            positions).
        taps: of the window. They multiply the depth; in the weight gradient, the columns.
        phases: such products side by side in one launch: kernels that take turns, residues of the transpose's stride.
            The transpose has its taps divided among the latter.
    """

    operation: str
    dtype: str
    rows: int
    columns: int
    depth: int
    taps: int
    groups: int = 1
    phases: int = 1

    @property
    def is_gradient(self) -> bool:
        """Of the weights: the positions are the reduced axis."""
        return self.operation == "weight_gradient"

    @property
    def itemsize(self) -> int:
        return ITEMSIZES[self.dtype]

    @property
    def positions(self) -> int:
        return self.depth if self.is_gradient else self.rows

    @property
    def channels(self) -> int:
        """Those that vary fastest on the (tap, channel) axis."""
        return self.columns if self.is_gradient else self.depth

    @property
    def depthwise(self) -> bool:
        """Groups of one channel, which have no product of matrices to offer."""
        single = self.depth if self.operation.startswith("forward") else self.columns
        return self.groups > 1 and single == 1

    @property
    def problem_class(self) -> Product:
        """The product that stands for all with as many positions, up to a quarter more than the least of them."""
        exponent = max(0, self.positions.bit_length() - 3)
        return self.with_positions(self.positions >> exponent << exponent)

    def with_positions(self, positions: int) -> Product:
        return replace(self, **{"depth" if self.is_gradient else "rows": positions})

    def folds(self, tile: Tile) -> bool:
        """Whether a block of the (tap, channel) axis spans taps, so that each of its elements has one of its own."""
        return self.channels % (tile.n if self.is_gradient else tile.k) != 0


def parts(extent: int) -> tuple[int, ...]:
    """Powers of two that make up an extent which is one, or one and a half of one: 96 is 64 and 32."""
    largest = 1 << (extent.bit_length() - 1)
    return (largest,) if largest == extent else (largest, extent - largest)


def fault(product: Product, tile: Tile) -> str:
    """What keeps `tile` from being launched for `product` on any target; "" where nothing does."""
    least = 16 if tile.dot else 1  # of tl.dot
    for name, side in (("m", tile.m), ("n", tile.n), ("k", tile.k)):
        half = side // 3 if side % 3 == 0 and tile.dot and name != "k" else 0
        if not any(part >= least and part & (part - 1) == 0 for part in (side, half)):
            return f"{name} must be a power of two >= {least}, or for m and n one and a half of one, got {side}"
    if max(tile.m * tile.n, tile.m * tile.k, tile.k * tile.n) > LARGEST_BLOCK:
        return f"a block of {tile.m}x{tile.n}x{tile.k} has more than {LARGEST_BLOCK} elements"
    if tile.warps not in (1, 2, 4, 8, 16):
        return f"warps must be a power of two up to 16, got {tile.warps}"
    if not 1 <= tile.stages <= 8:
        return f"stages must be 1 to 8, got {tile.stages}"
    if tile.splits < 1 or (tile.splits > 1 and not product.is_gradient):
        return f"splits must be 1, or more in the weight gradient, got {tile.splits}"
    if tile.boxes and (len(parts(tile.m)) > 1 or product.is_gradient or product.phases > 1 or not tile.dot):
        return "boxes must be false but for a forward pass or a transpose of one phase, whose m is a power of two"
    if tile.dot == product.depthwise:
        return f"dot must be {not product.depthwise} for groups of this kind, got {tile.dot}"
    return ""


def block(extent: int, most: int) -> int:
    """Smallest power of two >= extent, between 16 (the least that tl.dot takes) and `most`."""
    return max(16, min(most, 1 << max(0, extent - 1).bit_length()))


def rows_block(rows: int, most: int) -> int:
    """`most`, or a quarter of it where most of it would be empty."""
    return most if rows > most // 2 else max(16, most // 4)
