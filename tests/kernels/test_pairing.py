"""Loops of the machine code and of the IR, put together by what they load and multiply."""

import pytest
import torch

pytest.importorskip("triton")

from kernels.pairing import pair  # noqa: E402
from kernels.sass import Instruction, Region  # noqa: E402
from kernels.trips import Dot, Loop  # noqa: E402

LOAD, STORE = Instruction("LDG.E.128", "R4, [R2]"), Instruction("STG.E.128", "[R2], R4")
MMA, UMMA = Instruction("HMMA.16816.F32", "R4, R2, R3, R4"), Instruction("UTCHMMA", "gdesc[UR4], gdesc[UR6], tmem[UR9]")
DOT = Dot(64, 64, 16, 1, "16", 2)  # of 4 warps: 8 HMMA each


def loop(trips, *, entries=None, dots=(), loads=0, inner=()) -> Loop:
    """Of programs that run it `trips` times; a load is 16 bytes for each of 128 threads."""
    trips = torch.tensor(trips)
    entries = torch.ones_like(trips) if entries is None else torch.tensor(entries)
    return Loop(trips, entries, list(dots), [(128 * 8, 2)] * loads, inner=list(inner))


def times(code: Region, ir: Loop) -> list[list[int]]:
    return [part.times.tolist() for part in pair(code, ir, warps=4)]


def test_an_unrolled_loop_and_one_for_what_is_left():
    ir = loop([1, 1], inner=[loop([10, 7], loads=1)])
    assert times(Region([], [Region([LOAD])]), ir) == [[1, 1], [10, 7]]
    assert times(Region([], [Region([LOAD] * 4), Region([LOAD])]), ir) == [[1, 1], [2, 1], [2, 3]]
    assert times(Region([LOAD] * 10), ir) == [[1, 1]]


def test_a_dissolved_loop_counts_to_the_one_around_it():
    inner = loop([30], entries=[10], loads=1)
    ir = loop([1], inner=[loop([10], inner=[inner])])
    assert times(Region([], [Region([LOAD] * 3)]), ir) == [[1], [10]]
    assert times(Region([], [Region([], [Region([LOAD])])]), ir) == [[1], [10], [30]]


def test_an_unrolled_loop_around_another_leaves_copies_of_it():
    inner = loop([20], entries=[2], dots=[DOT], loads=1)
    ir = loop([1], inner=[loop([2], inner=[inner])])
    parts = pair(Region([], [Region([MMA] * 8 + [LOAD]), Region([MMA] * 8 + [LOAD])]), ir, warps=4)
    assert [part.times.tolist() for part in parts] == [[1], [10], [10]]
    assert [part.entries.tolist() for part in parts] == [[1], [1], [1]]
    assert sum(int(part.times) * part.products for part in parts) == 20 * DOT.products


def test_trips_taken_out_to_run_ahead_are_not_counted_twice():
    ir = loop([1, 1, 0], inner=[loop([36, 12, 0], dots=[Dot(128, 128, 32, 1, "16", 2, tcgen05=True)])])
    code = Region([UMMA] * 2, [Region([UMMA] * 2)])
    parts = pair(code, ir, warps=4)
    assert [part.times.tolist() for part in parts] == [[1, 1, 0], [35, 11, 0]]
    assert [part.products for part in parts] == [128 * 128 * 32] * 2
    assert parts[0].mma is not None and parts[0].mma.shared_bytes(UMMA) == 2 * 128 * 32


def test_code_that_is_only_run_with_a_loop_that_is_not_entered_does_not_count():
    ir = loop([1], inner=[loop([5], dots=[DOT]), loop([0], entries=[0], dots=[DOT])])
    only_with = [LOAD, STORE]
    code = Region([MMA] * 8 + only_with, [Region([MMA] * 8), Region([MMA] * 8, around=only_with)])
    kernel, main, idle = pair(code, ir, warps=4)
    assert kernel.region.instructions == [MMA] * 8
    assert [part.times.tolist() for part in (kernel, main, idle)] == [[1], [4], [0]]


def test_products_that_warps_repeat():
    twice = Dot(64, 64, 16, 1, "16", 2, repeats=2)
    assert times(Region([], [Region([MMA] * 16)]), loop([1], inner=[loop([5], dots=[twice])])) == [[1], [5]]


def test_float32_products_need_no_tensor_cores():
    ir = loop([1], inner=[loop([6], dots=[Dot(16, 16, 16, 1, "fp32", 4)], loads=2)])
    assert times(Region([], [Region([LOAD] * 4)]), ir) == [[1], [3]]


@pytest.mark.parametrize(
    ("code", "ir", "message"),
    [
        (Region([], [Region([LOAD])] * 2), loop([1], inner=[loop([4], loads=1)]), r"code \(2\) .* IR \(1\)"),
        (Region([], [Region([MMA] * 12)]), loop([1], inner=[loop([4], dots=[DOT])]), "none loads and multiplies"),
        (Region([MMA] * 4), loop([1], dots=[DOT]), "multiplies 32768 pairs of numbers .* of which the IR has 65536"),
        (Region([], [Region([MMA] * 16)]), loop([1], inner=[loop([5], dots=[DOT])]), "1 trips of a loop of the IR are"),
        (Region([], [Region([UMMA]), Region([UMMA])]),
         loop([1], inner=[loop([4], dots=[Dot(128, n, 16, 1, "16", 2, tcgen05=True)]) for n in (64, 128)]),
         "several loops have tcgen05 instructions of several shapes"),
    ],
)  # fmt: skip
def test_what_does_not_agree_is_an_error(code, ir, message):
    with pytest.raises(ValueError, match=message):
        pair(code, ir, warps=4)
