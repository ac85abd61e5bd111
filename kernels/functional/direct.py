"""The short way on the torch backend: torch's own function, which checks its arguments itself."""

from __future__ import annotations

from collections.abc import Callable
from traceback import walk_tb
from typing import Any

import torch
from torch import Tensor

from kernels import backend
from kernels.checks import DTYPES, LIMIT


def as_torch(function: Callable[..., Any], tensors: tuple[Tensor | None, ...], *arguments: Any) -> Any:
    """What torch's own `function` makes of tensors and arguments, on the torch backend.

    None on the Triton backend, and where torch refuses or the tensors are not what we take: what is wrong is then for
    the checks to say, in the same words on both backends.
    """
    first = tensors[0]
    if not isinstance(first, Tensor) or backend.uses_triton(first) or not _alike(first, tensors[1:]):
        return None
    for argument in arguments:
        for value in argument if isinstance(argument, tuple | list) else (argument,):
            if type(value) is int and abs(value) >= LIMIT:  # torch's own arithmetic may overflow
                return None
    try:
        return function(*tensors, *arguments)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        if not torch.compiler.is_compiling() and _is_raised_in_between(error):
            raise
        return None  # bad arguments: the checks say what is wrong with them


def _is_raised_in_between(error: Exception) -> bool:
    """Return True if code of others raised `error` that torch has called, as a hook or a mode."""
    modules = (frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__))
    return any(module.partition(".")[0] not in ("kernels", "torch") for module in modules)


def _alike(first: Tensor, others: tuple[Tensor | None, ...]) -> bool:
    """Whether tensors are dense, of one supported dtype and on one device, so far as torch does not see to it."""
    if first.dtype not in DTYPES or first.layout != torch.strided or first.is_nested:
        return False
    for t in others:
        if t is not None and not (isinstance(t, Tensor) and t.device == first.device and t.layout == torch.strided):
            return False
    return True
