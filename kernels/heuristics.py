"""Tiles for problems that no table knows: by what a step costs in the interpreter, by a model of the GPU elsewhere."""

from __future__ import annotations

from kernels.tile import Product, Tile, block, rows_block

INTERPRETER = "interpreter"
INTERPRETED_BLOCK = 2**19  # elements; Triton takes at most 2**20
INTERPRETED_CALLS = 2**16  # elements that NumPy goes through while it is called for one step


def choose(target: str, product: Product) -> Tile:
    """A tile for `target`: the interpreter, where a program is dear, or any GPU."""
    if product.depthwise:
        return _depthwise(target, product)
    if target == INTERPRETER:
        return _interpreted(product)
    return _compiled(product)


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
        k = block(product.depth, most // m) if interpreted else most // m
        programs = -(-product.rows * product.groups // m)
        splits = 1 if interpreted else max(1, min(256 // programs, product.depth // (8 * k)))
        return Tile(m, 1, k, splits=splits, dot=False)
    n = block(product.columns * product.groups, widest)
    return Tile(block(product.rows, most // n) if interpreted else rows_block(product.rows, most // n), n, 1, dot=False)


def _compiled(product: Product) -> Tile:
    """Tiles whose accumulator and addresses fit the registers of every target that is compiled for.

    The block on the (tap, channel) axis divides the channels, if it can, so that it is one tap; where the window is
    folded instead, each element has an address of its own, and the tile is smaller.
    """
    m, n, k = {2: (128, 64, 32), 4: (64, 64, 32), 8: (32, 32, 16)}[product.itemsize]
    if product.is_gradient:
        n = _dividing_block(product.columns, n) or block(product.columns * product.taps, n)
        folded = product.columns % n != 0
        m = rows_block(product.rows, m // 2 if folded else m)
        programs = -(-product.rows // m) * -(-product.columns * product.taps // n)
        splits = max(1, min(256 // programs, product.depth // (8 * k)))
        return Tile(m, n, k, 4 if folded else 8, splits=splits)
    k = _dividing_block(product.depth, k) or k
    folded = product.depth % k != 0
    narrow = product.operation == "transpose_tiled" or (folded and product.operation == "transpose")
    n = block(product.columns, n // 2 if narrow else n)
    return Tile(m // 2 if folded else m, n, k, 4 if product.operation == "forward" else 8)


def _dividing_block(channels: int, most: int) -> int | None:
    """Largest power of two from 16 to `most` that divides the channels, so that a step is one tap; else None."""
    largest = min(most, channels & -channels)
    return largest if largest >= 16 else None
