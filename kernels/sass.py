"""NVIDIA machine code: its instructions, its loops, and what each instruction asks of the pipes of a multiprocessor."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import triton

PIPES = ("tensor", "fma", "alu", "fp64", "special", "memory", "uniform", "control")
_OPCODES = {
    "tensor": r"HMMA|IMMA|BMMA|QMMA|OMMA|DMMA|HGMMA|IGMMA|QGMMA|UTC\w*MMA",
    "fma": r"FADD\w*|FMUL\w*|FFMA\w*|HADD2\w*|HMUL2\w*|HFMA2\w*|IMAD\w*|IDP\w*",
    "fp64": r"D(ADD|MUL|FMA|SETP|MNMX)",
    "special": r"MUFU|POPC|FLO|BREV|[FI]2[FIP]\w*|F2FP\w*|FRND|I2\w+",
    "memory": r"LD|LDG|LDS|LDSM|LDL|LDC|LDGSTS|LDT\w*|ST|STG|STS|STSM|STL|STT\w*|ATOM\w*|RED\w*|SHFL|MATCH|UTMA\w+"
    r"|UBLK\w+|TEX|SUST|LDTM|STTM",
    "control": r"BRA|BRX|JMP|CALL|RET|EXIT|BSSY|BSYNC|BREAK|WARPSYNC|NOP|BAR|MEMBAR|FENCE|DEPBAR|LDGDEPBAR|SYNCS|ERRBAR"
    r"|CCTL\w*|WARPGROUP|WARPGROUPDEPBAR|YIELD|NANOSLEEP|ARRIVES|ELECT|ACQBULK|PREEXIT|UCGABAR\w*|CGAERRBAR|KILL|BPT"
    r"|BMOV|S2R|CS2R|VOTE\w*",
    "uniform": r"U[A-Z]\w+|R2UR|S2UR|REDUX|R2P",
}  # whatever else there is counts to the integer pipe: "alu"
_PIPE = {pipe: re.compile(pattern) for pipe, pattern in _OPCODES.items()}
_INSTRUCTION = re.compile(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_WIDTHS = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "16": 2, "U8": 1, "S8": 1, "8": 1}
_K_BY_TYPE = {"HMMA": 16, "HGMMA": 16}


class Instruction(NamedTuple):
    """One instruction of a warp: its name with all suffixes, as in "LDG.E.128", and its operands."""

    name: str
    operands: str

    @property
    def base(self) -> str:
        return self.name.split(".")[0]

    @property
    def pipe(self) -> str:
        return next((pipe for pipe, pattern in _PIPE.items() if pattern.fullmatch(self.base)), "alu")

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

        Shapes are m x n x k: written as 16816 (m16 n8 k16), 884, or 64x128x16 for the four warps of a group.
        """
        if self.base not in ("HMMA", "IMMA", "DMMA", "HGMMA", "IGMMA", "QGMMA", "QMMA"):
            return 0
        for part in self.name.split(".")[1:]:
            if match := re.fullmatch(r"(\d+)x(\d+)x(\d+)", part):
                m, n, k = map(int, match.groups())
                return m * n * k // 4
            if match := re.fullmatch(r"(16)(8)(4|8|16|32|64)|(8)(8)(4|8|16|32)", part):
                m, n, k = map(int, filter(None, match.groups()))
                return m * n * k
        return 0

    @property
    def shared_bytes(self) -> int:
        """Bytes of shared memory that it reads or writes for a warp.

        A warp-group product reads both factors there, or one, if the other is in registers; each warp a quarter.
        """
        if self.base in ("LDS", "STS", "LDSM", "STSM", "LDGSTS"):
            return 32 * self.width
        if match := re.search(r"\.(\d+)x(\d+)x(\d+)\.?(F32\.TF32)?", self.name) if self.pipe == "tensor" else None:
            m, n, k = map(int, match.groups()[:3])
            itemsize = 32 // k  # k is 32 bytes of each row
            in_registers = re.match(r"R\w+, R", self.operands)
            return (n + (0 if in_registers else m)) * k * itemsize // 4
        return 0

    @property
    def global_bytes(self) -> int:
        """Bytes that a warp's threads move between the multiprocessor and the L2 cache, with all of them active."""
        return 32 * self.width if self.base in ("LD", "LDG", "LDGSTS", "ST", "STG", "LDL", "STL") else 0


@dataclass
class Region:
    """Code that is run as often as its loop: all of a kernel outside of loops, or of a loop outside of inner ones."""

    start: int
    end: int
    instructions: list[Instruction] = field(default_factory=list)
    inner: list[Region] = field(default_factory=list)

    @property
    def pipes(self) -> Counter[str]:
        return Counter(instruction.pipe for instruction in self.instructions)

    @property
    def products(self) -> int:
        """Multiply-adds of the matrix instructions of a warp."""
        return sum(instruction.products for instruction in self.instructions)

    @property
    def has_products(self) -> bool:
        return any(instruction.pipe == "tensor" for instruction in self.instructions)

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
    """The code of a kernel, as `disassemble` gives it, by loops: what a branch back spans is one."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := _INSTRUCTION.search(line):
            never = "@!PT" in line  # a gap that the assembler leaves around warp-group products
            instructions.append(Instruction("NOP", "") if never else Instruction(*instruction.groups()))
    spans: dict[int, int] = {}
    for here, (name, operands) in enumerate(instructions):
        target = re.search(r"`\((\.L_\w+)\)", operands)
        if name.startswith("BRA") and target and labels[target[1]] < here:
            start = labels[target[1]]
            spans[start] = max(spans.get(start, 0), here)
    kernel = Region(0, len(instructions) - 1)
    around = [kernel]
    starts = sorted(spans)
    for here, instruction in enumerate(instructions):
        while here > around[-1].end:
            around.pop()
        if starts and starts[0] == here:
            loop = Region(here, min(spans[starts.pop(0)], around[-1].end))
            around[-1].inner.append(loop)
            around.append(loop)
        around[-1].instructions.append(instruction)
    return kernel
