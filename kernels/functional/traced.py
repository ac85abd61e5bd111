"""Sizes in a torch.jit.trace, which turns the ints that a launcher takes into constants."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor


def hold_size(op: str, x: Tensor, axes: int) -> Tensor:
    """Return x. A trace in which this is recorded refuses inputs of other extents than x, on the last `axes` axes."""
    if axes == 0 or not torch.jit.is_tracing():
        return x
    return _scripted()(x, op, [int(extent) for extent in x.shape[-axes:]])


@functools.cache
def _scripted() -> Callable[[Tensor, str, list[int]], Tensor]:
    return torch.jit.script(_hold_size)


def _hold_size(x: Tensor, op: str, size: list[int]) -> Tensor:
    found = x.shape[-len(size) :]
    if found != size:
        raise ValueError(f"{op}: traced for extents {size}, got {found}: trace again, or use torch.compile or export")
    return x
