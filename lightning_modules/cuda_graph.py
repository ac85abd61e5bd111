"""CUDA graphs: what a function launches on a GPU, captured once and replayed as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

OPTION = "--cuda_graph true"
WARM_UP = 3  # runs before a capture, in which kernels are compiled and chosen

T = TypeVar("T")
Results = Sequence[Tensor | None]


class Graph:
    """A CUDA graph of what a function launches, captured when it is constructed.

    Args:
        function: what to capture. It has run before, and returns tensors that each replay writes again.
        before: the graph that is always replayed before this one, and shares its memory.
    """

    device_type = "cuda"

    def __init__(self, function: Callable[[], Results], before: Graph | None = None) -> None:
        self._graph = torch.cuda.CUDAGraph()
        pool = before._graph.pool() if before else None
        # Threads that load data may call CUDA at the same time.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self.results = function()

    def replay(self) -> None:
        self._graph.replay()

    @staticmethod
    def warm_up(function: Callable[[], object]) -> None:
        """Run a function a few times on a stream of its own, as a capture does."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                function()
        torch.cuda.current_stream().wait_stream(stream)


def capture(graph: type[Graph], function: Callable[[], Results], before: Graph | None = None) -> Graph:
    """Return a graph of a function.

    Raises:
        ValueError: it cannot be captured.
    """
    try:
        return graph(function, before)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        # Ending a capture that has failed is an error too, which says less.
        reason, *_ = str(error.__context__ or error).splitlines() or [""]
        raise ValueError(f"{OPTION} needs a training step that never waits for the GPU: {reason}") from error


def difference(expected: Mapping[T, Tensor | None], actual: Mapping[T, Tensor | None]) -> T | None:
    """Return the first name whose tensors differ in a bit, or None."""
    return next((name for name, value in expected.items() if not have_same_bits(value, actual[name])), None)


def have_same_bits(one: Tensor | None, other: Tensor | None) -> bool:
    """Return True if two tensors are equal bit by bit, NaN included, or both None."""
    if one is None or other is None:
        return one is other
    bits = (each.detach().contiguous().flatten().view(torch.uint8) for each in (one, other))
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(*bits)


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [each.detach().clone() for each in tensors]


@torch.no_grad()
def restore(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Write values back into the memory of tensors."""
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
