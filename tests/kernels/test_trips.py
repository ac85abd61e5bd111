"""Loops of the compiler's IR, evaluated for every program."""

import pytest

from kernels.trips import Dot, count

DOT = "%y = tt.dot %a, %b, %acc : tensor<64x32xf16> * tensor<32x16xf16> -> tensor<64x16xf32>"


def body(*lines: str) -> str:
    head = [
        "module {", "tt.func public @kernel(%rows: i32, %size.1: i32) {", "%c0 = arith.constant 0 : i32 loc(#loc)",
        "%c1 = arith.constant 1 : i32", "%c16 = arith.constant 16 : i32", "%pid = tt.get_program_id x : i32",
    ]  # fmt: skip
    return "\n".join([*head, *lines, "tt.store %p, %v : tensor<64x16x!tt.ptr<f16>>", "tt.return", "}", "}"])


def loops(*lines: str, grid=(4,), layouts=""):
    return count(body(*lines), {"rows": 100, "size.1": 7}, grid, layouts)


def test_bounds_are_evaluated_for_every_program():
    kernel = loops(
        "%start = arith.muli %pid, %c16 : i32", "%end = arith.minsi %rows, %size.1 : i32",
        "%r = scf.for %i = %start to %rows step %c16 iter_args(%a = %z) -> (tensor<64x16xf32>)  : i32 {", DOT,
        "scf.yield %y : tensor<64x16xf32>", "} loc(#loc2)",
        "scf.for %j = %c0 to %end step %c1  : i32 {", "%x = tt.load %p, %m : tensor<64x8x!tt.ptr<f32>>", "}",
        grid=(8, 2),
    )  # fmt: skip
    first, second = kernel.inner
    assert first.trips.tolist() == [7, 6, 5, 4, 3, 2, 1, 0] * 2 and first.products == 64 * 32 * 16
    assert second.trips.tolist() == [7] * 16 and second.accesses == [(512, 4)]
    assert second.lane_bytes(4) == 4 * 4 and second.lane_bytes(32) == 4  # at least an element a thread
    assert kernel.trips.tolist() == [1] * 16


def test_loops_inside_loops_run_once_for_each_trip():
    kernel = loops(
        "scf.for %i = %pid to %size.1 step %c1  : i32 {", "scf.for %j = %c0 to %rows step %c16  : i32 {", DOT, "}", "}"
    )
    outer, inner = kernel.nest()[1:]
    assert outer.trips.tolist() == inner.entries.tolist() == [7, 6, 5, 4]
    assert inner.trips.tolist() == [49, 42, 35, 28]


def test_a_branch_counts_for_those_that_take_it():
    kernel = loops(
        "%few = arith.cmpi slt, %pid, %c1 : i32", "%n = scf.if %few -> (i32) {", "scf.yield %c16 : i32", "} else {",
        "scf.for %j = %c0 to %c1 step %c1  : i32 {", "}", "scf.yield %rows : i32", "}",
        "scf.for %i = %c0 to %n step %c1  : i32 {", "}",
    )  # fmt: skip
    inside, after = kernel.inner
    assert inside.trips.tolist() == [0, 1, 1, 1]
    assert after.trips.tolist() == [16, 100, 100, 100]


def test_a_program_that_returns_before_it_stores_does_nothing():
    kernel = loops(
        "%beyond = arith.cmpi sge, %pid, %c1 : i32", "cf.cond_br %beyond, ^bb1, ^bb2", "^bb1:  // pred: ^bb0",
        "tt.return", "^bb2:  // pred: ^bb0", "scf.for %i = %c0 to %c16 step %c1  : i32 {", "}",
    )  # fmt: skip
    assert kernel.trips.tolist() == [1, 0, 0, 0] and kernel.inner[0].trips.tolist() == [16, 0, 0, 0]


def test_what_is_done_where_data_are_nan_is_not_done():
    kernel = loops(
        "%total = tt.load %p : !tt.ptr<f32>", "%bad = arith.cmpf une, %total, %total : f32",
        "%y = scf.if %bad -> (tensor<64x16xf32>) {", "scf.for %i = %c0 to %c16 step %c1  : i32 {", "}", "}",
        "%large = arith.cmpf ogt, %total, %total : f32",
        "scf.if %large {", "scf.for %i = %c0 to %c16 step %c1  : i32 {", "}", "}",
    )  # fmt: skip
    assert [loop.trips.tolist()[0] for loop in kernel.inner] == [0, 16]


