"""How fast a compiled kernel can be at best: an estimate from its machine code, its launch and the chip's rates.

The model, the same for every kernel:

- **Trips.** The loops of the machine code are those of its control-flow graph (kernels/sass.py, kernels/flow.py). The
  IR's loop bounds, evaluated for every program of the launch (kernels/trips.py), say how often each runs, once it is
  known which is which and what the compiler unrolled (kernels/pairing.py). That the matrix instructions of all trips
  are the products of the IR's `tl.dot`s is checked, as an equality of integers.
- **Pipes.** An instruction takes its share of a cycle of the issue slots and of its own pipe (tensor, multiply-add,
  integer, float64, special, load/store), and moves bytes of shared memory and to or from L2. Pipes work side by side: a
  trip, like the straight code before and after, takes as long as its busiest pipe:

      cycles = max over pipes of sum over instructions of (warps x 32 lanes x work of a lane / rate of the pipe)

  A matrix instruction's work is m x n x k multiply-adds. WGMMA and tcgen05 read their factors from shared memory: so
  m64nNk16 of float16 takes max(N / 2, 16 + N / 4) cycles on H100, as measured (arXiv 2501.12084, tables 8 and 9). What
  a tcgen05 instruction multiplies is not in the machine code: it is the `tl.dot`'s, at most 128 x 256 x 32 bytes. What
  TMA moves is not there either: it is the descriptor's block. Loads that are issued ahead of a pipelined loop are its
  first trips'; the last trips, counted in full, load nothing. A copy that is switched off loads nothing anywhere.
- **Fill.** Each time that a loop of products is entered, or once for a kernel without, a load's latency passes with
  nothing to compute. Blocks that share an SM start together and wait together, so that a wave of them waits once.
- **Data** are taken to be numbers: what a kernel does only where it finds NaN takes no time.
- **Waves.** Programs go, in the order of their numbers, to the SM with the least to do; the SM that has most to do
  sets the time. A program that returns early costs nothing. How many share an SM follows from registers, warps, shared
  and tensor memory.
- **Traffic.** No launch is faster than the bytes that it must read and write at least once take in the GPU's memory.
  What an earlier launch of the same operation left in L2, half of it at most, is read from there.

What it cannot see: conflicts of shared-memory banks; sectors of which only a part is used; loads whose lanes are off;
branches inside a loop, both sides of which count; functions that are called, which are the slow paths of divisions;
misses in L2 beyond compulsory traffic; latencies inside a loop that the pipeline is too short to hide, and barriers;
instruction cache misses; clocks below the published one, where power runs out (which large matrix products on H100 do);
the launch itself. Unrolling of a loop without matrix products is inferred from what it loads and stores. So it is a
speed of light with latency, not a prediction: a product of 8192 x 8192 matrices is estimated up to 1.3 times as fast as
is measured in public (tests/kernels/test_estimate.py).

What it refuses: loops that run until data say so, kernels whose warps are specialised, clusters of blocks, products of
scaled matrices, functions that are not inlined, and AMD, for which no rates are kept.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass

import torch

from kernels import sass, trips
from kernels.pairing import Part, pair
from kernels.targets import Rates, Target

PIPES = ("issue", "tensor", "fma", "alu", "fp64", "special", "memory", "shared", "L2")
ONE_WARP = ("HMMA", "IMMA", "QMMA")  # matrix instructions of a single warp


@dataclass(frozen=True)
class LoopCost:
    """A loop, or (depth 0) the code outside of loops.

    Args:
        trips: in all programs together.
        instructions: of one warp in one trip, by pipe of kernels.sass.PIPES.
        accesses: its loads and stores among them, by instruction and width in bits, as in "LDG 128".
        cycles: of an SM, for one trip of one program, by pipe of PIPES.
        products: multiply-adds of one trip of one program.
    """

    trips: int
    instructions: dict[str, int]
    accesses: dict[str, int]
    cycles: dict[str, float]
    products: int

    @property
    def limit(self) -> str:
        return max(self.cycles, key=lambda pipe: self.cycles[pipe])


@dataclass(frozen=True)
class Estimate:
    """The least time of a launch, by the model of this module.

    Args:
        seconds: of the launch.
        fraction: of the tensor cores' peak, counting only `flops`; None for a kernel without matrix products.
        bandwidth: fraction of the memory's bandwidth that the compulsory traffic takes in that time.
        limit: the pipe that sets the time: of the main loop, or "fill", or "DRAM".
        kind: type of the factors of the matrix products, as kernels.targets.Rates.products names it; None without.
        fill: fraction of the cycles that passes until the first loads arrive.
        resident: blocks that share an SM.
        programs: blocks of the launch.
        busiest: blocks of the SM with most to do.
        loops: the code outside of loops, then the loops in the order of the code.
        main: the index of the loop that takes longest in all.
        padding: products computed over products needed, minus one.
    """

    seconds: float
    fraction: float | None
    bandwidth: float
    limit: str
    kind: str | None
    fill: float
    resident: int
    programs: int
    busiest: int
    loops: tuple[LoopCost, ...]
    main: int
    padding: float | None


def estimate(
    target: Target, code: sass.Region, ir: trips.Loop, warps: int, registers: int, shared_memory: int,
    flops: int, compulsory_bytes: int, tensor_memory: int = 0,
) -> Estimate:  # fmt: skip
    """The estimate for a launch.

    Args:
        code, ir: the kernel's loops, by `sass.parse` and `trips.count`.
        warps, registers, shared_memory: of a block, of a thread, bytes of a block.
        flops: floating-point operations that are needed: two a multiply-add.
        compulsory_bytes: that must be read and written at least once.
        tensor_memory: columns of a block, where the target has such memory.

    Raises:
        ValueError: no rates are known for the target, a block does not fit on it, or the loops of the machine code are
            not those of the IR.
    """
    rates = target.rates
    if rates is None:
        raise ValueError(f"no rates are known for target {target.arch}")
    resident = resident_blocks(rates, warps, registers, shared_memory, tensor_memory)
    parts = pair(code, ir, warps)
    costs = [_cycles(part, rates, warps) for part in parts]
    times = torch.stack([part.times for part in parts])
    kinds, members = times.unique(dim=1, return_inverse=True)
    entries = [part.entries for part in parts[1:] if part.region.has_products] or [torch.ones_like(members)]
    fills = rates.latency * torch.stack(entries).sum(0)

    block = (kinds.double().T @ torch.tensor([max(cost.values()) for cost in costs]).double())[members]
    cycles, busiest = _busiest_processor(block.tolist(), fills.tolist(), rates.processors, resident)
    seconds = max(cycles / rates.clock, compulsory_bytes / rates.dram_bytes)

    kind = _kind(parts)
    total = [max(cost.values()) * float(part.times.sum()) for cost, part in zip(costs, parts, strict=True)]
    main = max(range(len(parts)), key=total.__getitem__)
    loops = tuple(
        LoopCost(int(part.times.sum()), dict(part.region.pipes), dict(part.region.accesses), cost, part.products)
        for part, cost in zip(parts, costs, strict=True)
    )
    waiting = float(fills.max()) * -(-busiest // resident) / cycles
    limit = "DRAM" if seconds > cycles / rates.clock else "fill" if waiting > 0.5 else loops[main].limit
    computed = 2 * sum(int(loop.trips.sum()) * loop.products for loop in ir.nest())
    return Estimate(
        seconds=seconds,
        fraction=flops / seconds / rates.peak(kind) if kind else None,
        bandwidth=compulsory_bytes / rates.dram_bytes / seconds,
        limit=limit,
        kind=kind,
        fill=waiting,
        resident=resident,
        programs=len(members),
        busiest=busiest,
        loops=loops,
        main=main,
        padding=computed / flops - 1 if kind and flops else None,
    )


def resident_blocks(
    rates: Rates, warps: int, registers: int, shared_memory: int, tensor_memory: int = 0
) -> int:  # fmt: skip
    """Blocks that share an SM: registers are given out to warps by 256, shared memory by 1,024 bytes.

    Raises:
        ValueError: not one fits.
    """
    by_registers = rates.registers // (-(-registers * 32 // 256) * 256) // warps if registers else rates.blocks
    by_memory = rates.shared_memory // (-(-(shared_memory + rates.shared_reserve) // 1024) * 1024)
    by_columns = rates.tensor_memory // tensor_memory if tensor_memory else rates.blocks
    blocks = min(rates.blocks, rates.warps // warps, by_registers, by_memory, by_columns)
    if blocks < 1:
        raise ValueError(
            f"a block of {warps} warps with {registers} registers a thread and {shared_memory} bytes of shared memory"
            f" does not fit on {rates.device}"
        )
    return blocks


def _cycles(part: Part, rates: Rates, warps: int) -> dict[str, float]:
    """Cycles of an SM that one block's run through the part takes on each pipe."""
    of_warp: Counter[str] = Counter()
    of_block: Counter[str] = Counter()
    inside = (each for inner in part.region.inner for each in inner.instructions)
    hoisted = any(each.base == "LDGSTS" and not each.loads_nothing for each in inside)
    for each in part.region.instructions:
        of_warp["issue"] += 1 / rates.issue
        if hoisted and each.base == "LDGSTS":
            continue  # the first trips' loads, taken out of the loop: its last trips, counted in full, have none
        of_warp["shared"] += each.shared_bytes / rates.shared_bytes
        of_warp["L2"] += each.global_bytes / rates.l2_share
        if each.products:
            share = rates.products["mma"] if each.base in ONE_WARP else 1.0
            of_warp["tensor"] += each.products / (rates.products[_factor(each)] * share)
        elif each.pipe == "tensor" and part.mma:
            of_block["tensor"] += float(part.mma.products) / rates.products[part.mma.factor]
            of_block["shared"] += part.mma.shared_bytes(each) / rates.shared_bytes
        elif each.pipe == "fma":
            of_warp["fma"] += 32 / (rates.imad if each.base.startswith("IMAD") else rates.fp32)
        elif each.pipe in ("alu", "fp64", "special"):
            lanes = {"alu": rates.integer, "fp64": rates.fp64, "special": rates.special}[each.pipe]
            of_warp[each.pipe] += 32 / lanes
        elif each.pipe == "memory":
            of_warp["memory"] += 1 / rates.memory
    of_block["L2"] += part.descriptor_bytes / rates.l2_share
    of_block["shared"] += part.descriptor_bytes / rates.shared_bytes
    return {pipe: of_warp[pipe] * warps + of_block[pipe] for pipe in PIPES}


