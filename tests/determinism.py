"""Leave for PyTorch to compute nondeterministically, for comparison only: the fixture `reproducible` forbids it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kernels import use_backend


@contextmanager
def nondeterministic() -> Iterator[None]:
    """Allow nondeterministic algorithms inside a `with` block.

    On a GPU several pooling functions of PyTorch have no other backward pass, and raise an error instead.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def backend_to_compare(name: str) -> Iterator[None]:
    """Choose the backend inside a `with` block; "torch" may use nondeterministic algorithms."""
    with use_backend(name):
        if name == "torch":
            with nondeterministic():
                yield
        else:
            yield
