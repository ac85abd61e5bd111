"""How often the loops of a kernel run, from the compiler's IR: exact, and for every program of a launch at once.

Bounds of loops are scalars: arithmetic on the arguments and on the program's number. `count` evaluates that arithmetic
(Triton's IR, before anything is laid out for a GPU) with tensors of one entry a program, and skips what is not scalar.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

Value = Tensor | None  # one int64 for each program; None is not known


@dataclass
class Loop:
    """A loop of the IR, or (at depth 0) the kernel around all loops. Tensors have one entry for each program.

    Args:
        trips: how often the body runs in all: once for each trip of all enclosing loops.
        entries: how often the loop is entered.
        products: multiply-adds of the matrix products (`tl.dot`) in the body, of one trip.
        descriptor_bytes: what tensor descriptors (TMA) load in one trip.
        inner: loops directly inside.
    """

    trips: Tensor
    entries: Tensor
    products: int = 0
    descriptor_bytes: int = 0
    inner: list[Loop] = field(default_factory=list)

    def nest(self) -> list[Loop]:
        """The loop and all inside, in the order of the code."""
        return [self, *(each for loop in self.inner for each in loop.nest())]


def count(ir: str, arguments: dict[str, int], grid: tuple[int, ...]) -> Loop:
    """The loops of a kernel of one function.

    Args:
        ir: the kernel in Triton's IR, `asm["ttir"]`.
        arguments: integers by the names that the IR gives them, "rows" or, for an entry of a tuple, "size.1".
        grid: programs on each axis of the launch.

    Raises:
        ValueError: a loop runs until something that depends on data.
    """
    return _Evaluator(arguments, grid).run(ir)


BITS = {"i1": 1, "i8": 8, "i16": 16, "i32": 32, "i64": 64, "index": 64}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "addi": torch.add,
    "subi": torch.sub,
    "muli": torch.mul,
    "andi": torch.bitwise_and,
    "ori": torch.bitwise_or,
    "xori": torch.bitwise_xor,
    "shli": torch.bitwise_left_shift,
    "shrsi": torch.bitwise_right_shift,
    "shrui": torch.bitwise_right_shift,
    "divsi": lambda a, b: torch.div(a, torch.where(b == 0, 1, b), rounding_mode="trunc"),
    "divui": lambda a, b: torch.div(a, torch.where(b == 0, 1, b), rounding_mode="trunc"),
    "remsi": lambda a, b: torch.fmod(a, torch.where(b == 0, 1, b)),
    "remui": lambda a, b: torch.fmod(a, torch.where(b == 0, 1, b)),
    "minsi": torch.minimum,
    "maxsi": torch.maximum,
    "minui": torch.minimum,
    "maxui": torch.maximum,
}
COMPARE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "eq": torch.eq, "ne": torch.ne, "slt": torch.lt, "sle": torch.le, "sgt": torch.gt, "sge": torch.ge,
    "ult": torch.lt, "ule": torch.le, "ugt": torch.gt, "uge": torch.ge,
}  # fmt: skip
ELEMENT_BYTES = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2, "i32": 4, "i16": 2, "i8": 1, "i64": 8}

_ASSIGNMENT = re.compile(r"(%[\w.#:]+(?:, %[\w.#:]+)*) = (\S+) ?(.*)")
_FOR = re.compile(r"(?:.*= )?scf\.for (%[\w.]+) = (%[\w.]+) to (%[\w.]+) step (%[\w.]+)")
_TENSOR = re.compile(r"tensor<((?:\d+x)+)(\w+)")


class _Evaluator:
    def __init__(self, arguments: dict[str, int], grid: tuple[int, ...]) -> None:
        number = torch.arange(prod(grid))
        self._axes = {}
        for name, extent in zip("xyz", (*grid, 1, 1), strict=False):
            self._axes[name] = number % extent, extent
            number = number // extent
        self._one = torch.ones(prod(grid), dtype=torch.int64)
        self._values: dict[str, Value] = {f"%{name}": self._one * value for name, value in arguments.items()}

    def run(self, ir: str) -> Loop:
        kernel = Loop(self._one, self._one)
        loops = [kernel]
        active = self._one  # programs that come to this line; inside a branch only some do
        branches: list[tuple[str, Value, Tensor]] = []  # kind, condition, programs before it
        blocks: dict[str, Tensor] = {}
        for line in map(str.strip, _without_locations(ir)):
            if loop := _FOR.match(line):
                counter, *bounds = loop.groups()
                low, high, step = (self._values.get(name) for name in bounds)
                if low is None or high is None or step is None:
                    raise ValueError(f"the bounds of a loop depend on data: {line}")
                trips = torch.div(high - low + step - 1, step, rounding_mode="floor").clamp(min=0)
                entries = loops[-1].trips * active
                loops[-1].inner.append(Loop(entries * trips, entries))
                loops.append(loops[-1].inner[-1])
                branches.append(("for", None, active))
                active = self._one
                self._values[counter] = None
            elif "scf.while" in line:
                raise ValueError(f"a loop runs until data say so: {line}")
            elif match := re.match(r"(?:.*= )?scf\.if (%[\w.]+)", line):
                condition = self._values.get(match[1])
                branches.append(("if", condition, active))
                active = active if condition is None else active * condition
            elif line.startswith("} else {"):
                _, condition, before = branches[-1]
                active = before if condition is None else before * (1 - condition)
            elif match := re.match(r"cf\.cond_br (%[\w.]+), (\^\w+)[^,]*, (\^\w+)", line):
                condition = self._values.get(match[1])
                taken = (self._one, self._one) if condition is None else (condition, 1 - condition)
                for block, part in zip(match.groups()[1:], taken, strict=True):
                    blocks[block] = blocks.get(block, 0) + active * part
            elif match := re.match(r"cf\.br (\^\w+)", line):
                blocks[match[1]] = blocks.get(match[1], 0) + active
            elif match := re.match(r"(\^\w+)", line):
                active = blocks.get(match[1], self._one).clamp(max=1)
            elif line.startswith("}") and branches:
                kind, _, active = branches.pop()
                if kind == "for":
                    loops.pop()
            elif match := _ASSIGNMENT.match(line):
                self._assign(*match.groups(), loops[-1])
        return kernel

    def _assign(self, names: str, operation: str, rest: str, loop: Loop) -> None:
        shapes = [[int(side) for side in match[1].split("x")[:-1]] for match in _TENSOR.finditer(rest)]
        if operation == "tt.dot":
            (m, k), (_, n) = shapes[0][-2:], shapes[1][-2:]
            loop.products += m * n * k * prod(shapes[0][:-2])
        elif operation in ("tt.descriptor_load", "tt.descriptor_gather"):
            loop.descriptor_bytes += prod(shapes[-1]) * ELEMENT_BYTES[_TENSOR.findall(rest)[-1][1]]
        elif "tensor<" not in rest and "," not in names:
            self._values[names] = self._scalar(operation, rest)

    def _scalar(self, operation: str, rest: str) -> Value:
        if operation == "arith.constant":
            literal = {"true": "1", "false": "0"}.get(rest.split(" :")[0], rest.split(" :")[0])
            return self._one * int(literal) if re.fullmatch(r"-?\d+", literal) else None
        if operation == "tt.get_program_id":
            return self._axes[rest.split()[0]][0]
        if operation == "tt.get_num_programs":
            return self._one * self._axes[rest.split()[0]][1]
        room, _, name = operation.partition(".")
        operands = [self._values.get(operand) for operand in re.findall(r"%[\w.]+", rest)]
        if room != "arith" or not operands or any(operand is None for operand in operands):
            return None
        if name in BINARY:
            result = BINARY[name](*operands)
            bits = BITS.get(rest.rsplit(":", 1)[-1].strip(), 64)
            return result if bits in (1, 64) else (result + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)
        if name == "cmpi":
            return COMPARE[rest.split(",")[0].strip()](*operands).long()
        if name == "select":
            return torch.where(operands[0].bool(), operands[1], operands[2])
        if name in ("extsi", "extui", "trunci", "index_cast"):
            return operands[0]
        return None


def _without_locations(ir: str) -> list[str]:
    """The lines of the IR without what tells where they come from."""
    return [re.sub(r"\s*loc\(.*", "", line) for line in ir.splitlines() if not line.startswith("#")]
