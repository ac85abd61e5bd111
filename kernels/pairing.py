"""Which loop of a kernel's machine code is which of its IR, and so how often each runs.

Compilers unroll loops, wholly or in part, and take trips out of them to load ahead. So a loop of the code is the one of
the IR, with what was unrolled inside it, whose loads and stores fit best; how many trips of the IR one of its own is,
and how many were taken out, follows from what both load, and exactly, as an equality of integers, from the products of
their matrix instructions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

from torch import Tensor

from kernels.sass import Instruction, Region
from kernels.trips import Loop

ROW_BYTES = 32  # of each row of both factors that a tcgen05 instruction multiplies
_MISSING = 10.0  # worse than any misfit of numbers of bytes


@dataclass(frozen=True)
class Part:
    """A region of the machine code, and how often it runs.

    Args:
        times, entries: for each program, how often it is run, and how often entered from outside.
        products: multiply-adds of matrix instructions of one run, of all warps.
        descriptor_bytes: what TMA moves in one run.
        mma: the matrix instructions of tcgen05, where there are some.
    """

    region: Region
    times: Tensor
    entries: Tensor
    products: int
    descriptor_bytes: float
    mma: Tcgen05 | None


class Tcgen05(NamedTuple):
    """The matrix instructions whose names do not tell their shapes, on average: each is for all warps.

    Args:
        products: multiply-adds.
        a_bytes, b_bytes: of both factors.
        factor: as in kernels.trips.Dot.
    """

    products: Fraction
    a_bytes: Fraction
    b_bytes: Fraction
    factor: str

    def shared_bytes(self, instruction: Instruction) -> float:
        """Bytes of shared memory that it reads: of both factors, or of one, where the first is in tensor memory."""
        return float(self.b_bytes + (0 if instruction.operands.startswith("tmem") else self.a_bytes))


class _Plan(NamedTuple):
    """How well a region fits a loop of the IR, and what of the loop is where.

    Args:
        misfit: the less the better.
        unroll: trips of the loop in one of the region.
        dissolved: loops that the region holds unrolled.
        inner: for each loop of the region, the IR's, and how it fits.
    """

    misfit: float
    unroll: int
    dissolved: list[Loop]
    inner: list[_Inner]


_Inner = tuple[Region, Loop, _Plan]


def pair(code: Region, ir: Loop, warps: int) -> list[Part]:
    """The regions of the code in the order of `code.nest()`.

    Args:
        warps: of a program.

    Raises:
        ValueError: the loops or the products of both do not agree.
    """
    return _Pairing(code, ir, warps).parts()


class _Pairing:
    def __init__(self, code: Region, ir: Loop, warps: int) -> None:
        self._code, self._ir, self._warps = code, ir, warps
        instructions = [each for region in code.nest() for each in region.instructions]
        tensor = [each for each in instructions if each.pipe == "tensor"]
        self._multiplies = bool(tensor)
        self._copies = not any(each.base.startswith("UTMA") for each in instructions)  # descriptors, without TMA
        self._mma = _tcgen05(ir) if any(each.base.startswith("UTC") for each in tensor) else None

    def parts(self) -> list[Part]:
        plan = self._fit(self._code, self._ir)
        if plan is None or plan.misfit >= _MISSING:
            raise ValueError(
                f"the loops of the machine code ({len(self._code.nest()) - 1}) are not those of the kernel's IR"
                f" ({len(self._ir.nest()) - 1}), nor some of them with the others unrolled: none loads and multiplies"
                " what they do"
            )
        return self._place(self._code, self._ir, plan, self._ir.trips, self._ir.entries)

    def _fit(self, region: Region, loop: Loop) -> _Plan | None:
        """The best way to see the region as the loop; None where there is none."""
        best = None
        for assigned, dissolved in _assignments(loop.inner, len(region.inner)):
            plans = [self._fit(part, its) for part, its in zip(region.inner, assigned, strict=True)]
            inner = [(part, its, plan) for part, its, plan in zip(region.inner, assigned, plans, strict=True) if plan]
            if len(inner) < len(plans) or not all(_shared(group, loop, dissolved) for group in _groups(inner)):
                continue
            unroll, misfit = self._unroll(region, loop, dissolved)
            misfit += sum(plan.misfit for *_, plan in inner) + 1e-3 * len(dissolved)  # what fits as well with less
            if best is None or misfit < best.misfit:
                best = _Plan(misfit, unroll, dissolved, inner)
        return best

    def _unroll(self, region: Region, loop: Loop, dissolved: Sequence[Loop]) -> tuple[int, float]:
        """Trips of the loop in one of the region, and how badly they fit: from products, else from bytes."""
        if loop is self._ir or region.inner:
            return 1, 0.0  # what an inner loop begins with may be in it
        within = (loop, *dissolved)
        if self._multiplies and (products := self._products(region)):
            expected = sum(self._computed(each) * _most_per_trip(each, loop) for each in within)
            whole = expected and products % expected == 0
            return (products // expected, 0.0) if whole else (1, _MISSING)
        found, bytes_ = region.lane_bytes, sum(self._lane_bytes(each) * _per_trip(each, loop) for each in within)
        if not found or not bytes_:
            return 1, _MISSING * (bool(found) != bool(bytes_))
        unroll = max(1, round(found / bytes_))
        return unroll, abs(math.log(found / bytes_ / unroll))

    def _place(self, region: Region, loop: Loop, plan: _Plan, times: Tensor, entries: Tensor) -> list[Part]:
        """The parts of the region, which runs `times`, and of those inside it."""
        region = _without_idle(region, plan)
        moved = 0.0
        if not self._copies:
            moved = plan.unroll * sum(each.descriptor_bytes * _per_trip(each, loop) for each in (loop, *plan.dissolved))
        parts = [Part(region, times, entries, self._products(region), moved, self._mma)]
        taken = self._taken_out(region, loop, plan)
        for group in _groups(plan.inner):
            its = group[0][1]
            copies = _copies(group)
            entered = its.entries // copies
            left = its.trips // its.entries.clamp(min=1)
            left = (left - (taken if self._computed(its) else 0)).clamp(min=0)
            for part, _, inner in group:
                parts += self._place(part, its, inner, left // inner.unroll * entered, entered)
                left = left if copies > 1 else left % inner.unroll
            self._check_whole(left % group[-1][2].unroll, its)
        return parts

    def _taken_out(self, region: Region, loop: Loop, plan: _Plan) -> int:
        """Trips of the inner loops with products that the region holds outside of them, to run ahead.

        Raises:
            ValueError: what the region multiplies is no number of trips.
        """
        if not self._multiplies or (loop is not self._ir and not plan.inner):
            return 0
        own = self._products(region)
        expected = sum(self._computed(each) * _most_per_trip(each, loop) for each in (loop, *plan.dissolved))
        trip = sum({id(its): self._computed(its) for _, its, _ in plan.inner if its.trips.any()}.values())
        if own < expected or (own > expected and (not trip or (own - expected) % trip)):
            raise ValueError(
                f"the machine code multiplies {own} pairs of numbers outside of its inner loops, of which the IR has"
                f" {expected} there and {trip} in a trip of them"
            )
        return (own - expected) // trip if trip else 0

    def _check_whole(self, left: Tensor, loop: Loop) -> None:
        """That no trips of a loop with products are left over; of others they may be in straight code."""
        if self._multiplies and self._computed(loop) and bool(left.any()):
            raise ValueError(f"{int(left.max())} trips of a loop of the IR are not in the machine code")

    def _products(self, region: Region) -> int:
        """Multiply-adds of a region's matrix instructions, of all warps."""
        by_one = self._mma.products if self._mma else 0
        total = sum(each.products * self._warps or by_one for each in region.instructions if each.pipe == "tensor")
        return int(total)

    def _computed(self, loop: Loop) -> int:
        """Multiply-adds of one trip, with those that several warps compute."""
        return sum(dot.products * dot.passes * dot.repeats for dot in loop.dots if dot.factor != "fp32")

    def _lane_bytes(self, loop: Loop) -> int:
        copied = -(-loop.descriptor_bytes // (32 * self._warps)) if self._copies else 0
        return loop.lane_bytes(self._warps) + copied


def _without_idle(region: Region, plan: _Plan) -> Region:
    """The region without the code that is only run with a loop that no program enters."""
    idle = [id(each) for part, its, _ in plan.inner if not its.entries.any() for each in part.around]
    return replace(region, instructions=[each for each in region.instructions if id(each) not in idle])


def _assignments(loops: Sequence[Loop], count: int) -> Iterator[tuple[list[Loop], list[Loop]]]:
    """Every way to see `count` loops of the code as loops of the IR, in order: what each is, and what is in none.

    Several in a row may be the same one, see `_shared`.
    """
    if not loops:
        if not count:
            yield [], []
        return
    first, *others = loops
    for assigned, dissolved in _assignments([*first.inner, *others], count):
        yield assigned, [first, *dissolved]
    for repeats in range(1, count + 1):
        for assigned, dissolved in _assignments(others, count - repeats):
            yield [first] * repeats + assigned, dissolved


def _groups(inner: Sequence[_Inner]) -> list[list[_Inner]]:
    """Loops of the code that are the same one of the IR."""
    return [list(group) for _, group in itertools.groupby(inner, key=lambda each: id(each[1]))]


def _copies(group: Sequence[_Inner]) -> int:
    """1, or the number of loops that are alike."""
    return len(group) if len({plan.unroll for *_, plan in group}) == 1 else 1


def _shared(group: Sequence[_Inner], around: Loop, dissolved: Sequence[Loop]) -> bool:
    """Whether several loops of the code can be one of the IR.

    They are a loop that was unrolled, and one for the trips that are left; or, of a loop around them that was unrolled,
    one for each of its trips.
    """
    unrolls = [plan.unroll for *_, plan in group]
    if all(one > other for one, other in itertools.pairwise(unrolls)):
        return True
    outer = [each for each in dissolved if any(group[0][1] is inside for inside in each.nest())]
    return bool(outer) and _copies(group) == _most_per_trip(outer[-1], around)


def _per_trip(inner: Loop, outer: Loop) -> float:
    """Trips of a loop in one of a loop around it, on average."""
    return float(inner.trips.sum()) / max(1.0, float(outer.trips.sum()))


def _most_per_trip(inner: Loop, outer: Loop) -> int:
    return 1 if inner is outer else int((inner.trips // outer.trips.clamp(min=1)).max())


def _tcgen05(ir: Loop) -> Tcgen05:
    """The matrix instructions that the `tl.dot`s become: at most 128 rows, 256 columns and ROW_BYTES of each.

    Raises:
        ValueError: those of one loop differ from those of another.
    """
    found = set()
    for dots in ([dot for dot in loop.dots if dot.tcgen05] for loop in ir.nest()):
        if not dots:
            continue
        instructions = products = a_bytes = b_bytes = 0
        for dot in dots:
            m, n = min(dot.m, 128), min(dot.n, 256)
            count = dot.passes * dot.products * dot.itemsize // (m * n * ROW_BYTES)
            instructions += count
            products += count * m * n * ROW_BYTES // dot.itemsize
            a_bytes += count * m * ROW_BYTES
            b_bytes += count * n * ROW_BYTES
        mean = [Fraction(total, max(1, instructions)) for total in (products, a_bytes, b_bytes)]
        found.add(Tcgen05(*mean, dots[0].factor))
    if len(found) != 1:
        raise ValueError(
            "several loops have tcgen05 instructions of several shapes, which the machine code does not tell"
        )
    return found.pop()
