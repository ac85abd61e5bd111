"""The machine code of NVIDIA's GPUs: instructions by their names, loops by the branches between them."""

import pytest

pytest.importorskip("triton")

from kernels.flow import natural_loops  # noqa: E402
from kernels.sass import Instruction, parse  # noqa: E402


def code(*lines: str) -> str:
    """Lines as nvdisasm prints them: labels, which end in a colon, and instructions."""
    numbered = (f"        /*{16 * n:04x}*/                   {line} ;" for n, line in enumerate(lines))
    return "\n".join(line if line.endswith(":") else text for line, text in zip(lines, numbered, strict=True))


def names(region) -> list[str]:
    return [each.name for each in region.instructions]


@pytest.mark.parametrize(
    ("name", "pipe"),
    [
        ("HMMA.16816.F32", "tensor"), ("HGMMA.64x256x16.F32", "tensor"), ("UTCHMMA", "tensor"),
        ("DMMA.8x8x4", "tensor"), ("FFMA.FTZ", "fma"), ("IMAD.WIDE.U32", "fma"), ("HFMA2.BF16_V2", "fma"),
        ("LOP3.LUT", "alu"), ("ISETP.GE", "alu"), ("FSETP.GT", "alu"), ("DFMA", "fp64"), ("MUFU.RCP", "special"),
        ("F2FP.F16.F32.PACK_AB", "special"), ("LDGSTS.E.BYPASS.128", "memory"), ("UTMALDG.2D", "memory"),
        ("ATOMG.E.ADD", "memory"), ("LDTM.x128", "memory"), ("UIADD3", "uniform"), ("R2UR", "uniform"),
        ("LDCU.64", "uniform"), ("UTCBAR", "uniform"), ("BRA.U", "control"), ("BAR.SYNC", "control"),
        ("SYNCS.PHASECHK.TRANS64.TRYWAIT", "control"),
    ],
)  # fmt: skip
def test_an_instruction_goes_to_a_pipe(name, pipe):
    assert Instruction(name, "").pipe == pipe


