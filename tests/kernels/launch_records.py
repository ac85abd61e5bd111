"""Records what reaches the launchers of Triton's compiled kernels, on its real launch path with a stub driver."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from triton.backends.nvidia.compiler import CUDABackend
from triton.backends.nvidia.driver import CudaLauncher
from triton.compiler.compiler import ASTSource


class Record(NamedTuple):
    """A launch: of which compiled kernel, over what, where, by what, whether hooks are called, and its arguments."""

    launcher: int
    grid: tuple[int, ...]
    stream: int
    function: int
    packed: tuple[object, ...]
    hooks: list[bool]
    arguments: tuple[object, ...]

    @property
    def box(self) -> Box | None:
        """The argument that is a descriptor for TMA, if there is one."""
        return next((argument for argument in self.arguments if isinstance(argument, Box)), None)


class Box(NamedTuple):
    """A descriptor for TMA: where it reads, and everything else that it says."""

    address: int
    dtype: torch.dtype
    fields: list[tuple[str, str]]


@contextmanager
def recorded() -> Iterator[list[Record]]:
    """Give the list that fills with the launches inside a `with` block."""
    records: list[Record] = []
    run = CudaLauncher.__call__

    def record(launcher: Any, *arguments: Any) -> None:
        x, y, z, stream, function, packed, _metadata, enter, leave, *kernel_arguments = arguments
        hooks = [bool(getattr(hook, "calls", hook)) for hook in (enter, leave)]
        described = tuple(map(describe, kernel_arguments))
        records.append(Record(id(launcher), (x, y, z), stream, function, packed, hooks, described))
        run(launcher, *arguments)

    with mock.patch.object(CudaLauncher, "__call__", record):
        yield records


def describe(argument: Any) -> object:
    """Return what of an argument reaches a kernel: addresses, and values with their types."""
    if isinstance(argument, Tensor):
        return describe(argument.data_ptr())
    if hasattr(argument, "block_shape"):
        fields = sorted((name, str(value)) for name, value in vars(argument).items() if name != "base")
        return Box(argument.base.data_ptr(), argument.base.dtype, fields)
    if isinstance(argument, tuple):
        return type(argument), tuple(map(describe, argument))
    return type(argument), argument


@contextmanager
def instantly() -> Iterator[None]:
    """Compile nothing inside a `with` block but kernels that load by TMA: the stub runs no code anyway.

    What is compiled anew, and when, stays Triton's own decision.
    """
    make_ir, add_stages = ASTSource.make_ir, CUDABackend.add_stages
    nothing = "no code"
    sizes = dict.fromkeys(("shared", "tmem_size", "global_scratch_size", "profile_scratch_size"), 0)
    facts = sizes | {"global_scratch_align": 1, "profile_scratch_align": 1, "cluster_dims": (1, 1, 1), "name": "kernel"}

    def make_no_ir(source: Any, *arguments: Any) -> object:
        by_tma = any("tensordesc" in str(kind) for kind in source.signature.values())
        return make_ir(source, *arguments) if by_tma else nothing

    def add_no_stages(self: Any, stages: dict[str, Callable[..., object]], *arguments: Any) -> None:
        add_stages(self, stages, *arguments)

        def or_nothing(ext: str, stage: Callable[..., object], source: object, metadata: dict[str, object]) -> object:
            if source is not nothing:
                return stage(source, metadata)
            metadata.update(facts)
            return b"" if ext == "cubin" else nothing

        stages.update({ext: partial(or_nothing, ext, stage) for ext, stage in stages.items()})

    patches = (
        mock.patch.object(ASTSource, "make_ir", make_no_ir),
        mock.patch.object(CUDABackend, "add_stages", add_no_stages),
    )
    with patches[0], patches[1]:
        yield
