"""Find the kernels that a computation launches, while nothing is compiled and nothing runs.

    with collecting("sm_90") as kernels:
        network(images)  # on the device "meta": tensors without memory
    print([kernel.name for kernel in kernels.values() if not kernel.is_cached])

Each launch goes the way of a real one, through Triton's binder, up to the cache: two launches are of one kernel if
Triton's cache has one place for both. So nothing here needs to know what Triton specialises on.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from triton.runtime import driver
from triton.tools.tensor_descriptor import TensorDescriptor

from experiments.precompile.cache import Located, cache_folder, has_libraries, locating
from experiments.precompile.target import builds_launchers, gpu_target
from kernels import backend, plan, tuning
from kernels.inspect import OfflineDriver
from kernels.ops.registry import launching_on_meta


@dataclass(frozen=True)
class Pointer:
    """A stand-in for a tensor, in a launch that is only compiled: what Triton looks at.

    Args:
        address: aligned as the tensor's.
        extent: bytes of its storage; for AMD it counts if they are 2 GiB.
    """

    dtype: torch.dtype
    address: int
    extent: int

    def data_ptr(self) -> int:
        return self.address

    def ptr_range(self) -> int:
        return self.extent


@dataclass(frozen=True)
class Kernel:
    """A kernel to compile, as it is launched; can be pickled.

    Args:
        key: its folder in Triton's cache.
        is_cached: True if the cache has it.
        module, name: where its function is.
        arguments, constants: of the launch.
    """

    key: str
    is_cached: bool
    module: str
    name: str
    arguments: tuple[Any, ...]
    constants: dict[str, Any]

    @property
    def function(self) -> Any:
        return getattr(importlib.import_module(self.module), self.name)


@contextmanager
def collecting(target: str, on_missing: Callable[[], object] = lambda: None) -> Iterator[dict[str, Kernel]]:
    """Launch nothing inside a `with` block; gives the kernels for `target` that would be launched, by their keys.

    Args:
        on_missing: called for each kernel that the cache lacks.

    Raises:
        ValueError: for a target that is none.
        RuntimeError: this process interprets.
    """
    if backend.INTERPRETING:
        raise RuntimeError("kernels cannot be compiled in a process that interprets them: unset TRITON_INTERPRET")
    offline, needs_libraries = OfflineDriver(gpu_target(target)), builds_launchers(target)
    found: dict[str, Kernel] = {}

    def collect(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        if 0 in grid:
            return
        constants = backend.OPTIONS | constants
        try:
            kernel.warmup(*arguments, grid=grid, **constants)
        except Located as place:
            if place.key not in found:
                is_cached = place.is_cached and (not needs_libraries or has_libraries(cache_folder() / place.key))
                where = kernel.fn.__module__, kernel.fn.__name__
                stand_ins = tuple(map(_stand_in, arguments))
                found[place.key] = Kernel(place.key, is_cached, *where, stand_ins, constants)
                if not is_cached:
                    on_missing()

    with (
        mock.patch.object(driver, "_active", offline),
        mock.patch.object(backend, "launch", collect),
        mock.patch.object(backend, "_device_uses_triton", lambda choice, device: choice != "torch"),
        mock.patch.object(tuning, "target", lambda device=None: target),
        plan.apart(object()),
        launching_on_meta(),
        locating(),
    ):
        yield found


def _stand_in(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        return Pointer(argument.dtype, argument.data_ptr() % 16, argument.untyped_storage().nbytes())
    if isinstance(argument, TensorDescriptor):
        return dataclasses.replace(argument, base=_stand_in(argument.base))
    if isinstance(argument, tuple):
        return tuple(map(_stand_in, argument))
    return argument
