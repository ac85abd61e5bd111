"""How fast a compiled kernel can be at best: an estimate from its machine code, its launch and the chip's rates.

The model, the same for every kernel:

- **Trips.** The IR's loop bounds, evaluated for every program of the launch (kernels/trips.py), say how often each loop
  of the machine code (kernels/sass.py) runs. That the matrix instructions of all trips are the products of the IR's
  `tl.dot`s is checked, as an equality of integers.
- **Pipes.** An instruction takes a cycle's share of the issue slots, of its own pipe (tensor, multiply-add, integer,
  float64, special, load/store), and moves bytes of shared memory and to or from L2. Pipes work side by side: a trip,
  like the straight code before and after, takes as long as its busiest pipe.
- **Fill.** Each time that a loop of loads is entered, the first load's latency passes with nothing to multiply. Blocks
  that share an SM start together and wait together, so that a wave of them waits once.
- **Waves.** Programs go, in the order of their numbers, to the SM with the least to do; the SM that has most to do
  sets the time.
- **Traffic.** No launch is faster than the bytes that it must read and write at least once take in the GPU's memory.

What it cannot see: conflicts of shared-memory banks; sectors of which only a part is used; loads whose lanes are off;
misses in L2 beyond compulsory traffic; latencies inside a loop that the pipeline is too short to hide; instruction
cache misses; clocks below the published one, where power runs out (which large matrix products on H100 do); the launch
itself. So it is a speed of light with latency, not a prediction.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from kernels import sass, trips
from kernels.targets import Rates, Target

PIPES = ("issue", "tensor", "fma", "alu", "fp64", "special", "memory", "shared", "L2")


@dataclass(frozen=True)
class LoopCost:
    """A loop, or (depth 0) the code outside of loops.

    Args:
        trips: in all programs together.
        instructions: of one warp in one trip, by pipe of kernels.sass.PIPES.
        cycles: of an SM, for one trip of one program, by pipe of PIPES.
        products: multiply-adds of one trip of one program.
    """

    trips: int
    instructions: dict[str, int]
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
    resident: int
    programs: int
    busiest: int
    loops: tuple[LoopCost, ...]
    main: int
    padding: float | None


def estimate(
    target: Target, code: sass.Region, ir: trips.Loop, warps: int, registers: int, shared_memory: int,
    flops: int, compulsory_bytes: int,
) -> Estimate:  # fmt: skip
    """The estimate for a launch.

    Args:
        code, ir: the kernel's loops, by `sass.parse` and `trips.count`.
        warps, registers, shared_memory: of a block, of a thread, bytes of a block.
        flops: floating-point operations that are needed: two a multiply-add.
        compulsory_bytes: that must be read and written at least once.

    Raises:
        ValueError: no rates are known for the target, a block does not fit on it, or the loops of the machine code are
            not those of the IR.
    """
    rates = target.rates
    if rates is None:
        raise ValueError(f"no rates are known for target {target.arch}")
    resident = resident_blocks(rates, warps, registers, shared_memory)
    pairs = _pairs(ir, code, warps)
    costs = [_cycles(region, loop, rates, warps) for region, loop, _ in pairs]
    kinds, members = torch.stack([times for *_, times in pairs]).unique(dim=1, return_inverse=True)
    entries = [loop.entries for region, loop, _ in pairs[1:] if region.has_products] or [torch.ones_like(members)]
    fills = rates.latency * torch.stack(entries).sum(0)

    block = (kinds.double().T @ torch.tensor([max(cost.values()) for cost in costs]).double())[members]
    cycles, busiest = _busiest_processor(block.tolist(), fills.tolist(), rates.processors, resident)
    seconds = max(cycles / rates.clock, compulsory_bytes / rates.dram_bytes)

    kind = _kind(code)
    total = [max(cost.values()) * float(times.sum()) for cost, (*_, times) in zip(costs, pairs, strict=True)]
    main = max(range(len(pairs)), key=total.__getitem__)
    loops = tuple(
        LoopCost(int(times.sum()), dict(region.pipes), cost, region.products * warps or (loop.products if loop else 0))
        for (region, loop, times), cost in zip(pairs, costs, strict=True)
    )
    waiting = float(fills.max()) * -(-busiest // resident) / cycles
    limit = "DRAM" if seconds > cycles / rates.clock else "fill" if waiting > 0.5 else loops[main].limit
    computed = 2 * sum(int((loop.trips * loop.products).sum()) for loop in ir.nest())
    return Estimate(
        seconds=seconds,
        fraction=flops / seconds / rates.peak(kind) if kind else None,
        bandwidth=compulsory_bytes / rates.dram_bytes / seconds,
        limit=limit,
        resident=resident,
        programs=len(members),
        busiest=busiest,
        loops=loops,
        main=main,
        padding=computed / flops - 1 if kind and flops else None,
    )


def resident_blocks(rates: Rates, warps: int, registers: int, shared_memory: int) -> int:
    """Blocks that share an SM: registers are given out to warps by 256, shared memory by 1,024 bytes.

    Raises:
        ValueError: not one fits.
    """
    by_registers = rates.registers // (-(-registers * 32 // 256) * 256) // warps if registers else rates.blocks
    by_memory = rates.shared_memory // (-(-(shared_memory + rates.shared_reserve) // 1024) * 1024)
    blocks = min(rates.blocks, rates.warps // warps, by_registers, by_memory)
    if blocks < 1:
        raise ValueError(
            f"a block of {warps} warps with {registers} registers a thread and {shared_memory} bytes of shared memory"
            f" does not fit on {rates.device}"
        )
    return blocks


def _pairs(ir: trips.Loop, code: sass.Region, warps: int) -> list[tuple[sass.Region, trips.Loop | None, torch.Tensor]]:
    """Each region of the code, its loop in the IR, and how often it runs in each program.

    Loops with matrix products and loops without are paired in order. A loop of the IR that ran once, or a few times,
    may have dissolved in straight code; a loop that the IR does not have waits for a barrier, and is counted once.
    """
    regions, loops = code.nest()[1:], ir.nest()[1:]
    once = ir.trips
    found: list[tuple[sass.Region, trips.Loop | None, torch.Tensor]] = [(code, ir, once)]
    times: dict[int, tuple[trips.Loop | None, torch.Tensor]] = {}
    with_products = [region for region in regions if region.has_products], [loop for loop in loops if loop.products]
    without = [r for r in regions if not r.has_products and not _waits(r)], [x for x in loops if not x.products]
    for region, loop in zip(*with_products, strict=len(with_products[0]) > 0):
        times[id(region)] = loop, loop.trips
    if len(with_products[0]) == 1 and region.products:
        # Trips that were taken out of the loop, or put together, are those that are missing from its products.
        straight = code.products * warps
        needed = sum(each.trips * each.products for each in loops) - straight
        per_trip = region.products * warps
        if bool((needed % per_trip).any()):
            raise ValueError(
                f"the machine code multiplies {per_trip} pairs in a trip, which does not divide the {needed.max()} of"
                " the IR's loop"
            )
        times[id(region)] = loop, needed // per_trip
    if len(without[0]) == len(without[1]):
        for region, loop in zip(*without, strict=True):
            times[id(region)] = loop, loop.trips
    elif without[0] and without[1]:
        raise ValueError(
            f"the machine code has {len(without[0])} loops without matrix products, the IR {len(without[1])}"
        )
    found += [(region, *times.get(id(region), (None, once))) for region in regions]
    return found


def _waits(region: sass.Region) -> bool:
    """Whether a loop only asks a barrier again and again."""
    return len(region.instructions) <= 8 and any(each.base == "SYNCS" for each in region.instructions)


def _cycles(region: sass.Region, loop: trips.Loop | None, rates: Rates, warps: int) -> dict[str, float]:
    """Cycles of an SM that one block's run through the region takes on each pipe."""
    cycles: Counter[str] = Counter()
    hoisted = any(each.base == "LDGSTS" for inner in region.inner for each in inner.instructions)
    fallback = loop.products if loop is not None and region.has_products and not region.products else 0
    for each in region.instructions:
        cycles["issue"] += 1 / rates.issue
        if hoisted and each.base == "LDGSTS":
            continue  # the first trips' loads, taken out of the loop: its last trips, counted in full, have none
        cycles["shared"] += each.shared_bytes / rates.shared_bytes
        cycles["L2"] += each.global_bytes / rates.l2_share
        if each.products:
            legacy = rates.products["mma"] if each.base in ("HMMA", "IMMA") else 1.0
            cycles["tensor"] += each.products / (rates.products[_factor(each)] * legacy)
        elif each.pipe == "fma":
            cycles["fma"] += 32 / (rates.imad if each.base.startswith("IMAD") else rates.fp32)
        elif each.pipe in ("alu", "fp64", "special"):
            lanes = {"alu": rates.integer, "fp64": rates.fp64, "special": rates.special}[each.pipe]
            cycles[each.pipe] += 32 / lanes
        elif each.pipe == "memory":
            cycles["memory"] += 1 / rates.memory
    scaled = {pipe: cycles[pipe] * warps for pipe in PIPES}
    scaled["tensor"] += fallback / rates.products["16"]
    if loop is not None:
        scaled["L2"] += loop.descriptor_bytes / rates.l2_share
        scaled["shared"] += loop.descriptor_bytes / rates.shared_bytes
    return scaled


def _factor(instruction: sass.Instruction) -> str:
    """The type of a matrix instruction's factors, as Rates.products names it."""
    if instruction.base == "DMMA":
        return "fp64"
    return "tf32" if "TF32" in instruction.name else "16"


def _kind(code: sass.Region) -> str | None:
    """The type of the factors of most matrix products; None where there are none."""
    kinds = Counter(_factor(each) for region in code.nest() for each in region.instructions if each.pipe == "tensor")
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


def describe(estimate: Estimate, rates: Rates) -> dict[str, Any]:
    """The estimate's figures by name, as they are printed and recorded."""
    peak = {} if estimate.fraction is None else {"percent of tensor peak": round(100 * estimate.fraction, 1)}
    return {"microseconds": estimate.seconds * 1e6, **peak, "limit": estimate.limit, "device": rates.device}
