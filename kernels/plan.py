"""Launchers in two parts: a plan, which follows from shapes and is remembered, and a run, which allocates and launches.

    plan = _plan(x, weight, ...)                          # made for these shapes, strides and dtypes, or remembered
    y = plan.y()                                          # allocate
    plan.launch(*plan.dense(x, weight), y)                # launch: the same kernel, other addresses

A `Launch` goes through the one door, `backend.launch`, until Triton has compiled its kernel. From then on it calls what
Triton's `kernel[grid](...)` would call in the end, without binding, specialising and looking up its arguments anew.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor

from kernels import backend
from kernels.shape import is_channels_last, to_channels_last

CACHE_SIZE = 2**13  # plans, of all launchers together
ALIGNMENT = 16  # bytes: Triton compiles for pointers that this divides, and anew for others

Plan = TypeVar("Plan")
Buffer = Callable[[], Tensor]

_plans: dict[tuple[object, ...], Any] = {}
_reasons: tuple[object, ...] = (None,)  # another tuple after each change; the empty one would be the same
_changing = threading.Lock()

if backend.AVAILABLE:
    from triton import knobs
    from triton.runtime import driver


def planned(make: Callable[..., Plan]) -> Callable[..., Plan]:
    """Remember the plan that `make` returns, by the shapes, strides, dtypes and device of its tensors.

    Its other arguments must be hashable, and of one type each: 1 and True are the same key.
    """

    @wraps(make)
    def plan(*args: Any) -> Plan:
        place = (
            make,
            _reasons,
            *[(arg.shape, arg.stride(), arg.dtype, arg.device) if isinstance(arg, Tensor) else arg for arg in args],
        )
        found = _plans.get(place)
        if found is None:
            found = make(*args)
            if len(_plans) >= CACHE_SIZE:
                _plans.clear()
            if _reasons is place[1]:  # else another thread has changed them while the plan was made
                _plans[place] = found
        return found

    return plan


@contextmanager
def apart(reason: object) -> Iterator[None]:
    """Keep plans inside a `with` block apart from all others but those with an equal `reason`.

    For what decides about launches beside their arguments: a forced block, another target, another door.
    """
    global _reasons
    with _changing:
        _reasons = (*_reasons, reason)
    try:
        yield
    finally:
        with _changing:  # which other threads may have changed meanwhile
            last = len(_reasons) - 1 - _reasons[::-1].index(reason)
            _reasons = (*_reasons[:last], *_reasons[last + 1 :])


def reasons() -> tuple[object, ...]:
    """Return the reasons of the enclosing `apart` blocks."""
    return _reasons


def buffer(
    shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None, layout: torch.memory_format | None = None
) -> Buffer:
    """Return a function that allocates a tensor [N, C, *grid], or of fewer axes, whose memory is channels-last.

    It has the device of `like`, and its dtype unless another is given. Its strides are those of `layout` where the two
    memories are one: of one channel, or one position. It is not a view: torch refuses to change in place a view that an
    operator returns.
    """
    strides, step = [0] * len(shape), 1
    axes = (*(1,) * (len(shape) > 1), *range(len(shape) - 1, 1, -1), 0)
    if layout == torch.contiguous_format and (prod(shape[1:2]) == 1 or prod(shape[2:]) == 1):
        axes = tuple(reversed(range(len(shape))))
    for axis in axes:
        strides[axis] = step
        step *= max(1, shape[axis])
    return partial(torch.empty_strided, tuple(shape), tuple(strides), dtype=dtype or like.dtype, device=like.device)


def no_buffer() -> None:
    """Allocate nothing: in the place of a buffer that a plan does not need."""


def is_aligned(x: Tensor) -> bool:
    """True if Triton takes the address of x as divisible by 16, and TMA can read from there."""
    return x.data_ptr() % ALIGNMENT == 0


class Dense:
    """Copies of tensors where a kernel could not read them: where their memory is not channels-last and dense."""

    def __init__(self, *tensors: Tensor | None) -> None:
        self._copied = tuple(t is not None and not is_channels_last(t) for t in tensors)
        self._any = any(self._copied)

    def __call__(self, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        if not self._any:
            return tensors
        return tuple(to_channels_last(t) if copied else t for t, copied in zip(tensors, self._copied, strict=True))


class Launch:
    """A launch of which only the tensors change, and floats among them.

    Args:
        kernel, grid: what is launched, and its programs on up to three axes.
        arguments: what the kernel takes after its tensors. The first may be a function that makes it from the first
            tensor, as of the descriptor that TMA reads it by.
        constants: constexpr parameters and Triton's options, by name.
    """

    def __init__(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: object) -> None:
        self.kernel, self.grid, self.constants = kernel, grid, constants
        self._describe = arguments[0] if callable(arguments[0]) else None
        self._arguments = arguments if self._describe is None else arguments[1:]
        self._call: Callable[..., None] | None = None

    def __call__(self, *tensors: Tensor | float | None) -> None:
        if self._call is None or _is_watched(self.kernel) or self._current_device() != self._device:
            return self._by_triton(tensors)
        addresses: list[Any] = []
        bits = 0
        for tensor in tensors:
            if tensor is None or type(tensor) is float:
                addresses.append(tensor)
                continue
            address = tensor.data_ptr()
            bits |= address
            addresses.append(address)
        if bits % ALIGNMENT:
            return self._by_triton(tensors)
        backend.count_launch()
        if self._describe is not None:
            addresses.append(self._describe(tensors[0]))
        self._call(self._current_stream(self._device), *addresses, *self._rest)

    def _by_triton(self, tensors: tuple[Any, ...]) -> None:
        """Launch as any kernel is, and remember what Triton compiled for aligned tensors while nobody watches."""
        described = () if self._describe is None else (self._describe(tensors[0]),)
        arguments = (*tensors, *described, *self._arguments)
        compiled = backend.launch(self.kernel, self.grid, *arguments, **self.constants)
        if (
            compiled is None
            or _is_watched(self.kernel)
            or not all(is_aligned(t) for t in tensors if isinstance(t, Tensor))
        ):
            return
        names = self.kernel.arg_names[len(arguments) :]
        self._rest = *self._arguments, *(self.constants[name] for name in names)
        self._current_device, self._current_stream = driver.active.get_current_device, driver.active.get_current_stream
        index = tensors[0].get_device()
        self._device = index if index >= 0 else self._current_device()
        self._compiled = compiled  # whose code is unloaded from the GPU when it goes
        self._call = _direct(compiled, self.grid)  # the last, as another thread may be here


def _direct(compiled: Any, grid: tuple[int, ...]) -> Callable[..., None]:
    """Return a call of a compiled kernel by its stream, then its arguments: Triton's own launcher, without hooks."""
    run, first = compiled.run, (*grid, 1, 1)[:3]
    rest = compiled.function, compiled.packed_metadata, None, None, None  # no metadata, as no hook would read it
    return lambda stream, *arguments: run(*first, stream, *rest, *arguments)


def _is_watched(kernel: Any) -> bool:
    """True if Triton would call a hook at a launch, or compile a kernel anew that it has compiled already."""
    if kernel.pre_run_hooks:
        return True
    runtime = knobs.runtime
    for hook in (runtime.launch_enter_hook, runtime.launch_exit_hook):
        if getattr(hook, "calls", hook):  # a chain of hooks, or what somebody has put in its place
            return True
    changes = runtime.debug or getattr(runtime, "add_stages_inspection_hook", None)
    return bool(changes or getattr(knobs.compilation, "instrumentation_mode", ""))
