"""NVIDIA machine code: its instructions, its loops, and what each instruction asks of the pipes of a multiprocessor."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import triton

from kernels.flow import natural_loops

PIPES = ("tensor", "fma", "alu", "fp64", "special", "memory", "uniform", "control")
_OPCODES = {
    "tensor": r"HMMA|IMMA|BMMA|QMMA|OMMA|DMMA|HGMMA|IGMMA|QGMMA|UTC\w*MMA",
    "fma": r"FADD\w*|FMUL\w*|FFMA\w*|HADD2\w*|HMUL2\w*|HFMA2\w*|IMAD\w*|IDP\w*",
    "fp64": r"D(ADD|MUL|FMA|SETP|MNMX)",
    "special": r"MUFU|POPC|FLO|BREV|[FI]2[FIP]\w*|F2FP\w*|FRND|I2\w+",
    "memory": r"LD|LDG|LDS|LDSM|LDL|LDC|LDGSTS|LDT\w*|ST|STG|STS|STSM|STL|STT\w*|ATOM\w*|RED|REDG|REDS|SHFL|MATCH"
    r"|UTMA\w+|UBLK\w+|TEX|SUST|LDTM|STTM",
    "control": r"BRA|BRX|JMP|CALL|RET|EXIT|BSSY|BSYNC|BREAK|WARPSYNC|NOP|BAR|MEMBAR|FENCE|DEPBAR|LDGDEPBAR|SYNCS|ERRBAR"
    r"|CCTL\w*|WARPGROUP|WARPGROUPDEPBAR|YIELD|NANOSLEEP|ARRIVES|ELECT|ACQBULK|PREEXIT|UCGABAR\w*|CGAERRBAR|KILL|BPT"
    r"|BMOV|S2R|CS2R|VOTE\w*",
    "uniform": r"U[A-Z]\w+|LDCU|R2UR|S2UR|REDUX|R2P",
}  # whatever else there is counts to the integer pipe: "alu"
_PIPE = {pipe: re.compile(pattern) for pipe, pattern in _OPCODES.items()}
_INSTRUCTION = re.compile(r"/\*[0-9a-f]+\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_WIDTHS = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "16": 2, "U8": 1, "S8": 1, "8": 1}
_GLOBAL = ("LD", "LDG", "LDGSTS", "ST", "STG")
_BY_WIDTH = (*_GLOBAL, "LDS", "STS", "LDSM", "STSM", "LDL", "STL", "LDC")
_TARGET = re.compile(r"`\((\.L_\w+)\)")
_LABEL = re.compile(r"\s*(\.L_\w+):")


class Instruction(NamedTuple):
    """One instruction of a warp: its name with all suffixes, as in "LDG.E.128", and its operands."""

    name: str
    operands: str
    predicate: str = ""  # as in "@!P0"

    @property
    def base(self) -> str:
        return self.name.split(".")[0]

    @property
    def pipe(self) -> str:
        return next((pipe for pipe, pattern in _PIPE.items() if pattern.fullmatch(self.base)), "alu")

    @property
    def of_group(self) -> bool:
        """Whether four warps multiply matrices together (WGMMA)."""
        return self.base.endswith("GMMA")

    @property
    def loads_nothing(self) -> bool:
        """True if it is an asynchronous copy that is switched off: it fills shared memory with zeros."""
        return self.base == "LDGSTS" and self.operands.endswith("!PT")

    @property
    def width(self) -> int:
        """Bytes that one thread moves."""
        parts = self.name.split(".")[1:]
        if self.base in ("LDSM", "STSM"):
            return 4 * int(parts[-1]) if parts[-1] in "124" else 4
        return next((_WIDTHS[part] for part in parts if part in _WIDTHS), 4)

    @property
    def products(self) -> int:
        """Multiply-adds that a warp's matrix instruction computes; 0 for any other, and where the name does not say.

        Shapes are m x n x k: written as 16816 (m16 n8 k16), 884, 8x8x4, or 64x128x16 for the four warps of a group.
        """
        if self.base not in ("HMMA", "IMMA", "DMMA", "HGMMA", "IGMMA", "QGMMA", "QMMA"):
            return 0
        for part in self.name.split(".")[1:]:
            if match := re.fullmatch(r"(\d+)x(\d+)x(\d+)", part):
                m, n, k = map(int, match.groups())
                return m * n * k // (4 if self.of_group else 1)
            if match := re.fullmatch(r"(16)(8)(4|8|16|32|64)|(8)(8)(4|8|16|32)", part):
                m, n, k = map(int, filter(None, match.groups()))
                return m * n * k
        return 0

    @property
    def shared_bytes(self) -> int:
        """Bytes of shared memory that it reads or writes for a warp.

        A warp-group product reads both factors there, or one, if the other is in registers; each warp a quarter. What
        tcgen05 reads is not in the instruction's name.
        """
        if self.base in ("LDS", "STS", "LDSM", "STSM", "LDGSTS"):
            return 32 * self.width
        if self.of_group and (match := re.search(r"\.(\d+)x(\d+)x(\d+)", self.name)):
            m, n, k = map(int, match.groups())
            itemsize = 32 // k  # k is 32 bytes of each row
            in_registers = re.match(r"R\w+, R", self.operands)
            return (n + (0 if in_registers else m)) * k * itemsize // 4
        return 0

    @property
    def global_bytes(self) -> int:
        """Bytes that a warp's threads move between the multiprocessor and the L2 cache, with all of them active."""
        return 32 * self.width if self.base in (*_GLOBAL, "LDL", "STL") and not self.loads_nothing else 0


