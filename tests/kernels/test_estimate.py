"""The model of kernels/estimate.py: by hand, on compiled kernels, and against what is measured in public."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from kernels.estimate import _busiest_processor, estimate, resident_blocks  # noqa: E402
from kernels.sass import Instruction, Region  # noqa: E402
from kernels.targets import TARGETS  # noqa: E402
from kernels.trips import Dot, Loop  # noqa: E402

A100 = TARGETS["sm_80"].rates
PRODUCTS = 32 * 28 * 28 * 128 * 128 * 9  # multiply-adds of compiled_estimates.LAYER
SIDE = 8192


def times(*trips: int) -> torch.Tensor:
    return torch.tensor(trips)


def of_straight_code(target: str, *instructions: Instruction, dots=(), programs=1, flops=0, bytes_=0):
    """The estimate for programs of 4 warps without a loop."""
    ir = Loop(torch.ones(programs, dtype=torch.int64), torch.ones(programs, dtype=torch.int64), list(dots))
    return estimate(TARGETS[target], Region(list(instructions)), ir, 4, 64, 0, flops, bytes_)


@pytest.mark.parametrize("n", [8, 32, 64, 128, 256])
def test_a_warp_group_product_takes_as_long_as_was_measured(n):
    """m64nNk16 with both factors in shared memory, H800: arXiv 2501.12084, tables 8 and 9."""
    wgmma = Instruction(f"HGMMA.64x{n}x16.F32", "R24, gdesc[UR4], R24")
    (code,) = of_straight_code("sm_90", wgmma, dots=[Dot(64, n, 16, 1, "16", 2)]).loops
    assert max(code.cycles.values()) == max(n / 2, 16 + n / 4)
    assert code.limit == ("tensor" if n > 64 else "shared" if n < 64 else code.limit)


def test_instructions_keep_their_pipes_busy():
    """Of 4 warps on A100: 64 results of an integer, 16 of a special function, 4 instructions, 128 bytes a cycle."""
    code = [Instruction("LOP3.LUT", ""), Instruction("MUFU.EX2", ""), Instruction("FFMA", ""), Instruction("IMAD", "")]
    (found,) = of_straight_code("sm_80", *code, Instruction("LDS.128", ""), Instruction("STG.E.64", "")).loops
    assert found.cycles == {
        "issue": 6, "tensor": 0, "fma": 4 * (0.5 + 0.5), "alu": 2, "fp64": 0, "special": 8, "memory": 8, "shared": 16,
        "L2": pytest.approx(4 * 32 * 8 / (5120 / 108)),
    }  # fmt: skip


def test_a_product_by_hand():
    """216 programs on 108 SMs, a loop of 10 trips of 64 HMMA: two blocks an SM, which wait together."""
    dot = Dot(128, 128, 32, 1, "16", 2)
    ones = torch.ones(216, dtype=torch.int64)
    ir = Loop(ones, ones, inner=[Loop(10 * ones, ones, [dot])])
    code = Region([], [Region([Instruction("HMMA.16816.F32", "")] * 64)])
    flops = 2 * 216 * 10 * dot.products
    found = estimate(TARGETS["sm_80"], code, ir, 4, 128, 40_000, flops, 0)
    cycles = 2 * 10 * dot.products / 1024 + A100.latency
    assert found.seconds == pytest.approx(cycles / A100.clock)
    assert found.fraction == pytest.approx(2 * 10 * dot.products / 1024 / cycles)
    assert (found.resident, found.programs, found.busiest, found.main) == (4, 216, 2, 1)
    assert (found.limit, found.kind, found.padding) == ("tensor", "16", 0)
    assert found.fill == pytest.approx(A100.latency / cycles)


@pytest.mark.parametrize(("inside", "loads"), [("R2, [R4], P0", 10), ("R2, [R4], !PT", 1)])
def test_loads_count_in_the_loop_that_they_are_for_or_ahead_of_one_without(inside, loads):
    """A loop of 10 trips whose copies are the pipeline's, or are switched off: all there is was loaded ahead of it."""
    ones, dot = torch.ones(1, dtype=torch.int64), Dot(64, 32, 16, 1, "16", 2)
    copies = [Instruction("LDGSTS.E.BYPASS.128", operands) for operands in ("R2, [R4]", inside)]
    code = Region(copies[:1], [Region([copies[1], *[Instruction("HMMA.16816.F32", "")] * 4])])
    found = estimate(TARGETS["sm_80"], code, Loop(ones, ones, inner=[Loop(10 * ones, ones, [dot])]), 4, 64, 0, 0, 0)
    moved = sum(part.trips * part.cycles["L2"] for part in found.loops)
    assert moved == pytest.approx(loads * 4 * 512 / A100.l2_share)


def test_memory_bounds_a_launch_from_below():
    found = of_straight_code("sm_80", Instruction("LDG.E", ""), bytes_=10**9)
    assert found.seconds == 10**9 / A100.dram_bytes and found.limit == "DRAM" and found.bandwidth == 1
    assert found.fraction is None and found.kind is None


def test_a_program_that_returns_early_takes_no_time():
    code = Region([Instruction("MUFU.EX2", "")] * 1000)
    half = Loop(times(*[1, 0] * 216), times(*[1, 0] * 216))
    assert (
        estimate(TARGETS["sm_80"], code, half, 4, 64, 0, 0, 0).seconds
        < estimate(TARGETS["sm_80"], code, Loop(times(*[1] * 432), times(*[1] * 432)), 4, 64, 0, 0, 0).seconds
    )


