"""GPU targets that the kernels can be compiled for without one: what the compiler is told, and what a block may use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A GPU architecture.

    Args:
        backend, arch, warp_size: what Triton's compiler is given.
        shared_memory: bytes of shared memory (LDS on AMD) that one block may use.
        source: where the limit is published.
    """

    backend: str
    arch: int | str
    warp_size: int
    shared_memory: int
    source: str


_CUDA = "CUDA C++ Programming Guide, table of technical specifications per compute capability"

TARGETS = {
    "sm_80": Target("cuda", 80, 32, 163 * 1024, _CUDA),
    "sm_86": Target("cuda", 86, 32, 99 * 1024, _CUDA),
    "sm_89": Target("cuda", 89, 32, 99 * 1024, _CUDA),
    "sm_90": Target("cuda", 90, 32, 227 * 1024, _CUDA),
    "sm_100": Target("cuda", 100, 32, 227 * 1024, _CUDA),
    "gfx90a": Target("hip", "gfx90a", 64, 64 * 1024, "AMD Instinct MI200 instruction set architecture guide"),
    "gfx942": Target("hip", "gfx942", 64, 64 * 1024, "AMD Instinct MI300 instruction set architecture guide"),
}
