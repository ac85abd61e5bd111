"""Tiles that are worth trying for a product, the most promising first.

Every combination of the extents below that a target can hold is ranked by the model (kernels/model.py), which costs
nothing; only the first few are then compiled, which takes a second each.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from kernels import boxes, heuristics, model
from kernels.heuristics import INTERPRETED_BLOCK, INTERPRETER, splits_of
from kernels.targets import TARGETS
from kernels.tile import Product, Tile, fault

SIDES = (16, 32, 48, 64, 96, 128, 192, 256)  # m and n
DEPTHS = (64, 128, 256)  # bytes of a row of k elements; shorter rows waste what is loaded, which no estimate sees
WARPS = (4, 8)
STAGES = {"cuda": (2, 3, 4), "hip": (2,)}
ACCUMULATORS = 200  # registers of a thread, of 255
DEPTHWISE_SIDES = (16, 32, 64, 128)  # channels of all groups
DEPTHWISE_BLOCKS = (1024, 2048, 4096, 8192)  # elements
INTERPRETED_SIDES = tuple(2**exponent for exponent in range(4, 10))  # n and k; m is as large as can be
ALIKE = 4  # candidates of the same m and n
BOXED = 3  # of the first that can be, also with boxes


def candidates(target: str, product: Product, most: int) -> list[Tile]:
    """The heuristic's tile, then up to `most` others that may be better, in a fixed order; then the first with boxes.

    Raises:
        ValueError: for a target that is not known.
    """
    if target != INTERPRETER and target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join((*TARGETS, INTERPRETER))}, got {target!r}")
    usual = heuristics.choose(target, product)
    if target == INTERPRETER:
        found = _interpreted(product)
        return [usual, *[tile for tile in dict.fromkeys(found) if tile != usual][:most]]
    rates = model.rates_of(target)
    legal = {tile for tile in _all(target, product) if not fault(product, tile) and fits(target, product, tile)}
    ranked = sorted(legal - {usual}, key=lambda tile: (model.seconds(rates, product, tile), order(product, tile)))
    chosen = [usual, *_diverse(ranked, most)]
    return chosen + with_boxes(target, product, chosen)[:BOXED]


def with_boxes(target: str, product: Product, tiles: Sequence[Tile]) -> list[Tile]:
    """The tiles that may load by TMA on the target, with boxes; whether the window lets them, a launch sees."""
    if not boxes.has_tma(target):
        return []
    twins = [replace(tile, boxes=True) for tile in tiles if not tile.boxes and not product.folds(tile)]
    return [twin for twin in twins if twin.k * product.itemsize <= boxes.LONGEST and not fault(product, twin)]


def fits(target: str, product: Product, tile: Tile) -> bool:
    """Whether the accumulators leave room for other registers, and the stages have room in shared memory."""
    limits = TARGETS[target]
    held = model.accumulators(product, tile, limits.warp_size)
    return held <= ACCUMULATORS and model.shared_memory(model.rates_of(target), product, tile) <= limits.shared_memory


def order(product: Product, tile: Tile) -> tuple[int, ...]:
    """Return a key by which that of two equals comes first that takes less of the GPU, or has more stages.

    The memory of stages is in every estimate, by the blocks that share a multiprocessor. What they hide is not: where
    memory is busy, a load takes longer than the model's latency. So where it costs nothing, more loads are in flight.
    """
    return (tile.m + tile.n) * tile.k, tile.warps, tile.m, tile.n, tile.k, -tile.stages, tile.splits, tile.boxes


def _diverse(ranked: list[Tile], most: int) -> list[Tile]:
    """The first ones, but few of the same m and n: the model tells more of these than of the rest."""
    taken: Counter[tuple[int, int]] = Counter()
    chosen = []
    for tile in ranked:
        taken[tile.m, tile.n] += 1
        if taken[tile.m, tile.n] <= ALIKE and len(chosen) < most:
            chosen.append(tile)
    return chosen


def _all(target: str, product: Product) -> Iterator[Tile]:
    if product.depthwise:
        yield from _depthwise(target, product)
        return
    columns = product.columns * product.taps if product.is_gradient else product.columns
    depth = product.depth if product.is_gradient else product.depth * product.taps
    sides = [[side for side in SIDES if side < 2 * max(16, extent)] for extent in (product.rows, columns)]
    depths = [side for side in (size // product.itemsize for size in DEPTHS) if side < 2 * max(16, depth)]
    elements = product.channels * product.itemsize % 16 != 0  # have addresses of their own, the fewer the better
    if not product.is_gradient and (elements or heuristics.dividing_block(product.channels, 32) == 16):
        depths = sorted({16, *depths})  # else a step is then one tap
    stages = STAGES[TARGETS[target].backend]
    for m, n, k, warps, stage in itertools.product(*sides, depths, WARPS, stages):
        tile = Tile(m, n, k, warps, stage)
        for splits in splits_of(target, product, tile):
            yield replace(tile, splits=splits)


def _depthwise(target: str, product: Product) -> Iterator[Tile]:
    """Channels of all groups in one block of them, and positions beside."""
    width = (product.rows if product.is_gradient else product.columns) * product.groups
    stages = STAGES[TARGETS[target].backend]
    for channels, elements, warps, stage in itertools.product(DEPTHWISE_SIDES, DEPTHWISE_BLOCKS, WARPS, stages):
        if channels >= 2 * max(16, width):
            continue
        if not product.is_gradient:
            yield Tile(elements // channels, channels, 1, warps, stage, dot=False)
            continue
        tile = Tile(channels, 1, elements // channels, warps, stage, dot=False)
        for splits in splits_of(target, product, tile):
            yield replace(tile, splits=splits)


def _interpreted(product: Product) -> list[Tile]:
    """Large blocks: beside each n and k the m (in the weight gradient each n and m the k) that fills a block."""
    if product.depthwise:
        usual = heuristics.choose(INTERPRETER, product)
        sides = [(a, b) for a in (1, 2, 4) for b in (1, 2, 4) if a * b > 1]
        smaller = [replace(usual, m=max(16, usual.m // a), n=max(1, usual.n // b)) for a, b in sides]
        return [tile for tile in smaller if not fault(product, tile)]
    found = []
    for side, other in itertools.product(INTERPRETED_SIDES, INTERPRETED_SIDES):
        rest = product.depth if product.is_gradient else product.rows
        filled = max(16, min(INTERPRETED_BLOCK // max(side, other), 1 << max(0, rest - 1).bit_length()))
        tile = Tile(other, side, filled) if product.is_gradient else Tile(filled, other, side)
        limits = (product.rows, product.columns * product.taps) if product.is_gradient else (
            product.columns, product.depth * product.taps
        )  # fmt: skip
        wide = (tile.m, tile.n) if product.is_gradient else (tile.n, tile.k)
        if all(extent < 2 * max(16, limit) for extent, limit in zip(wide, limits, strict=True)):
            found.append(tile)
    usual = heuristics.choose(INTERPRETER, product)
    return sorted(found, key=lambda tile: (_steps(product, tile), abs(tile.n - usual.n), tile.m, tile.n, tile.k))


def _steps(product: Product, tile: Tile) -> float:
    """Calls of NumPy, roughly."""
    return model.programs(product, tile) * model.steps(product, tile)