def _factor(instruction: sass.Instruction) -> str:
    """The type of a matrix instruction's factors, as Rates.products names it."""
    if instruction.base == "DMMA":
        return "fp64"
    if instruction.base in ("IMMA", "QMMA", "IGMMA", "QGMMA"):
        return "8"
    return "tf32" if "TF32" in instruction.name else "16"


def _kind(parts: list[Part]) -> str | None:
    """The type of the factors of most matrix products; None where there are none."""
    kinds = Counter(
        _factor(each) if each.products or not part.mma else part.mma.factor
        for part in parts
        for each in part.region.instructions
        if each.pipe == "tensor"
    )
    return kinds.most_common(1)[0][0] if kinds else None


def _busiest_processor(blocks: list[float], fills: list[float], processors: int, resident: int) -> tuple[float, int]:
    """Cycles and number of blocks of the SM that is done last, the blocks given out in order to the least busy SM."""
    if min(blocks) == max(blocks) and min(fills) == max(fills):
        most = -(-len(blocks) // processors)
        return most * blocks[0] + -(-most // resident) * fills[0], most
    busy = [(0.0, processor) for processor in range(min(processors, len(blocks)))]
    count, filling = [0] * processors, [0.0] * processors
    for cycles, fill in zip(blocks, fills, strict=True):
        load, processor = heapq.heappop(busy)
        heapq.heappush(busy, (load + cycles, processor))
        count[processor] += 1
        filling[processor] += fill
    totals = [(load + filling[p] / count[p] * -(-count[p] // resident), count[p]) for load, p in busy]
    return max(totals)
