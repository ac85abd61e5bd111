"""GPU targets that the kernels can be compiled for without one: what the compiler is told, and what the chip offers.

Rates are those of one representative GPU of the architecture, as published; `sources` says where. What is not published
is taken as on the nearest chip that is, and said so there.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """What one GPU does in a clock cycle, of one streaming multiprocessor (SM) unless named.

    Args:
        device: the GPU that the numbers are of.
        processors: SMs.
        clock: Hz at which the peak is published.
        products: multiply-adds of the tensor cores by type of the factors: "16" or "8" bits, "tf32", "fp64"; "mma" is
            the share of them that the instructions for one warp reach, where those for a group of warps reach all.
        fp32, imad, integer, fp64, special: results (threads' lanes) of float32 and of integer multiply-adds, of other
            integer and logic instructions, of float64, and of conversions and special functions.
        issue, memory: instructions of a warp that are issued, and that go to load/store units.
        shared_bytes: of shared memory.
        l2_size, l2_bytes: of the L2 cache, and what all SMs together read from it.
        dram_bytes: of the GPU's memory, each second.
        latency: cycles until a load from the GPU's memory arrives, when nothing else is loaded.
        registers, warps, blocks, shared_memory: how much is there for blocks that share an SM; a block also takes
            `shared_reserve` bytes.
        tensor_memory: columns of the tensor memory (tcgen05) that they share, 0 without one.
    """

    device: str
    processors: int
    clock: float
    products: dict[str, float]
    fp32: int
    fp64: float
    l2_size: int
    l2_bytes: float
    dram_bytes: float
    latency: int
    warps: int
    blocks: int
    shared_memory: int
    sources: tuple[str, ...]
    imad: int = 64
    integer: int = 64
    special: int = 16
    issue: int = 4
    memory: int = 1
    shared_bytes: int = 128
    registers: int = 64 * 1024
    shared_reserve: int = 1024
    tensor_memory: int = 0

    @property
    def l2_share(self) -> float:
        """Bytes a cycle that L2 gives one SM when all ask."""
        return self.l2_bytes / self.processors

    def peak(self, kind: str) -> float:
        """Floating-point operations a second of the tensor cores on factors of this type."""
        return 2 * self.products[kind] * self.processors * self.clock


@dataclass(frozen=True)
class Target:
    """A GPU architecture.

    Args:
        backend, arch, warp_size: what Triton's compiler is given.
        shared_memory: bytes of shared memory (LDS on AMD) that one block may use.
        rates: of one GPU of the architecture; None where nothing is estimated (AMD).
    """

    backend: str
    arch: int | str
    warp_size: int
    shared_memory: int
    source: str
    rates: Rates | None = None


_GUIDE = "CUDA C++ Programming Guide: technical specifications and arithmetic throughput per compute capability"
_LUO = "Luo et al., Dissecting the NVIDIA Hopper Architecture, arXiv 2501.12084 and 2402.13499: "

_A100 = Rates(
    "A100-SXM4-80GB", processors=108, clock=1.41e9,
    products={"16": 1024, "8": 2048, "tf32": 512, "fp64": 64, "mma": 1.0},
    fp32=64, fp64=32, l2_size=40 << 20, l2_bytes=5120, dram_bytes=2039e9, latency=466, warps=64, blocks=32,
    shared_memory=164 * 1024,
    sources=(
        _GUIDE,
        "NVIDIA A100 Tensor Core GPU Architecture whitepaper, table 4 and p. 35: peaks, clock, L2 5120 B/clk",
        _LUO + "latency of an A100 PCIe",
    ),
)  # fmt: skip
_A10 = Rates(
    "A10", processors=72, clock=1.695e9, products={"16": 512, "8": 1024, "tf32": 256, "fp64": 1, "mma": 1.0},
    fp32=128, fp64=2, l2_size=6 << 20, l2_bytes=2048, dram_bytes=600e9, latency=466, warps=48, blocks=16,
    shared_memory=100 * 1024,
    sources=(_GUIDE, "NVIDIA A10 datasheet: peaks, bandwidth", "L2 (32 B/clk for each of 64 slices), latency: assumed"),
)  # fmt: skip
_L40S = Rates(
    "L40S", processors=142, clock=2.52e9, products={"16": 512, "8": 1024, "tf32": 256, "fp64": 1, "mma": 1.0},
    fp32=128, fp64=2, l2_size=96 << 20, l2_bytes=1946, dram_bytes=864e9, latency=571, warps=48, blocks=24,
    shared_memory=100 * 1024,
    sources=(
        _GUIDE,
        "NVIDIA L40S datasheet: peaks, bandwidth",
        "github.com/smallscientist1/cuda_microbenchmark: L2 of an RTX 4090",
        _LUO + "latency of an RTX 4090",
    ),
)  # fmt: skip
_H100 = Rates(
    "H100-SXM5", processors=132, clock=1.83e9,
    products={"16": 2048, "8": 4096, "tf32": 1024, "fp64": 128, "mma": 0.629},
    fp32=128, fp64=64, l2_size=50 << 20, l2_bytes=5120, dram_bytes=3352e9, latency=479, warps=64, blocks=32,
    shared_memory=228 * 1024,
    sources=(
        _GUIDE,
        "NVIDIA H100 Tensor Core GPU Architecture whitepaper, table 3: peaks, clock",
        _LUO + "latency, mma at 62.9 % of wgmma, L2 of an H800 PCIe 4472 B/clk, 39 for each SM, as for all 132 here",
    ),
)  # fmt: skip
_B200 = Rates(
    "B200", processors=148, clock=1.85e9, products={"16": 4096, "8": 8192, "tf32": 2048, "fp64": 64, "mma": 0.3},
    fp32=128, fp64=64, l2_size=126 << 20, l2_bytes=13300, dram_bytes=8000e9, latency=833, warps=64, blocks=32,
    shared_memory=228 * 1024,
    tensor_memory=512,
    sources=(
        _GUIDE,
        "NVIDIA HGX B200 and DGX B200 datasheets: peaks, bandwidth",
        "chipsandcheese.com, Nvidia's B200: L2 21 TB/s; latency: microbenchmarks of a B200",
        "clock: that at which the published peak is 4096 multiply-adds a cycle; share of mma: assumed",
    ),
)  # fmt: skip

TARGETS = {
    "sm_80": Target("cuda", 80, 32, 163 * 1024, _GUIDE, _A100),
    "sm_86": Target("cuda", 86, 32, 99 * 1024, _GUIDE, _A10),
    "sm_89": Target("cuda", 89, 32, 99 * 1024, _GUIDE, _L40S),
    "sm_90": Target("cuda", 90, 32, 227 * 1024, _GUIDE, _H100),
    "sm_100": Target("cuda", 100, 32, 227 * 1024, _GUIDE, _B200),
    "gfx90a": Target("hip", "gfx90a", 64, 64 * 1024, "AMD Instinct MI200 instruction set architecture guide"),
    "gfx942": Target("hip", "gfx942", 64, 64 * 1024, "AMD Instinct MI300 instruction set architecture guide"),
}