@pytest.mark.parametrize(
    ("name", "products"),
    [
        ("HMMA.16816.F32", 16 * 8 * 16), ("HMMA.1688.F32.TF32", 16 * 8 * 8), ("DMMA.884", 8 * 8 * 4),
        ("DMMA.8x8x4", 8 * 8 * 4), ("IMMA.16832.S8.S8", 16 * 8 * 32), ("QMMA.16832.F32.E4M3.E4M3", 16 * 8 * 32),
        ("HGMMA.64x256x16.F32", 64 * 256 * 16 // 4), ("UTCHMMA", 0), ("FFMA", 0),
    ],
)  # fmt: skip
def test_products_of_a_warp_are_in_the_name(name, products):
    assert Instruction(name, "").products == products


@pytest.mark.parametrize(
    ("name", "operands", "width", "shared", "l2"),
    [
        ("LDG.E.128", "R4, [R2]", 16, 0, 512), ("STG.E.U16", "[R2], R4", 2, 0, 64), ("LDG.E", "R4, [R2]", 4, 0, 128),
        ("LDGSTS.E.BYPASS.128", "[R2], [R4]", 16, 512, 512), ("LDGSTS.E.BYPASS.128", "[R2], [R4], P0", 16, 512, 512),
        ("LDGSTS.E.BYPASS.128", "[R2+0x800], desc[UR4][R4.64], !PT", 16, 512, 0), ("LDS.64", "R2, [R4]", 8, 256, 0),
        ("LDSM.16.M88.4", "R4, [R2]", 16, 512, 0), ("LDSM.16.MT88.2", "R4, [R2]", 8, 256, 0),
        ("HGMMA.64x128x16.F32", "R24, gdesc[UR4], R24", 4, (128 + 64) * 32 // 4, 0),
        ("HGMMA.64x128x16.F32", "R24, R4, gdesc[UR4], R24", 4, 128 * 32 // 4, 0),
        ("HGMMA.64x128x8.F32.TF32", "R24, gdesc[UR4], R24", 4, (128 + 64) * 32 // 4, 0),
        ("DMMA.8x8x4", "R4, R2, R3, R4", 4, 0, 0),
    ],
)  # fmt: skip
def test_what_an_instruction_moves(name, operands, width, shared, l2):
    instruction = Instruction(name, operands)
    assert (instruction.width, instruction.shared_bytes, instruction.global_bytes) == (width, shared, l2)


def test_a_loop_and_what_is_never_reached():
    kernel = parse(code(
        "MOV R1, c[0x0][0x28]", ".L_x_0:", "FFMA R2, R2, R2, R2", "LDG.E.64 R4, [R2]", "@P0 BRA `(.L_x_0)",
        "STG.E [R2], R4", "EXIT", ".L_x_1:", "BRA `(.L_x_1)", "NOP",
    ))  # fmt: skip
    assert names(kernel) == ["MOV", "STG.E", "EXIT"]
    (loop,) = kernel.inner
    assert names(loop) == ["FFMA", "LDG.E.64", "BRA"]
    assert loop.accesses == {"LDG 64": 1} and loop.lane_bytes == 8
    assert dict(loop.pipes) == {"fma": 1, "memory": 1, "control": 1}


def test_loops_inside_loops_and_code_out_of_line():
    """The wait for a barrier stands behind the end, jumps back into the loop, and is no loop of its own."""
    kernel = parse(code(
        ".L_x_0:", "IADD3 R1, R1, 0x1, RZ", ".L_x_1:", "HMMA.16816.F32 R4, R2, R3, R4",
        "SYNCS.PHASECHK.TRANS64.TRYWAIT P4, [UR11], R24", "@!P4 BRA `(.L_x_3)", ".L_x_2:", "FADD R5, R5, R5",
        "BRA.U UP0, `(.L_x_1)", "@P1 BRA `(.L_x_0)", "EXIT",
        ".L_x_3:", "SYNCS.PHASECHK.TRANS64.TRYWAIT P4, [UR11], R24", "@!P4 BRA `(.L_x_3)", "BRA `(.L_x_2)",
    ))  # fmt: skip
    (outer,) = kernel.inner
    (inner,) = outer.inner
    assert names(kernel) == ["EXIT"] and names(outer) == ["IADD3", "BRA"]
    assert names(inner) == ["HMMA.16816.F32", "SYNCS.PHASECHK.TRANS64.TRYWAIT", "BRA", "FADD", "BRA.U", "BRA"]
    assert inner.inner == [] and [len(each.inner) for each in kernel.nest()] == [1, 1, 0]


def test_code_that_is_only_run_with_a_loop_there_is_a_way_past():
    kernel = parse(code(
        "MOV R1, R2", ".L_x_0:", "HMMA.16816.F32 R4, R2, R3, R4", "@P0 BRA `(.L_x_0)", "@P1 BRA `(.L_x_2)",
        "FADD R5, R5, R5", ".L_x_1:", "FMUL R4, R4, R4", "@P0 BRA `(.L_x_1)", "IADD3 R1, R1, 0x1, RZ",
        ".L_x_2:", "EXIT",
    ))  # fmt: skip
    assert [[each.name for each in loop.around] for loop in kernel.inner] == [[], ["FADD", "IADD3"]]


def test_a_call_to_a_label_is_a_branch_and_one_to_a_function_is_not():
    kernel = parse(code(
        ".L_x_1:", "FADD R5, R5, R5", "@!P4 CALL.REL.NOINC `(.L_x_0)", "BRA `(.L_x_1)", ".L_x_0:",
        "CALL.REL.NOINC `($__internal_0_$__cuda_sm20_div_u64)", "EXIT",
        "MUFU.RCP R1, R1", "RET.REL.NODEC R2 `(_kernel)",
    ))  # fmt: skip
    assert names(kernel) == ["CALL.REL.NOINC", "EXIT"]
    assert [names(loop) for loop in kernel.inner] == [["FADD", "CALL.REL.NOINC", "BRA"]]


def test_a_load_that_never_happens_is_none():
    kernel = parse(code("@!PT LDS RZ, [RZ]", "@P0 LDS R1, [R2]", "EXIT"))
    assert names(kernel) == ["NOP", "LDS", "EXIT"]


def test_what_cannot_be_followed_is_an_error():
    with pytest.raises(ValueError, match="jumps to an address that it computes: BRX R2 -0x10"):
        parse(code("BRX R2 -0x10", "EXIT"))
    with pytest.raises(ValueError, match="a loop with two ways in"):
        parse(code("@P0 BRA `(.L_x_1)", ".L_x_0:", "FADD R1, R1, R1", ".L_x_1:", "FMUL R1, R1, R1", "BRA `(.L_x_0)"))


def test_loops_of_a_graph():
    """0 -> 1 -> 2 -> 3 -> 1, 2 -> 2, 3 -> 4, 3 -> 1 by another way, 5 is not reached."""
    assert natural_loops([(1,), (2,), (2, 3), (1, 4), (), (2,)]) == {1: {1, 2, 3}, 2: {2}}
    assert natural_loops([(1, 2), (3,), (3,), ()]) == {}
    assert natural_loops([(1,), (2, 3), (1,), (1, 4), ()]) == {1: {1, 2, 3}}
