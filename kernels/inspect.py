"""Compile what the launchers would launch, for a GPU that need not be there, and read the binary's resources.

    with compiling_for("sm_90") as kernels:
        conv.forward(x, weight, None, None, window, relu=True)  # tensors on the "meta" device: no memory, nothing runs
    print(kernels[0].registers)

Not in the interpreter: a process with TRITON_INTERPRET=1 holds no kernels that can be compiled.
"""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from kernels import backend, plan, sass, trips, tuning
from kernels.estimate import Estimate, estimate
from kernels.targets import TARGETS


@dataclass(frozen=True)
class Compiled:
    """A kernel compiled for a target.

    Args:
        name: the kernel function's.
        block: extents of its tile, m x n x k, as far as it has them.
        warps: of a program.
        registers: registers of a thread.
        spills: what a thread keeps in memory for want of registers: bytes (NVIDIA), vector registers (AMD, whose
            spilled scalar registers stay in vector registers).
        shared_memory: bytes of shared memory of a block.
        tensor_memory: columns of tensor memory (tcgen05) of a block, 512 of which a multiprocessor has.
        wide: whether addresses are computed in 64-bit integers, as they must be in tensors of 2**30 elements.
        tensor_cores: whether the code holds matrix instructions (MMA, WGMMA, tcgen05; MFMA on AMD).
        tensor_bytes: of the tensors that it is given, each counted once, without those that an earlier launch was given
            too and that L2 still holds: half of it at most.
        target, grid, arguments: what it was compiled for, its programs, and its integers by their names in the IR.
        asm: the kernel in all languages on the way from "ttir" to "cubin" or "amdgcn".
    """

    name: str
    block: tuple[int, ...]
    warps: int
    registers: int
    spills: int
    shared_memory: int
    tensor_memory: int
    tensor_cores: bool
    wide: bool
    tensor_bytes: int
    target: str
    grid: tuple[int, ...]
    arguments: dict[str, int]
    asm: Mapping[str, Any] = field(repr=False)

    @functools.cached_property
    def code(self) -> sass.Region:
        """The machine code by loops; NVIDIA only."""
        return sass.parse(sass.disassemble(self.asm["cubin"]))

    @functools.cached_property
    def loops(self) -> trips.Loop:
        """The loops of the IR, and how often they run."""
        return trips.count(self.asm["ttir"], self.arguments, self.grid, self.asm["ttgir"])

    def estimate(self, flops: int, compulsory_bytes: int) -> Estimate:
        """The least time of the launch, which needs so many operations and so much traffic; see kernels.estimate.

        Raises:
            ValueError: the target is not NVIDIA's, or the kernel is none that the model can follow.
        """
        target = TARGETS[self.target]
        if target.rates is None:
            raise ValueError(f"no estimate for {self.target}: registers, spills and LDS only")
        if "ttg.warp_specialize" in self.asm["ttgir"]:
            raise ValueError(
                "no estimate: the warps of the kernel are specialised, and the model has them all run alike"
            )
        if '"ttg.num-ctas" = 1 ' not in self.asm["ttgir"]:
            raise ValueError("no estimate: the kernel runs in clusters of blocks, which the model does not know")
        return estimate(
            target, self.code, self.loops, self.warps, self.registers, self.shared_memory,
            flops, compulsory_bytes, self.tensor_memory,
        )  # fmt: skip


class OfflineDriver(DriverBase):
    """Tells Triton's compiler that a target is the device in use; can launch nothing."""

    _devices: ClassVar[dict[GPUTarget, int]] = {}

    def __init__(self, target: GPUTarget) -> None:
        self._target = target
        # Triton keeps what it compiled by device. No GPU has a number below 0.
        self._device = self._devices.setdefault(target, -1 - len(self._devices))

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return self._device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> Any:
        raise RuntimeError("compiling for a GPU that is not there: no device")

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise RuntimeError("compiling for a GPU that is not there: no launcher")

    def get_benchmarker(self) -> Any:
        raise RuntimeError("compiling for a GPU that is not there: nothing to time")


