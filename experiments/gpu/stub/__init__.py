"""Triton's own launch path for NVIDIA on a machine without a GPU: its JIT, binder, launcher and TMA encoding.

    with stubbed("sm_90") as cuda:
        conv.forward(x, weight, None, None, window, True)  # CPU tensors stand for those of a GPU
    print(cuda.stub_launches())

Kernels are compiled for real and none runs: outputs hold whatever memory held. Of use to test launches and to time what
they cost the host. It needs gcc, as Triton's launcher does, and a process that does not interpret.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch


@functools.cache
def build() -> ctypes.CDLL:
    """Compile and load the stub for this process, before Triton looks for libcuda.

    Raises:
        RuntimeError: there is no gcc, or it fails.
    """
    import triton

    folder = tempfile.mkdtemp(prefix="stub-libcuda-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = os.path.join(folder, "libcuda.so.1")
    include = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    source = Path(__file__).with_name("libcuda.c")
    command = ["gcc", "-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1", f"-I{include}", "-o", library, str(source)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise RuntimeError("the stub driver needs gcc, which is not installed") from error
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"the stub driver does not compile: {error.stderr.splitlines()[0]}") from error
    os.symlink("libcuda.so.1", os.path.join(folder, "libcuda.so"))  # which Triton 3.5 links its launchers against
    os.environ["TRITON_LIBCUDA_PATH"] = folder
    loaded = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    for name in ("stub_launches", "stub_descriptors", "stub_refused"):
        getattr(loaded, name).restype = ctypes.c_long
    return loaded


def driver_for(target: str) -> Any:
    """Return Triton's NVIDIA driver, bound to the stub, for a target as "sm_90"."""
    build()
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia import driver as nvidia

    arch = int(target.removeprefix("sm_"))

    class StubDriver(nvidia.CudaDriver):
        """The driver with one device, number 0, and one stream."""

        def __init__(self) -> None:
            self.utils = nvidia.CudaUtils()
            self.launcher_cls = nvidia.CudaLauncher
            self.get_device_capability = lambda device=0: divmod(arch, 10)
            self.get_current_stream = lambda device=0: 0
            self.get_current_device = lambda: 0
            self.set_current_device = lambda device: None

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", arch, 32)

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

    return StubDriver()


@contextmanager
def stubbed(target: str) -> Iterator[Any]:
    """Launch kernels for `target` on CPU tensors by the stub inside a `with` block; gives the stub's counters.

    Raises:
        RuntimeError: this process interprets, or the stub cannot be built.
    """
    from triton.runtime import driver as drivers

    from kernels import backend, plan, tuning

    if backend.INTERPRETING:
        raise RuntimeError("a process that interprets launches no compiled kernel: unset TRITON_INTERPRET")
    with (
        mock.patch.object(drivers, "_active", driver_for(target)),
        mock.patch.object(backend, "_device_uses_triton", lambda choice, device: choice != "torch"),
        mock.patch.object(tuning, "target", lambda device=None: target),
        plan.apart(object()),
    ):
        yield build()
