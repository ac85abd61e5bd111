"""Run a training step and an evaluation without values, by a network of which only shapes are left."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import kernels
from kernels.shape import FORMATS

# Types of the weights and of autocast, by their own names and by those that Lightning has for them.
PRECISIONS: dict[str, tuple[torch.dtype, torch.dtype | None]] = {
    "float16": (torch.float16, None), "16-true": (torch.float16, None),
    "bfloat16": (torch.bfloat16, None), "bf16-true": (torch.bfloat16, None),
    "float32": (torch.float32, None), "32-true": (torch.float32, None), "32": (torch.float32, None),
    "float64": (torch.float64, None), "64-true": (torch.float64, None), "64": (torch.float64, None),
    "16-mixed": (torch.float32, torch.float16), "16": (torch.float32, torch.float16),
    "bf16-mixed": (torch.float32, torch.bfloat16), "bf16": (torch.float32, torch.bfloat16),
}  # fmt: skip


def types_of(precision: str) -> tuple[torch.dtype, torch.dtype | None]:
    """Return the type of the weights, and that of autocast or None.

    Raises:
        ValueError: for a precision that is not known.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"the precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    return PRECISIONS[precision]


class Batch(NamedTuple):
    """Images that a network is given: [N, C, *grid], to train it or to evaluate it."""

    shape: tuple[int, ...]
    training: bool


def run_batches(network: nn.Module, batches: Iterable[Batch], precision: str) -> None:
    """Run a network forward on batches, and backward in training, on tensors whose values do not count.

    The network and the state of random numbers stay as they are. Any loss has the same gradients of the network's
    outputs, as far as kernels go.

    Raises:
        ValueError: for a precision that is not known.
    """
    dtype, autocast = types_of(precision)
    with torch.random.fork_rng(devices=[]), kernels.use_backend("triton"):
        model = without_values(network, dtype)
        for shape, training in batches:
            model.train(training)
            images = torch.empty(shape, dtype=dtype, device="meta")
            with torch.set_grad_enabled(training), autocasting(autocast):
                outputs = model(images)
            trained = [each for each in tree_leaves(outputs) if isinstance(each, Tensor) and each.requires_grad]
            if trained:
                torch.autograd.backward(trained, [torch.empty_like(each) for each in trained])


@contextmanager
def autocasting(dtype: torch.dtype | None) -> Iterator[None]:
    """Have layers cast as torch.autocast on a GPU has them, which torch itself turns off where there is none."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", dtype is not None)
    torch.set_autocast_dtype("cuda", dtype or before[1])
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


def without_values(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of a network whose tensors have no values, its weights laid out as for training."""
    memo: dict[int, Any] = {}
    for tensor in (*network.parameters(), *network.buffers()):
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        layout = FORMATS.get(tensor.dim(), torch.contiguous_format)
        empty = torch.empty_like(tensor, dtype=kind, device="meta", requires_grad=False, memory_format=layout)
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(network, memo)