@dataclass
class Region:
    """Code that is run as often as its loop: all of a kernel outside of loops, or of a loop outside of inner ones.

    Args:
        around: of a loop directly in the kernel that there is a way past: the code outside of loops that is only run
            with it.
    """

    instructions: list[Instruction] = field(default_factory=list)
    inner: list[Region] = field(default_factory=list)
    around: list[Instruction] = field(default_factory=list)

    @property
    def pipes(self) -> Counter[str]:
        return Counter(instruction.pipe for instruction in self.instructions)

    @property
    def accesses(self) -> Counter[str]:
        """Loads and stores by instruction and width in bits, as in "LDG 128"."""
        moving = (each for each in self.instructions if each.base in _BY_WIDTH and not each.loads_nothing)
        return Counter(f"{each.base} {8 * each.width}" for each in moving)

    @property
    def lane_bytes(self) -> int:
        """Bytes of global memory that one thread loads and stores, or would if a copy were not switched off."""
        return sum(each.width for each in self.instructions if each.base in _GLOBAL)

    @property
    def has_products(self) -> bool:
        return any(instruction.pipe == "tensor" for instruction in self.instructions)

    @property
    def waits(self) -> bool:
        """Whether, as a loop, it only asks again and again whether something has arrived."""
        asks = any(each.base in ("SYNCS", "UTCATOMSWS", "NANOSLEEP") for each in self.instructions)
        return asks and not self.inner and not self.lane_bytes and not self.has_products

    def nest(self) -> list[Region]:
        """The region and all inside, in the order of the code."""
        return [self, *(each for region in self.inner for each in region.nest())]


def tool(name: str, *arguments: str) -> str:
    """Output of one of the binary utilities that Triton brings."""
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


def disassemble(cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return tool("nvdisasm", "-c", file.name)


def parse(text: str) -> Region:
    """The code of a kernel, as `disassemble` gives it, by loops.

    Code that no branch leads to is left out: the padding at the end, and what is called, which is the slow path of a
    division. Loops that only wait for a barrier are left out too.

    Raises:
        ValueError: there is a jump to a computed address, or a loop with two ways in.
    """
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif match := _INSTRUCTION.search(line):
            predicate, name, operands = match.groups()
            never = predicate in ("@!PT", "@!UPT")  # a gap that the assembler leaves, as around warp-group products
            instructions.append(Instruction("NOP", "") if never else Instruction(name, operands, predicate or ""))
    blocks, successors = _blocks(instructions, labels)
    loops = natural_loops(successors)
    regions = {head: Region() for head in sorted(loops)}
    kernel = Region()
    for number, block in enumerate(blocks):
        around = min((head for head in loops if number in loops[head]), key=lambda head: len(loops[head]), default=None)
        if around is not None:
            regions[around].instructions += block
        elif number in _reached(successors):
            kernel.instructions += block
    for head, region in regions.items():
        if region.waits:
            continue
        outer = [other for other in loops if other != head and head in loops[other]]
        parent = regions[min(outer, key=lambda other: len(loops[other]))] if outer else kernel
        parent.inner.append(region)
        if not outer:
            only_with = _only_with(head, successors) - set().union(*loops.values())
            region.around = [each for number in sorted(only_with) for each in blocks[number]]
    return kernel


def _blocks(
    instructions: list[Instruction], labels: dict[str, int]
) -> tuple[list[list[Instruction]], list[tuple[int, ...]]]:
    """Straight pieces of code, and for each the numbers of those that can follow it.

    What is called is a function, or a label inside the kernel: then it is a branch that goes too far for one.
    """
    branches = ("BRA", "CALL", "EXIT", "RET", "BRX", "JMX")
    ends = {here + 1 for here, each in enumerate(instructions) if each.base in branches}
    starts = sorted({0, *ends, *labels.values()} - {len(instructions)})
    number = {start: block for block, start in enumerate(starts)}
    blocks, successors = [], []
    for start, end in zip(starts, [*starts[1:], len(instructions)], strict=True):
        blocks.append(instructions[start:end])
        last = instructions[end - 1]
        if last.base in ("BRX", "JMX"):
            raise ValueError(f"the machine code jumps to an address that it computes: {last.name} {last.operands}")
        target = _TARGET.search(last.operands) if last.base in ("BRA", "CALL") else None
        leaves = last.base in ("EXIT", "RET") or (target and last.operands.startswith("`"))  # or under a condition
        leaves = leaves and not last.predicate
        following = {number[end]} if end in number and not leaves else set()
        if target and labels[target[1]] in number:
            following.add(number[labels[target[1]]])
        successors.append(tuple(sorted(following)))
    return blocks, successors


def _reached(successors: Sequence[Iterable[int]], first: Iterable[int] = (0,), without: int = -1) -> set[int]:
    """The blocks that can be reached from the `first`, not through the one that is named."""
    reached, new = set(first), list(first)
    while new:
        after = set(successors[new.pop()]) - reached - {without}
        reached |= after
        new += after
    return reached


def _only_with(head: int, successors: Sequence[Iterable[int]]) -> set[int]:
    """The blocks that are on no way from the first to an end past `head`; none where there is no such way."""
    predecessors: list[list[int]] = [[] for _ in successors]
    for number, following in enumerate(successors):
        for after in following:
            predecessors[after].append(number)
    ends = [number for number, following in enumerate(successors) if not following]
    past = _reached(successors, without=head) & _reached(predecessors, ends, without=head)
    return _reached(successors) - past if past else set()
