"""What was found about kernels: launches, operations, which are lists of launches, and totals of many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from kernels.estimate import Estimate
from kernels.targets import Rates


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Args:
        name: the kernel's.
        block: extents of its tile.
        programs: of the launch.
        registers, warps, shared_memory, tensor_memory: of a thread, of a block, bytes and columns of a block.
        spills: bytes of a thread (NVIDIA) or vector registers (AMD).
        resident: blocks that share a multiprocessor; None where no rates are known, 0 where not one fits.
        flops, bytes: that it needs: operations, and once its tensors without inputs that no window reads.
        estimate: None where there is none.
        reason: why not.
    """

    name: str
    block: tuple[int, ...]
    programs: int
    registers: int
    warps: int
    shared_memory: int
    tensor_memory: int
    spills: int
    resident: int | None
    flops: int
    bytes: int
    estimate: Estimate | None
    reason: str = ""


@dataclass(frozen=True)
class Operation:
    """Launches one after another.

    Args:
        group: the architecture that it is from, if any.
        layer, problem, operation: what it is: a layer's name, its extents, and what is computed of it.
        count: how often the architecture has it.
        flops, bytes: floating-point operations and memory traffic that it needs.
    """

    group: str
    layer: str
    problem: str
    operation: str
    count: int
    flops: int
    bytes: int
    launches: tuple[Launch, ...]

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.layer, self.operation)))

    @property
    def spills(self) -> int:
        return sum(launch.spills for launch in self.launches)

    @property
    def seconds(self) -> float | None:
        """The estimate: the sum of the launches'; None where one has none."""
        times = [launch.estimate.seconds for launch in self.launches if launch.estimate is not None]
        return sum(times) if len(times) == len(self.launches) > 0 else None

    @property
    def kind(self) -> str | None:
        """Type of the factors of the matrix products, None without any."""
        return self.longest.estimate.kind if self.longest is not None and self.longest.estimate is not None else None

    @property
    def longest(self) -> Launch | None:
        """The launch that takes longest."""
        timed = [launch for launch in self.launches if launch.estimate is not None]
        return max(timed, key=lambda launch: launch.estimate.seconds if launch.estimate else 0.0, default=None)

    def of_peak(self, rates: Rates) -> float | None:
        """Estimated fraction of the tensor cores' peak."""
        if self.seconds is None or self.kind is None:
            return None
        return self.flops / self.seconds / float(rates.peak(self.kind))

    def bound(self, rates: Rates) -> float:
        """Seconds in which no kernel could do it faster, on tensor cores or in memory, that multiplies padding too."""
        multiply = self.flops / float(rates.peak(self.kind)) if self.kind is not None else 0.0
        return max(multiply, self.bytes / float(rates.dram_bytes))

    def of_bound(self, rates: Rates) -> float | None:
        """The bound's fraction of the estimate."""
        return None if self.seconds is None else self.bound(rates) / self.seconds


@dataclass(frozen=True)
class Total:
    """Of several operations, each as often as its architecture has it.

    Args:
        operations: how many, and how many of them have an estimate: the rest of the figures are of those.
        seconds, bound: sums.
        of_peak, of_bound: geometric means; the first of those with matrix products, None without.
        spilling: launches that spill registers.
    """

    operations: int
    estimated: int
    seconds: float
    bound: float
    of_peak: float | None
    of_bound: float | None
    spilling: int


def totals(operations: Sequence[Operation], rates: Rates | None) -> list[tuple[str, str, Total]]:
    """For each architecture: its name, an operation or "all", and the total of those."""
    found = []
    for group, members in groupby(operations, key=lambda each: each.group):
        own = list(members)
        names = list(dict.fromkeys(each.operation for each in own))
        for name in (*names, *(("all",) if len(names) > 1 else ())):
            found.append((group, name, total([each for each in own if name in ("all", each.operation)], rates)))
    return found


def total(operations: Sequence[Operation], rates: Rates | None) -> Total:
    spilling = sum(launch.spills > 0 for each in operations for launch in each.launches)
    timed = [(each, each.seconds) for each in operations if each.seconds is not None]
    if rates is None or not timed:
        return Total(sum(each.count for each in operations), 0, 0.0, 0.0, None, None, spilling)
    return Total(
        sum(each.count for each in operations),
        sum(each.count for each, _ in timed),
        sum(each.count * seconds for each, seconds in timed),
        sum(each.count * each.bound(rates) for each, _ in timed),
        _geometric_mean([(each.of_peak(rates), each.count) for each, _ in timed]),
        _geometric_mean([(each.of_bound(rates), each.count) for each, _ in timed]),
        spilling,
    )


def _geometric_mean(values: Sequence[tuple[float | None, int]]) -> float | None:
    """Of values and how often each counts."""
    known = [(value, count) for value, count in values if value]
    if not known:
        return None
    return math.exp(sum(count * math.log(value) for value, count in known) / sum(count for _, count in known))
