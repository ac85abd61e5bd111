"""Tiles for problems that no table knows: by what a step costs in the interpreter, by a model of the GPU elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from kernels import model
from kernels.targets import TARGETS
from kernels.tile import Product, Tile, block, rows_block

INTERPRETER = "interpreter"
INTERPRETED_BLOCK = 2**19  # elements; Triton takes at most 2**20
WAVES = (1, 2, 3, 4)  # of the weight gradient's programs, by splits of its positions
LEAST_STEPS = 4  # of a split
SPLIT = 2  # splits of a tile that has several: how many is chosen by `split`
BATCHES = {2: 1, 8: 4, 128: 32, 2048: 512}  # images up to a number: those that a block is chosen for
AROUND = {1 / 2: 1, 1: 2, 2: 1}  # multiples of its positions that a block is to suit, and their weights
SHARES = 2**28  # bytes that all splits' results may take
INTERPRETED_CALLS = 2**16  # elements that NumPy goes through while it is called for one step

# Of 16-bit factors, where 16 bytes are of one tap. Steps are short and stages many: this hides the same latency as long
# steps and takes fewer registers. Few rows, as of a linear layer, make few programs, which wait least in long steps.
_FORWARD = [
    Tile(256, 128, 32, 8, 4), Tile(192, 128, 32, 8, 4), Tile(128, 128, 32, 4, 4), Tile(256, 64, 32, 8, 4),
    Tile(192, 192, 32, 8, 4), Tile(192, 96, 32, 8, 4), Tile(96, 128, 32, 4, 4), Tile(128, 64, 32, 4, 4),
    Tile(128, 96, 32, 4, 4), Tile(64, 128, 32, 4, 4), Tile(48, 128, 32, 4, 4), Tile(96, 64, 32, 4, 4),
    Tile(64, 64, 32, 4, 4), Tile(192, 32, 32, 4, 4), Tile(128, 32, 32, 4, 4), Tile(64, 32, 64, 4, 4),
    Tile(64, 32, 32, 4, 4), Tile(64, 16, 64, 4, 4), Tile(32, 64, 64, 4, 3), Tile(32, 32, 128, 4, 3),
    Tile(32, 16, 128, 4, 3), Tile(16, 16, 128, 4, 4),
]  # fmt: skip
_GRADIENT = [
    Tile(256, 128, 32, 8, 4), Tile(128, 256, 32, 8, 4), Tile(128, 128, 32, 8, 4), Tile(128, 128, 32, 4, 4),
    Tile(128, 96, 32, 4, 4), Tile(96, 128, 32, 4, 4), Tile(128, 64, 32, 4, 4), Tile(64, 128, 32, 4, 4),
    Tile(192, 128, 32, 8, 4), Tile(64, 64, 32, 4, 4), Tile(32, 64, 32, 4, 4), Tile(32, 32, 64, 4, 4),
    Tile(32, 16, 128, 4, 4),
]  # fmt: skip
# Where each element of x or dy, or of the weights that a transpose reads, has an address of its own.
_FORWARD_OF_ELEMENTS = [
    Tile(256, 64, 16, 8, 3), Tile(128, 96, 32, 4, 3), Tile(128, 64, 32, 8, 4),
    Tile(64, 64, 32, 4, 4), Tile(64, 32, 32, 4, 4), Tile(256, 16, 16, 8, 4), Tile(16, 16, 64, 4, 4),
]  # fmt: skip
_TRANSPOSE_TO_ELEMENTS = [
    Tile(128, 32, 32, 4, 4), Tile(64, 32, 32, 4, 4), Tile(256, 16, 32, 4, 4), Tile(64, 16, 32, 4, 4),
]  # fmt: skip
_GRADIENT_OF_ELEMENTS = [
    Tile(128, 128, 32, 8, 4), Tile(128, 64, 32, 4, 4), Tile(64, 64, 32, 4, 4), Tile(32, 64, 32, 4, 4),
    Tile(96, 16, 32, 4, 4), Tile(64, 32, 64, 4, 3), Tile(16, 16, 128, 4, 4),
]  # fmt: skip
UNKNOWN_SHARED_MEMORY = 64 * 1024  # bytes that a block may use on a target that is not known
PLANAR = 512  # taps; windows of more are of three axes as a rule, whose coordinates take registers, too


def choose(target: str, product: Product) -> Tile:
    """A tile for `target`: the interpreter, where a program is dear, or any GPU."""
    if product.depthwise:
        return _depthwise(target, product)
    if target == INTERPRETER:
        return _interpreted(product)
    tiles = [replace(tile, splits=splits) for tile in options(target, product) for splits in (1, SPLIT)]
    tiles = [tile for tile in tiles if tile.splits == 1 or len(splits_of(target, product, tile)) > 1]
    losses = dict.fromkeys(tiles, 0.0)
    for factor, weight in AROUND.items() if len(tiles) > 1 else ():
        near = product.with_positions(max(1, round(product.positions * factor)))
        seconds = {tile: _seconds(target, near, tile) for tile in tiles}
        best = min(seconds.values())
        for tile in tiles:
            losses[tile] += weight * math.log(seconds[tile] / best)
    return split(target, product, min(tiles, key=losses.__getitem__))


def _seconds(target: str, product: Product, tile: Tile) -> float:
    return model.seconds(model.rates_of(target), product, split(target, product, tile))


def split(target: str, product: Product, tile: Tile) -> Tile:
    """Return `tile` with the splits that suit the product's positions: 1 where it has 1, and where it has more, more.

    How many they are is no constant of a kernel, but shares are another kernel's than sums.
    """
    if tile.splits == 1:
        return tile
    if product.depthwise:
        return replace(tile, splits=max(SPLIT, _depthwise(target, product).splits))
    rates = model.rates_of(target)
    several = [splits for splits in splits_of(target, product, tile) if splits > 1] or [SPLIT]
    tiles = [replace(tile, splits=splits) for splits in several]
    return min(tiles, key=lambda tile: model.seconds(rates, product, tile))


def typical(product: Product, batch: int) -> Product:
    """Return the product that a block is chosen for in place of `product`, of `batch` images.

    Its positions are of as many images as BATCHES says, of 1, 49, 196, 784, 3136, ... positions, whichever are nearest.
    A block is a constant of a kernel: so other batches, and images of another size, run what is compiled already.
    """
    images = next((images for most, images in BATCHES.items() if batch <= most), batch)
    positions = product.positions / max(1, batch)
    if positions >= 2:
        positions = 49 * 4.0 ** round(math.log(positions / 49, 4))
    return product.with_positions(max(1, round(images * positions)))


def _interpreted(product: Product) -> Tile:
    """Few programs with large blocks, since NumPy takes long to be called.

    The block on the (tap, channel) axis is the one with the least to go through: where it divides the channels it is
    one tap, with bounds to check for rows only; else the window is folded, with bounds to check for every element.
    """
    m = block(product.rows, 128) if product.is_gradient else 0  # of dy, loaded again for each block

    def work(side: int) -> int:
        checks = 1 if product.channels % side == 0 else 3
        steps = -(-product.channels * product.taps // side)
        return steps * (INTERPRETED_CALLS + product.positions * (side * checks + 2 * m))

    folded = min((2**exponent for exponent in range(4, 10)), key=work)
    if product.is_gradient:
        return Tile(m, folded, block(product.depth, INTERPRETED_BLOCK // max(m, folded)))
    n = block(product.columns, 512)
    return Tile(block(product.rows, INTERPRETED_BLOCK // max(n, folded)), n, folded)


def _depthwise(target: str, product: Product) -> Tile:
    """Blocks of positions and of channels of many groups."""
    interpreted = target == INTERPRETER
    most, widest = (INTERPRETED_BLOCK, 512) if interpreted else (8192 // product.itemsize, 64)
    if product.is_gradient:
        m = block(product.rows * product.groups, widest)
        most = most if interpreted or product.itemsize == 2 else 1024  # of 32-bit factors more would be spilled
        k = block(product.depth, most // m) if interpreted else most // m
        programs = max(1, -(-product.rows * product.groups // m))
        splits = 1 if interpreted else max(1, min(256 // programs, product.depth // (8 * k)))
        return Tile(m, 1, k, splits=splits, dot=False)
    n = block(product.columns * product.groups, widest)
    return Tile(block(product.rows, most // n) if interpreted else rows_block(product.rows, most // n), n, 1, dot=False)


def options(target: str, product: Product) -> list[Tile]:
    """The tiles that are chosen from on a GPU: few, so that each is proved to fit every target (tests/compiled.py)."""
    if product.itemsize > 2 or product.operation == "forward_max":
        tiles = [_usual(product)]
    elif product.operation.startswith("transpose") and _aligned(product, product.depth):
        tiles = _FORWARD if _aligned(product, product.columns) else _TRANSPOSE_TO_ELEMENTS
    elif product.operation == "forward" and _aligned(product, product.depth):
        tiles = _FORWARD
    elif product.is_gradient and _aligned(product, product.rows) and _aligned(product, product.columns):
        tiles = _GRADIENT
    elif product.operation.startswith("transpose") or product.taps > PLANAR:
        tiles = [_usual(product)]
    else:
        tiles = _GRADIENT_OF_ELEMENTS if product.is_gradient else _FORWARD_OF_ELEMENTS
    if not product.is_gradient and dividing_block(product.channels, 32) == 16:  # a step is then one tap
        tiles = [replace(tile, k=min(tile.k, 16)) for tile in tiles]
    if is_amd(target):
        tiles = [replace(tile, stages=2) for tile in tiles]
    if target != "sm_90":  # where both factors are in shared memory, and the sums in many registers
        tiles = [tile for tile in tiles if (tile.m, tile.n) != (192, 192)]
    if product.dtype == "bfloat16":  # which spills where float16 does not: on sm_90 with a residual, and on sm_80
        spilled = {"forward": 256 * 128, "weight_gradient": 64 * 64}.get(product.operation)
        tiles = _without(tiles, lambda tile: tile.m * tile.n == spilled)
    if product.operation == "forward_max" and target in ("sm_80", "sm_86", "sm_89"):  # 8 warps have few registers each
        tiles = [replace(tile, warps=4) if product.folds(tile) else tile for tile in tiles]
    if target == "sm_100":  # has its sums in a memory of their own, from where they come to the registers at once
        tiles = [replace(t, warps=8 if t.m * t.n >= 8192 else t.warps) for t in tiles if t.m * t.n <= 16384]
        spilling = [(128, 64, 32), (128, 96, 32), (96, 128, 32)] if product.is_gradient else [(16, 16, 128)]
        spilling += [(64, 32, 64), (96, 16, 32)] if product.is_gradient and product.dtype == "bfloat16" else []
        tiles = _without(tiles, lambda tile: (tile.m, tile.n, tile.k) in spilling)
    most = TARGETS[target].shared_memory if target in TARGETS else UNKNOWN_SHARED_MEMORY
    rates = model.rates_of(target)
    return [tile for tile in dict.fromkeys(tiles) if model.shared_memory(rates, product, tile) <= most]


def _without(tiles: list[Tile], spills: Callable[[Tile], bool]) -> list[Tile]:
    """The tiles that do not spill; where there is but one, and it does, half of it."""
    return [tile for tile in tiles if not spills(tile)] or [replace(tile, m=tile.m // 2) for tile in tiles]


def _aligned(product: Product, channels: int) -> bool:
    """Whether 16 bytes, which a thread loads at once, are of one position."""
    return channels * product.itemsize % 16 == 0


def is_amd(target: str) -> bool:
    return target.startswith("gfx")


def splits_of(target: str, product: Product, tile: Tile) -> list[int]:
    """One, and what gives the multiprocessors whole waves of the weight gradient's programs."""
    if not product.is_gradient:
        return [1]
    rates = model.rates_of(target)
    programs = max(1, model.programs(product, replace(tile, splits=1)))
    share = 4 * product.phases * product.groups * product.rows * product.columns * product.taps
    most = max(1, min(product.depth // (LEAST_STEPS * tile.k), SHARES // max(1, share)))
    waves = {rates.processors * wave // programs for wave in WAVES}
    return sorted({1} | {splits for splits in waves if 1 < splits <= most})


def _usual(product: Product) -> Tile:
    """A small tile, whose accumulator and addresses fit the registers whatever the window and whatever is fused.

    The block on the (tap, channel) axis divides the channels, if it can, so that it is one tap; where the window is
    folded instead, each element has an address of its own, and the tile is smaller.
    """
    m, n, k = {2: (128, 64, 32), 4: (64, 64, 32), 8: (32, 32, 16)}[product.itemsize]
    if product.is_gradient:
        n = dividing_block(product.columns, n) or block(product.columns * product.taps, n)
        folded = product.columns % n != 0
        k = 16 if product.itemsize == 4 else k
        return Tile(rows_block(product.rows, m // 2 if folded else m), n, k, 4 if folded else 8)
    k = dividing_block(product.depth, k) or k
    folded = product.depth % k != 0
    narrow = product.operation == "transpose_tiled" or (folded and product.operation == "transpose")
    n = block(product.columns, n // 2 if narrow else n)
    m = m // 2 if folded else m
    return Tile(m, n, k, 4 if product.operation == "forward" or m * n <= 1024 else 8)


def dividing_block(channels: int, most: int) -> int | None:
    """Largest power of two from 16 to `most` that divides the channels, so that a step is one tap; else None."""
    largest = min(most, channels & -channels)
    return largest if largest >= 16 else None