@pytest.mark.parametrize(
    ("blocks", "fills", "processors", "resident", "cycles", "busiest"),
    [
        ([10.0] * 4, [1.0] * 4, 4, 1, 11.0, 1),  # a wave
        ([10.0] * 5, [1.0] * 5, 4, 1, 22.0, 2),  # and its tail
        ([10.0] * 5, [1.0] * 5, 4, 2, 21.0, 2),  # which waits beside another
        ([10.0] * 2, [1.0] * 2, 4, 2, 11.0, 1),  # idle SMs
        ([8.0, 1.0, 1.0, 5.0], [0.0] * 4, 2, 1, 8.0, 1),  # 8 | 1 + 1 + 5
        ([8.0, 1.0, 1.0, 7.0], [2.0] * 4, 2, 1, 15.0, 3),  # 8 + 2 | 1 + 1 + 7, and three times 2
    ],
)
def test_blocks_go_to_the_least_busy_processor(blocks, fills, processors, resident, cycles, busiest):
    assert _busiest_processor(blocks, fills, processors, resident) == (cycles, busiest)


@pytest.mark.parametrize(
    ("target", "warps", "registers", "shared", "columns", "blocks"),
    [
        ("sm_80", 4, 128, 0, 0, 4),  # 64 K registers
        ("sm_80", 4, 129, 0, 0, 3),  # given out by 256 to a warp
        ("sm_80", 8, 32, 48 * 1024, 0, 3),  # 49 of 164 KiB
        ("sm_80", 4, 16, 0, 0, 16),  # 64 warps
        ("sm_80", 1, 16, 0, 0, 32),
        ("sm_86", 4, 16, 0, 0, 12),  # 48 warps
        ("sm_100", 4, 32, 0, 256, 2),  # 512 columns
    ],
)
def test_blocks_share_a_multiprocessor(target, warps, registers, shared, columns, blocks):
    assert resident_blocks(TARGETS[target].rates, warps, registers, shared, columns) == blocks


def test_what_does_not_fit_or_has_no_rates_is_an_error():
    with pytest.raises(
        ValueError, match="255 registers a thread and 200000 bytes of shared memory does not fit on A100"
    ):
        resident_blocks(A100, 8, 255, 200_000)
    with pytest.raises(ValueError, match="no rates are known for target gfx942"):
        of_straight_code("gfx942", Instruction("FFMA", ""))


@pytest.mark.parametrize("target", [name for name, target in TARGETS.items() if target.rates is not None])
def test_rates_say_where_they_are_from(target):
    rates = TARGETS[target].rates
    assert len(rates.sources) >= 3 and all(rates.sources)
    published = {"sm_80": 312, "sm_86": 125, "sm_89": 362, "sm_90": 989, "sm_100": 2250}[target]  # dense, data sheets
    assert rates.peak("16") / 1e12 == pytest.approx(published, rel=0.02)


@pytest.fixture(scope="module")
def compiled() -> dict:
    """Figures of real kernels; they cannot be compiled in this process, which interprets."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compiled_estimates"],
        cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("operation", ["forward", "input_gradient", "weight_gradient"])
def test_trips_make_up_the_products_of_a_convolution(compiled, target, operation):
    found = compiled[f"{target} {operation}"]
    assert found["of_code"] == found["of_ir"] == PRODUCTS and found["padding"] == 0
    assert 0 < found["fraction"] < 1
    main = found["loops"][found["main"]]
    assert main["products"] == 128 * 128 * 32 and main["cycles"]["L2"] > 0


def test_shapes_of_loops(compiled):
    """Nested loops, loops that were unrolled, TMA, several launches."""
    pooled = compiled["pooled"]
    programs, candidates, products = (loop["trips"] for loop in pooled["loops"])
    assert (candidates, products) == (4 * programs, 18 * 4 * programs) and pooled["of_code"] == pooled["of_ir"]
    programs, blocks, products = (loop["trips"] for loop in compiled["persistent"]["loops"])
    assert (programs, blocks, products) == (216, 64 * 64, 64 * 64 * 256)
    (pooling,) = compiled["max pool"]
    lines = [loop["trips"] for loop in pooling["loops"]]
    assert lines == [pooling["programs"], 3 * pooling["programs"]]  # the steps of a line are unrolled
    descriptors, pointers = compiled["descriptors"], compiled["sm_90 product"]
    for found in (descriptors, pointers):
        assert found["loops"][1]["cycles"]["L2"] == pytest.approx(2 * (128 + 256) * 64 / (5120 / 132))
    assert len(compiled["split"]) == 2 and compiled["split"][1]["fraction"] is None
    assert all(found["limit"] in ("issue", "L2", "DRAM", "alu", "fma") for found in compiled["norm"])


def test_what_is_not_modelled_says_so(compiled):
    assert "the warps of the kernel are specialised" in compiled["specialised"]["error"]


@pytest.mark.parametrize(
    ("target", "teraflops", "source"),
    [
        ("sm_80", 253.7, "cuBLAS, float16, A100-SXM: Azure/AI-benchmarking-guide, ND_A100_v4_results.md"),
        ("sm_80", 271.2, "bfloat16, the best shape: stas00/ml-engineering, compute/accelerator"),
        ("sm_80", 0.77 * 312, "Triton, float16, of the peak at its clock: triton, test_performance.py"),
        ("sm_90", 661.1, "cuBLAS, float16: triton, tutorials/gluon/07-persistence.py"),
        ("sm_90", 661.6, "Gluon, float16: the same"),
        ("sm_90", 797.8, "cuBLAS, bfloat16: pranjalssh/fast.cu"),
        ("sm_90", 807.7, "the best by hand, bfloat16: the same"),
    ],
)
def test_a_product_of_8192_is_within_1_3_times_what_is_measured(compiled, target, teraflops, source):
    estimated = 2 * SIDE**3 / compiled[f"{target} product"]["seconds"] / 1e12
    assert 1 / 1.3 <= estimated / teraflops <= 1.3, source
