"""What a tile of a matrix product costs on a GPU, roughly, before anything is compiled: to choose and to prune.

The estimate of a compiled kernel (kernels/estimate.py) in outline, from the tile alone: a step of a block takes as long
as the busiest of tensor cores, shared memory, L2 and issue slots; programs go evenly to the multiprocessors; each wave
of them waits once for memory. Constants that depend on the compiler were fitted to estimates of compiled kernels.
"""

from __future__ import annotations

from kernels.targets import TARGETS, Rates
from kernels.tile import Product, Tile

LAUNCH = 2e-6  # seconds that a second launch adds, assumed
LOAD = 4.0  # instructions beside each 16 bytes that a thread copies: addresses, bounds
GATHER = 12.0  # the same for an element that has a tap of its own
STEP = 40.0  # instructions of a warp in a step besides: barriers, counters
BLOCK = 600.0  # instructions of a warp around its loop
ADDRESSES = 64  # registers of a thread beside its accumulators


def rates_of(target: str) -> Rates:
    """Rates of a target, those of the nearest where none are published or known."""
    known = TARGETS.get(target)
    rates = known.rates if known else None
    return rates or TARGETS["sm_80"].rates  # type: ignore[return-value]


def shared_memory(product: Product, tile: Tile) -> int:
    """Bytes of a block: a buffer for each stage of both factors."""
    return tile.stages * (tile.m + tile.n) * tile.k * product.itemsize if tile.dot else 0


def accumulators(product: Product, tile: Tile, warp_size: int = 32) -> float:
    """Registers of a thread that hold the result."""
    k = 1 if tile.dot or not product.is_gradient else tile.k
    return tile.m * tile.n * k * max(1, product.itemsize // 4) / (warp_size * tile.warps)


def programs(product: Product, tile: Tile) -> int:
    """Blocks of the launch."""
    if product.is_gradient:
        columns = -(-product.columns * product.taps // tile.n)
        return product.phases * columns * tile.blocks(product.rows, product.groups, tile.m) * tile.splits
    return product.phases * -(-product.rows // tile.m) * tile.blocks(product.columns, product.groups)


def steps(product: Product, tile: Tile) -> float:
    """Of a block, on average."""
    if product.is_gradient:
        return max(1.0, product.depth / tile.splits / tile.k)
    taps = product.taps / product.phases if product.operation == "transpose" else product.taps
    return max(1.0, -(-product.depth // tile.k) * taps if product.depth > tile.k else product.depth * taps / tile.k)


def resident(rates: Rates, product: Product, tile: Tile) -> int:
    """Blocks that share a multiprocessor, at least one."""
    registers = min(255, accumulators(product, tile) + ADDRESSES) * 32 * tile.warps
    memory = shared_memory(product, tile) + rates.shared_reserve
    return max(1, min(rates.warps // tile.warps, int(rates.registers // registers), rates.shared_memory // memory))


def seconds(rates: Rates, product: Product, tile: Tile) -> float:
    """Of the launch, and of adding up shares where the reduced axis is split."""
    m, n, k, itemsize = tile.m, tile.n, tile.k, product.itemsize
    kind = {2: "16", 4: "tf32", 8: "fp64"}[itemsize]
    grouped = m >= 64 and tile.warps >= 4 and itemsize < 8  # the instructions for a group of warps
    tensor = m * n * k / (rates.products[kind] * (1.0 if grouped else rates.products["mma"]))
    loaded = (m + n) * k * itemsize
    l2 = loaded / rates.l2_share
    across = max(1, round((tile.warps * m / n) ** 0.5))  # warps along the rows, each of which reads all columns
    read = (
        m // 64 * (64 + n) * k
        if grouped and rates.products["mma"] < 1
        else n * k * across + m * k * tile.warps / across
    )
    shared = (loaded + read * itemsize) / rates.shared_bytes
    gathered = (k * (n if product.is_gradient else m)) / 32 if product.folds(tile) else 0.0
    issued = loaded / (16 * 32) * LOAD + gathered * GATHER + m * n * k / 2048 + STEP * tile.warps
    most = -(-programs(product, tile) // rates.processors)
    together = min(most, resident(rates, product, tile))
    step = max(tensor, l2, shared, issued / rates.issue)
    step *= starvation(rates, tile.stages, together, step)
    stored = m * n * (4 if tile.splits > 1 else itemsize) / rates.l2_share
    around = max(stored, BLOCK * tile.warps / rates.issue)
    cycles = most * (steps(product, tile) * step + around)
    cycles += -(-most // together) * rates.latency
    if tile.splits > 1:
        elements = product.phases * product.groups * product.rows * product.columns * product.taps
        cycles += LAUNCH * rates.clock + rates.latency + 4 * elements * (tile.splits + 1) / rates.l2_bytes
    return cycles / rates.clock


def starvation(rates: Rates, stages: int, together: int, step: float) -> float:
    """How many times longer a loop takes for want of loads in flight, >= 1.

    A block asks for the factors of a step `stages` - 1 steps before it needs them, and `together` blocks take turns: if
    that is less than the latency, they wait (Little's law). `step` is in cycles. kernels.estimate does not see this.
    """
    return max(1.0, rates.latency / (max(1, stages - 1) * together * step))
