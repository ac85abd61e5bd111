"""Compile what the launchers would launch, for a GPU that need not be there, and read the binary's resources.

    with compiling_for("sm_90") as kernels:
        conv.forward(x, weight, None, None, window, relu=True)  # tensors on the "meta" device: no memory, nothing runs
    print(kernels[0].registers)

Not in the interpreter: a process with TRITON_INTERPRET=1 holds no kernels that can be compiled.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from kernels import backend, tuning
from kernels.targets import TARGETS, Target


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
        wide: whether anything is computed in 64-bit integers, as addresses in tensors of 2**30 elements are.
        tensor_cores: whether the code holds matrix instructions (MMA, WGMMA, tcgen05; MFMA on AMD).
    """

    name: str
    block: tuple[int, ...]
    warps: int
    registers: int
    spills: int
    shared_memory: int
    tensor_cores: bool
    wide: bool


class _OfflineDriver(DriverBase):
    """Tells Triton's compiler that the target is the device in use; can launch nothing."""

    def __init__(self, name: str) -> None:
        target = TARGETS[name]
        self._target = GPUTarget(target.backend, target.arch, target.warp_size)
        self._device = list(TARGETS).index(name)  # Triton keeps what it compiled by device

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

    def compile_only(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
        compiled.append(_read(kernel.warmup(*args, grid=grid, **constants), TARGETS[target], constants))

    with (
        mock.patch.object(triton.runtime.driver, "_active", _OfflineDriver(target)),
        mock.patch.object(backend, "launch", compile_only),
        mock.patch.object(tuning, "target", lambda: target),
    ):
        yield compiled


def _read(kernel: Any, target: Target, constants: dict[str, Any]) -> Compiled:
    read = _read_cubin if target.backend == "cuda" else _read_amdgcn
    registers, spills, tensor_cores = read(kernel)
    block = tuple(constants[name] for name in ("BM", "BN", "BK") if name in constants)
    wide = "i64" in kernel.asm["ttir"]
    warps, shared = kernel.metadata.num_warps, kernel.metadata.shared
    return Compiled(kernel.name, block, warps, registers, spills, shared, tensor_cores, wide)


def _read_cubin(kernel: Any) -> tuple[int, int, bool]:
    tensor_cores = bool(re.search(r"\b(mma\.sync|wgmma|tcgen05\.mma)", kernel.asm["ptx"]))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _run_tool("cuobjdump", "-res-usage", file.name)
        registers, local, stack = (int(re.search(rf"\b{field}:(\d+)", usage)[1]) for field in ("REG", "LOCAL", "STACK"))
        spills = local + stack  # all there is to keep in memory, as the kernels have no arrays and call nothing
        if spills and not re.search(r"\b(STL|LDL)\b", _run_tool("nvdisasm", "-c", file.name)):
            spills = 0  # room that was set aside and is not used
    return registers, spills, tensor_cores


def _run_tool(name: str, *arguments: str) -> str:
    """Output of one of the binary utilities that Triton brings."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def _read_amdgcn(kernel: Any) -> tuple[int, int, bool]:
    text = kernel.asm["amdgcn"]
    registers, spills = (
        int(re.search(rf"\.{field}:\s+(\d+)", text)[1]) for field in ("vgpr_count", "vgpr_spill_count")
    )
    return registers, spills, "v_mfma" in text