@contextmanager
def compiling_for(target: str) -> Iterator[list[Compiled]]:
    """Compile for `target` (a key of TARGETS) instead of launching; gives the list that fills with the results.

    Raises:
        ValueError: for a target that is not known.
        RuntimeError: where this process interprets.
    """
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {target!r}")
    if backend.INTERPRETING:
        raise RuntimeError("kernels cannot be compiled in a process that interprets them: unset TRITON_INTERPRET")
    compiled: list[Compiled] = []
    earlier: dict[int, torch.Tensor] = {}
    known = TARGETS[target]
    rates = known.rates
    kept = rates.l2_size // 2 if rates else 0

    def compile_only(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
        if 0 in grid:
            return
        binary = kernel.warmup(*args, grid=grid, **backend.OPTIONS | constants)
        given = _tensors((*args, *constants.values()))
        needed = [_bytes(tensor) for place, tensor in given.items() if place not in earlier or _bytes(tensor) > kept]
        earlier.update(given)
        compiled.append(_read(binary, target, grid, _integers(kernel.arg_names, args), constants, sum(needed)))

    with (
        mock.patch.object(
            triton.runtime.driver, "_active", OfflineDriver(GPUTarget(known.backend, known.arch, known.warp_size))
        ),
        mock.patch.object(backend, "launch", compile_only),
        mock.patch.object(tuning, "target", lambda device=None: target),
        plan.apart(object()),
    ):
        yield compiled


def _integers(names: Sequence[str], arguments: Sequence[Any]) -> dict[str, int]:
    """Integers among the arguments of a launch, by the names that Triton's IR gives them."""
    found = {}
    for name, value in zip(names, arguments, strict=False):
        if isinstance(value, tuple):
            found |= _integers([f"{name}.{entry}" for entry in range(len(value))], value)
        elif isinstance(value, int):
            found[name] = value
    return found


def _tensors(arguments: Sequence[Any]) -> dict[int, torch.Tensor]:
    """The tensors among the arguments of a launch that have elements, each once."""
    flat = [each for value in arguments for each in (value if isinstance(value, tuple) else (value,))]
    return {id(value): value for value in flat if isinstance(value, torch.Tensor) and value.numel()}


def _bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor, an element that is expanded counted once."""
    extents = zip(tensor.shape, tensor.stride(), strict=True)
    return prod(size for size, stride in extents if stride) * tensor.itemsize


def _read(
    kernel: Any, target: str, grid: tuple[int, ...], arguments: dict[str, int], constants: dict[str, Any],
    tensor_bytes: int,
) -> Compiled:  # fmt: skip
    read = _read_cubin if TARGETS[target].backend == "cuda" else _read_amdgcn
    registers, spills, tensor_cores = read(kernel)
    return Compiled(
        name=kernel.name,
        block=_block(constants),
        warps=kernel.metadata.num_warps,
        registers=registers,
        spills=spills,
        shared_memory=kernel.metadata.shared,
        tensor_memory=getattr(kernel.metadata, "tmem_size", 0) or 0,
        tensor_cores=tensor_cores,
        wide=bool(re.search(r"tt\.addptr .*i64", kernel.asm["ttir"])),
        tensor_bytes=tensor_bytes,
        target=target,
        grid=grid,
        arguments=arguments,
        asm=kernel.asm,
    )


def _block(constants: dict[str, Any]) -> tuple[int, ...]:
    """Extents of a kernel's block; a dot-less product has rows and columns, and its reduced axis is one channel."""
    names = ("ROWS", "COLUMNS", "BK") if "ROWS" in constants else ("BM", "BN", "BK")
    extents = tuple(constants[name] for name in names if name in constants)
    return tuple(sum(extent) if isinstance(extent, tuple) else extent for extent in extents)


def _read_cubin(kernel: Any) -> tuple[int, int, bool]:
    tensor_cores = bool(re.search(r"\b(mma\.sync|wgmma|tcgen05\.mma)", kernel.asm["ptx"]))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = sass.tool("cuobjdump", "-res-usage", file.name)
        registers, local, stack = (int(re.search(rf"\b{field}:(\d+)", usage)[1]) for field in ("REG", "LOCAL", "STACK"))
        spills = local + stack  # all there is to keep in memory, as the kernels have no arrays and call nothing
        if spills and not re.search(r"\b(STL|LDL)\b", sass.tool("nvdisasm", "-c", file.name)):
            spills = 0  # room that was set aside and is not used
    return registers, spills, tensor_cores


def _read_amdgcn(kernel: Any) -> tuple[int, int, bool]:
    text = kernel.asm["amdgcn"]
    registers, spills = (
        int(re.search(rf"\.{field}:\s+(\d+)", text)[1]) for field in ("vgpr_count", "vgpr_spill_count")
    )
    return registers, spills, "v_mfma" in text