def test_how_a_reduction_combines_two_is_no_end_of_a_loop():
    kernel = loops(
        "scf.for %i = %c0 to %c16 step %c1  : i32 {", '%s = "tt.reduce"(%x) <{axis = 1 : i32}> ({',
        "^bb0(%a: f32, %b: f32):", "%t = arith.addf %a, %b : f32", "tt.reduce.return %t : f32",
        "}) : (tensor<32x64xf32>) -> tensor<32xf32>", "scf.for %j = %c0 to %c16 step %c1  : i32 {", "}", "}",
    )  # fmt: skip
    assert [loop.trips.tolist()[0] for loop in kernel.nest()] == [1, 16, 256]


def test_what_descriptors_move():
    kernel = loops(
        "scf.for %i = %c0 to %c16 step %c1  : i32 {",
        "%x = tt.descriptor_load %d[%c0, %i] : !tt.tensordesc<128x64xf16> -> tensor<128x64xf16>", "}",
        "tt.descriptor_store %d[%c0, %c0], %x : !tt.tensordesc<128x64xf16>, tensor<128x64xf16>",
    )  # fmt: skip
    assert kernel.descriptor_bytes == kernel.inner[0].descriptor_bytes == 2 * 128 * 64


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (DOT, Dot(64, 16, 32, 1, "16", 2)),
        ("%y = tt.dot %a, %b, %c : tensor<2x16x8xf64> * tensor<2x8x32xf64> -> tensor<2x16x32xf64>",
         Dot(16, 32, 8, 2, "fp64", 8)),
        ("%y = tt.dot %a, %b, %c : tensor<16x8xf32> * tensor<8x32xf32> -> tensor<16x32xf32>",
         Dot(16, 32, 8, 1, "fp32", 4)),
        ("%y = tt.dot %a, %b, %c, inputPrecision = tf32x3 : tensor<16x8xf32> * tensor<8x32xf32> -> tensor<16x32xf32>",
         Dot(16, 32, 8, 1, "tf32", 4, passes=3)),
        ("%y = tt.dot %a, %b, %c : tensor<16x64xf8E5M2> * tensor<64x32xf8E5M2> -> tensor<16x32xf32>",
         Dot(16, 32, 64, 1, "8", 1)),
    ],
)  # fmt: skip
def test_products_of_matrices(text, expected):
    assert loops(text).dots == [expected]


def test_warps_that_compute_the_same():
    layouts = """
#mma = #ttg.nvidia_mma<{versionMajor = 2, versionMinor = 0, warpsPerCTA = [8, 1], instrShape = [16, 8]}>
%y = tt.dot %a, %b, %c : tensor<64x32xf16, #ttg.dot_op<{}>> * tensor<32x16xf16, #x> -> tensor<64x16xf32, #mma> loc(#l)
"""
    assert loops(DOT, layouts=layouts).dots[0].repeats == 2  # 8 warps of 16 rows on 64 rows
    assert loops(DOT, layouts=layouts.replace("[8, 1]", "[4, 2]")).dots[0].repeats == 1
    (dot,) = loops(DOT, layouts="ttng.tc_gen5_mma %a, %b, %c").dots
    assert dot.tcgen05 and dot.repeats == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "scf.for %i = %c0 to %unknown step %c1  : i32 {",
            "depend on data, or on the trip of a loop around it: scf.for",
        ),
        ("%x = scf.while (%a = %b) : (i32) -> i32 {", "holds scf.while, whose work is not counted"),
        ("%x = tt.call @helper(%rows) : (i32) -> i32", "holds tt.call"),
        ("%x = tt.dot_scaled %a scale %s, %b, %c lhs = e2m1 rhs = e2m1 : tensor<16x16xi8>", "holds tt.dot_scaled"),
    ],
)
def test_what_is_not_counted_is_an_error(line, message):
    with pytest.raises(ValueError, match=message):
        loops(line, "}")


def test_more_programs_than_can_be_followed_are_refused():
    with pytest.raises(ValueError, match="^no estimate: 4294967296 programs, of which more than 4194304"):
        count("", {}, (2**16, 2**16))
