"""What a tile of a matrix product costs on a GPU before anything is compiled: to choose by, and to prune.

The estimate of a compiled kernel (kernels/estimate.py) in outline, from the tile alone: a step of a block takes as long
as the busiest of tensor cores, shared memory, L2 and issue slots; programs go evenly to the multiprocessors; each wave
of them waits once for memory. Traffic and products follow from the tile. Counts of instructions and registers depend on
the compiler: those here were read from the machine code of some layers of ResNet-50 in float16 for A100 and H100.
"""

from __future__ import annotations

import itertools
from math import ceil
from typing import NamedTuple

from kernels.targets import TARGETS, Rates
from kernels.tile import Product, Tile, parts

LAUNCH = 2e-6  # seconds that a second launch adds, assumed


class Instructions(NamedTuple):
    """Of a warp: for each 16 bytes a thread of x or dy and of the other factor, for each element of a folded window.

    Args:
        around: outside of the loop.
    """

    gathered: float
    other: float
    folded: float
    around: float


FORWARD = Instructions(gathered=11.0, other=2.5, folded=8.0, around=200.0)  # and the transpose
GRADIENT = Instructions(gathered=38.0, other=5.5, folded=18.0, around=400.0)
STEP = 65.0  # instructions of a warp in each step: barriers, counters, which tap it is
STORE = 4.2  # instructions around the loop for each accumulator of a thread


def rates_of(target: str) -> Rates:
    """Rates of a target; A100's where they are not known."""
    known = TARGETS.get(target)
    rates = known.rates if known else None
    return rates or TARGETS["sm_80"].rates  # type: ignore[return-value]


def for_group(rates: Rates, product: Product, tile: Tile) -> bool:
    """Whether the products are instructions for a group of four warps, which read both factors in shared memory."""
    return rates.products["mma"] < 1 and min(parts(tile.m)) >= 64 and tile.warps >= 4 and product.itemsize < 8


def shared_memory(rates: Rates, product: Product, tile: Tile) -> int:
    """Bytes of a block: buffers for both factors, one less than stages where products read registers."""
    buffers = tile.stages if for_group(rates, product, tile) else max(1, tile.stages - 1)
    return buffers * (tile.m + tile.n) * tile.k * product.itemsize if tile.dot else 0


def accumulators(product: Product, tile: Tile, warp_size: int = 32) -> float:
    """Registers of a thread that hold the result."""
    k = 1 if tile.dot or not product.is_gradient else tile.k
    return tile.m * tile.n * k * max(1, product.itemsize // 4) / (warp_size * tile.warps)


def programs(product: Product, tile: Tile) -> int:
    """Blocks of the launch."""
    if product.is_gradient:
        columns = -(-product.columns * product.taps // (tile.n if tile.dot else 1))
        return product.phases * columns * tile.blocks(product.rows, product.groups, tile.m) * tile.splits
    return product.phases * -(-product.rows // tile.m) * tile.blocks(product.columns, product.groups)


def steps(product: Product, tile: Tile) -> float:
    """Of a block, on average."""
    if product.is_gradient:
        return ceil(product.depth / tile.splits / tile.k)
    k = tile.k if tile.dot else 1
    count = product.taps * product.depth / k
    if product.operation == "transpose":
        return count / product.phases
    return ceil(count)


def most_steps(product: Product, tile: Tile) -> float:
    """Of the block with most to do: of a transpose's residues one has more taps than others; as of a square window."""
    if product.operation != "transpose" or product.phases == 1:
        return steps(product, tile)
    taps = min(product.taps, ceil((product.taps / product.phases) ** 0.5) ** 2)
    return taps * product.depth / (tile.k if tile.dot else 1)


def resident(rates: Rates, product: Product, tile: Tile) -> int:
    """Blocks that share a multiprocessor, at least one."""
    registers = min(255, 1.5 * accumulators(product, tile) + 50) * 32 * tile.warps
    memory = shared_memory(rates, product, tile) + rates.shared_reserve
    return max(1, min(rates.warps // tile.warps, int(rates.registers // registers), rates.shared_memory // memory))


def seconds(rates: Rates, product: Product, tile: Tile) -> float:
    """Of the launch, and of adding up shares where the reduced axis is split."""
    held, store = accumulators(product, tile), 4 if tile.splits > 1 else product.itemsize
    around = (GRADIENT if product.is_gradient else FORWARD).around + STORE * held
    around = max(around * tile.warps / rates.issue, tile.m * tile.n * store / rates.l2_share)
    most = max(1, -(-programs(product, tile) // rates.processors))  # one also where there is nothing to do
    together = min(most, resident(rates, product, tile))
    step = step_cycles(rates, product, tile)
    step *= starvation(rates, tile.stages, together, step)
    run = max(most * steps(product, tile), most_steps(product, tile))
    cycles = run * step + most * around + -(-most // together) * rates.latency
    if tile.splits > 1:
        elements = product.phases * product.groups * product.rows * product.columns * product.taps
        cycles += LAUNCH * rates.clock + rates.latency + 4 * elements * (tile.splits + 1) / rates.l2_bytes
    return cycles / rates.clock


def step_cycles(rates: Rates, product: Product, tile: Tile) -> float:
    """Cycles of the pipe that a step of a block keeps longest."""
    m, n, k, itemsize = tile.m, tile.n, tile.k, product.itemsize
    count = GRADIENT if product.is_gradient else FORWARD
    group = for_group(rates, product, tile)
    gathered, other = (n, m) if product.is_gradient else (m, n)
    issued = STEP * tile.warps + other * k * itemsize / 512 * count.other
    if not tile.dot:
        return (m * n * k if product.is_gradient else m * n) / 32 * (count.folded + 4) / rates.issue
    folded = product.folds(tile) and product.channels * itemsize % 16 != 0  # else 16 bytes are of one tap
    issued += gathered * k / 32 * count.folded if folded else gathered * k * itemsize / 512 * count.gathered
    kind = {2: "16", 4: "tf32", 8: "fp64"}[itemsize]
    tensor = m * n * k / (rates.products[kind] * (1.0 if group else rates.products["mma"]))
    loaded, read = (m + n) * k * itemsize, _read(tile, group) * itemsize
    if folded and not product.is_gradient:
        read += 2 * gathered * k * itemsize  # through registers
    if not group:
        issued += m * n * k / 2048 + read / 512
    return max(tensor, loaded / rates.l2_share, (loaded + read) / rates.shared_bytes, issued / rates.issue)


def _read(tile: Tile, group: bool) -> int:
    """Elements that products read from shared memory in a step."""
    total = 0
    for m, n in itertools.product(parts(tile.m), parts(tile.n)):
        if group:
            across = max(1, tile.warps // 4 * 64 // m)  # groups of warps that share rows
            total += m // 64 * across * (64 + n // across) * tile.k
        else:  # warps stand in a grid, each of which reads its rows and columns
            grids = (2**i for i in range(tile.warps.bit_length()))
            total += min(n * rows + m * tile.warps // rows for rows in grids) * tile.k
    return total


def starvation(rates: Rates, stages: int, together: int, step: float) -> float:
    """How many times longer a loop takes for want of loads in flight, >= 1.

    A block asks for the factors of a step `stages` - 1 steps before it needs them, and `together` blocks take turns: if
    that is less than the latency, they wait (Little's law). `step` is in cycles. kernels.estimate does not see this.
    """
    return max(1.0, rates.latency / (max(1, stages - 1) * together * step))
