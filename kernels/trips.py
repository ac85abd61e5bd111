"""How often the loops of a kernel run, from the compiler's IR: exact, and for every program of a launch at once.

Bounds of loops are scalars: arithmetic on the arguments and on the program's number. `count` evaluates that arithmetic
(Triton's IR, before anything is laid out for a GPU) with tensors of one entry a program, and skips what is not scalar.
Data are taken to be numbers: what a kernel does only where it finds NaN, it does not do.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

Value = Tensor | None  # one int64 for each program; None is not known


@dataclass(frozen=True)
class Dot:
    """A `tl.dot`: `count` products of an m x k by a k x n matrix.

    Args:
        factor: type of both factors as kernels.targets.Rates.products names it: "16" bits, "8", "tf32" or "fp64"; or
            "fp32", which no tensor core multiplies.
        itemsize: bytes of a factor's element.
        passes: products of matrices that the compiler makes of it: 3 in "tf32x3".
        repeats: how many warps, or groups of four, compute the same, as where the tile is smaller than their
            instructions.
        tcgen05: whether one thread has it computed for all warps.
    """

    m: int
    n: int
    k: int
    count: int
    factor: str
    itemsize: int
    passes: int = 1
    repeats: int = 1
    tcgen05: bool = False

    @property
    def products(self) -> int:
        return self.m * self.n * self.k * self.count


@dataclass
class Loop:
    """A loop of the IR, or (at depth 0) the kernel around all loops. Tensors have one entry for each program.

    Args:
        trips: how often the body runs in all: once for each trip of all enclosing loops. Of the kernel: 1, or 0 in a
            program that returns before it stores anything.
        entries: how often the loop is entered.
        dots: the products of matrices in the body, of one trip.
        accesses: numbers of elements that the body loads or stores through pointers, and the bytes of an element.
        descriptor_bytes: what tensor descriptors (TMA) load and store in one trip.
        inner: loops directly inside.
    """

    trips: Tensor
    entries: Tensor
    dots: list[Dot] = field(default_factory=list)
    accesses: list[tuple[int, int]] = field(default_factory=list)
    descriptor_bytes: int = 0
    inner: list[Loop] = field(default_factory=list)

    @property
    def products(self) -> int:
        """Multiply-adds of one trip."""
        return sum(dot.products for dot in self.dots)

    def lane_bytes(self, warps: int) -> int:
        """Bytes that a thread of a program of so many warps moves through pointers in one trip, at least an element."""
        return sum(-(-elements // (32 * warps)) * itemsize for elements, itemsize in self.accesses)

    def nest(self) -> list[Loop]:
        """The loop and all inside, in the order of the code."""
        return [self, *(each for loop in self.inner for each in loop.nest())]


def count(ir: str, arguments: dict[str, int], grid: tuple[int, ...], layouts: str = "") -> Loop:
    """The loops of a kernel of one function.

    Args:
        ir: the kernel in Triton's IR, `asm["ttir"]`.
        layouts: the same laid out for a GPU, `asm["ttgir"]`, which tells how warps share a `tl.dot`.
        arguments: integers by the names that the IR gives them, "rows" or, for an entry of a tuple, "size.1".
        grid: programs on each axis of the launch.

    Raises:
        ValueError: a loop runs until something that depends on data or on the trip of a loop around it, or the kernel
            does what is not counted: it calls a function, multiplies scaled matrices, or has too many programs.
    """
    if prod(grid) > MOST_PROGRAMS:
        raise ValueError(f"no estimate: {prod(grid)} programs, of which more than {MOST_PROGRAMS} are not followed")
    return _Evaluator(arguments, grid, _repeats(layouts), "ttng.tc_gen5_mma" in layouts).run(ir)


MOST_PROGRAMS = 2**22  # each of which has a number in every tensor
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
PASSES = {"tf32x3": 3, "bf16x3": 3, "bf16x6": 6}

_ASSIGNMENT = re.compile(r"(%[\w.]+(?::\d+)?(?:, %[\w.]+)*) = (\S+) ?(.*)")
_FOR = re.compile(r"(?:.*= )?scf\.for (?:unsigned )?(%[\w.]+) = (%[\w.#]+) to (%[\w.#]+) step (%[\w.#]+)")
_IF = re.compile(r"(?:(%[\w.]+)(?::\d+)? = )?scf\.if (%[\w.#]+)")
_TENSOR = re.compile(r"tensor<((?:\d+x)+)(?:!tt\.ptr<)?(\w+)")
_POINTER = re.compile(r": !tt\.ptr<(\w+)>")
_STORE = re.compile(r"\btt\.(store|descriptor_store|descriptor_scatter|descriptor_reduce|atomic_\w+)\b")
_UNCOUNTED = re.compile(r"\b(scf\.while|tt\.call|tt\.dot_scaled)\b")


@dataclass
class _Block:
    """An open block of the IR: what is restored when it ends.

    Args:
        loop: whether it is a loop's body.
        active: programs that come to what follows it.
        name, condition: of an scf.if: of its results, and when they are the first branch's.
        yields: the values of its branches.
    """

    loop: bool
    active: Tensor
    name: str | None = None
    condition: Value = None
    yields: list[list[Value]] = field(default_factory=list)


class _Evaluator:
    def __init__(
        self, arguments: dict[str, int], grid: tuple[int, ...], repeats: dict[tuple[int, ...], int], tcgen05: bool
    ) -> None:
        self._repeats, self._tcgen05 = repeats, tcgen05
        number = torch.arange(prod(grid))
        self._axes = {}
        for name, extent in zip("xyz", (*grid, 1, 1), strict=False):
            self._axes[name] = number % extent, extent
            number = number // extent
        self._one = torch.ones(prod(grid), dtype=torch.int64)
        self._active = self._one  # programs that come to this line; inside a branch only some do
        self._values: dict[str, Value] = {f"%{name}": self._one * value for name, value in arguments.items()}
        self._loops = [Loop(self._one, self._one)]
        self._blocks: list[_Block] = []
        self._arriving: dict[str, Tensor] = {}  # programs, by the label that they jump to

    def run(self, ir: str) -> Loop:
        kernel = self._loops[0]
        storing: list[Tensor] = []
        for line in map(str.strip, _without_locations(ir)):
            if match := _UNCOUNTED.search(line):
                raise ValueError(f"the kernel holds {match[0]}, whose work is not counted: {line}")
            if match := _FOR.match(line):
                self._enter(*match.groups(), line)
            elif match := _IF.match(line):
                condition = self._values.get(match[2])
                self._blocks.append(_Block(False, self._active, match[1], condition))
                self._active = self._active if condition is None else self._active * condition
            elif line.startswith("} else {"):
                block = self._blocks[-1]
                self._active = block.active if block.condition is None else block.active * (1 - block.condition)
            elif line.startswith("scf.yield") and self._blocks:
                operands = line.removeprefix("scf.yield").split(":")[0].split(",")
                self._blocks[-1].yields.append([self._values.get(operand.strip()) for operand in operands])
            elif line.startswith("}") and self._blocks:
                self._leave()
            elif line.startswith(("cf.", "^")) and not self._blocks:
                self._jump(line)
            elif match := _ASSIGNMENT.match(line):
                self._assign(*match.groups())
            if line.endswith("({"):  # how a reduction combines two elements
                self._blocks.append(_Block(False, self._active))
            elif _STORE.search(line):
                storing.append(self._active * (self._loops[-1].trips > 0))
                self._access(line)
        if storing:
            kernel.trips = kernel.entries = torch.stack(storing).amax(0)
        return kernel

    def _enter(self, counter: str, low: str, high: str, step: str, line: str) -> None:
        bounds = [self._values.get(name) for name in (low, high, step)]
        start, end, by = bounds
        if start is None or end is None or by is None:
            raise ValueError(f"the bounds of a loop depend on data, or on the trip of a loop around it: {line}")
        trips = torch.div(end - start + by - 1, by, rounding_mode="floor").clamp(min=0)
        entries = self._loops[-1].trips * self._active
        self._loops[-1].inner.append(Loop(entries * trips, entries))
        self._loops.append(self._loops[-1].inner[-1])
        self._blocks.append(_Block(True, self._active))
        self._active = self._one
        self._values[counter] = None

    def _leave(self) -> None:
        block = self._blocks.pop()
        self._active = block.active
        if block.loop:
            self._loops.pop()
        elif block.name is not None and len(block.yields) == 2 and block.condition is not None:
            for place, (then, other) in enumerate(zip(*block.yields, strict=True)):
                known = then is not None and other is not None
                value = torch.where(block.condition.bool(), then, other) if known else None
                self._values[f"{block.name}#{place}"] = value
                if len(block.yields[0]) == 1:
                    self._values[block.name] = value

    def _jump(self, line: str) -> None:
        """A branch of the kernel's own level, as `return` inside `if` makes it, or the label where one ends."""
        if match := re.match(r"cf\.cond_br (%[\w.#]+), (\^\w+)[^,]*, (\^\w+)", line):
            condition = self._values.get(match[1])
            parts = (self._one, self._one) if condition is None else (condition, 1 - condition)
            for label, part in zip(match.groups()[1:], parts, strict=True):
                self._arriving[label] = self._arriving.get(label, 0) | self._active * part
        elif match := re.match(r"cf\.br (\^\w+)", line):
            self._arriving[match[1]] = self._arriving.get(match[1], 0) | self._active
        elif match := re.match(r"(\^\w+)", line):
            self._active = self._arriving.get(match[1], self._one)

    def _assign(self, names: str, operation: str, rest: str) -> None:
        loop = self._loops[-1]
        if operation == "tt.dot":
            loop.dots.append(self._dot(rest))
        elif operation in ("tt.descriptor_load", "tt.descriptor_gather"):
            loop.descriptor_bytes += _size(*_TENSOR.findall(rest)[-1])
        elif operation == "tt.load":
            self._access(rest)
        if "," not in names:
            self._values[names.split(":")[0]] = None if "tensor<" in rest else self._scalar(operation, rest)

    def _dot(self, text: str) -> Dot:
        """`%a, %b, %acc, inputPrecision = tf32 : tensor<128x32xf32> * tensor<32x64xf32> -> tensor<128x64xf32>`."""
        (first, kind), (second, _) = _TENSOR.findall(text)[:2]
        *batch, m, k = _sides(first)
        n = _sides(second)[-1]
        precision = re.search(r"inputPrecision = (\w+)", text)
        bits, passes = _bits(kind), 1
        factor = {64: "fp64", 32: "fp32", 16: "16", 8: "8"}[bits]
        if factor == "fp32" and precision and precision[1] != "ieee":
            factor = "16" if precision[1].startswith("bf16") else "tf32"
            passes = PASSES.get(precision[1], 1)
        repeats = self._repeats.get((*batch, m, n))
        return Dot(
            m, n, k, prod(batch), factor, 2 if factor == "16" else bits // 8, passes, repeats or 1,
            tcgen05=self._tcgen05 and repeats is None,
        )  # fmt: skip

    def _access(self, line: str) -> None:
        """Count what a load or store moves."""
        loop = self._loops[-1]
        tensors = _TENSOR.findall(line)
        if "tt.descriptor" in line:
            loop.descriptor_bytes += _size(*tensors[-1])
        elif "tt.atomic" not in line:
            pointer = _POINTER.search(line)
            shape, kind = tensors[0] if tensors else ("1x", pointer[1] if pointer else "i32")
            loop.accesses.append((_elements(shape), _bits(kind) // 8))

    def _scalar(self, operation: str, rest: str) -> Value:
        if operation == "arith.constant":
            literal = {"true": "1", "false": "0"}.get(rest.split(" :")[0], rest.split(" :")[0])
            return self._one * int(literal) if re.fullmatch(r"-?\d+", literal) else None
        if operation == "tt.get_program_id":
            return self._axes[rest.split()[0]][0]
        if operation == "tt.get_num_programs":
            return self._one * self._axes[rest.split()[0]][1]
        if operation == "arith.cmpf" and (same := re.match(r"(?:une|uno), (%\S+), (%\S+)", rest)):
            return 0 * self._one if same[1] == same[2] else None
        room, _, name = operation.partition(".")
        operands = [self._values.get(operand) for operand in re.findall(r"%[\w.#]+", rest)]
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


def _repeats(layouts: str) -> dict[tuple[int, ...], int]:
    """How many warps compute the same, by the shapes of the results of `tl.dot` that warps share."""
    found = {}
    for shape, name in re.findall(r"(?:tt\.dot|ttng\.warp_group_dot) .*-> tensor<([\dx]+x)\w+, (#\w+)>", layouts):
        layout = re.search(
            rf"{name} = #ttg\.nvidia_mma<.*warpsPerCTA = \[([\d, ]+)\], instrShape = \[([\d, ]+)\]", layouts
        )
        if layout:
            warps, instruction = ([int(side) for side in sides.split(",")] for sides in layout.groups())
            tiles = [w * i for w, i in zip(warps, instruction, strict=False)]
            found[_sides(shape)] = prod(max(1, tile // side) for tile, side in zip(tiles, _sides(shape), strict=True))
    return found


def _sides(shape: str) -> tuple[int, ...]:
    """ "128x32x" -> (128, 32)."""
    return tuple(map(int, shape.split("x")[:-1]))


def _elements(shape: str) -> int:
    """ "128x32x" -> 4096."""
    return prod(_sides(shape))


def _bits(kind: str) -> int:
    """Bits of an element by its type in the IR: f16, bf16, i8, f8E5M2."""
    match = re.match(r"(?:b?f|tf|i)(\d+)", kind)
    return max(8, int(match[1])) if match else 64


def _size(shape: str, kind: str) -> int:
    """Bytes of a tensor."""
    return _elements(shape) * _bits(kind) // 8


def _without_locations(ir: str) -> list[str]:
    """The lines of the IR without what tells where they come from."""
    return [re.sub(r"\s*loc\(.*", "", line) for line in ir.splitlines() if not line.startswith("#")]
