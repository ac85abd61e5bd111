"""A call of every operator, as the package makes it and as a user of torch.ops.convnets does."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels import ops
from kernels.checks import make_window
from kernels.shape import Window

TAP, HALVING = make_window("test", (3, 3), 1, 1, 1), make_window("test", (2, 2), 2, 0, 1)


class Call(NamedTuple):
    """A call of an operator: its tensors, None or not, and the arguments after them.

    Args:
        differentiable: how many tensors, from the first on, have gradients.
    """

    name: str
    tensors: tuple[Tensor | None, ...]
    rest: tuple[Any, ...]
    differentiable: int

    def by_operator(self, *tensors: Tensor | None) -> Any:
        return getattr(ops, self.name)(*(tensors or self.tensors), *self.rest)

    def by_dispatcher(self, *tensors: Tensor | None) -> Any:
        """As any user of torch.ops.convnets: a schema knows no Window."""
        rest = (list(r.flat) if isinstance(r, Window) else r for r in self.rest)
        return getattr(torch.ops.convnets, self.name)(*(tensors or self.tensors), *rest)

    def with_leaves(self, device: str) -> tuple[list[Tensor], list[Tensor | None]]:
        """Return fresh leaves that require a gradient, and all tensors with these in their places."""
        tensors = [None if t is None else t.detach().clone().to(device) for t in self.tensors]
        leaves = [t.requires_grad_() for t in tensors[: self.differentiable] if t is not None]
        return leaves, tensors


def calls() -> Iterator[Call]:
    """Yield a call of every operator."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    x, weight, bias, y, dy = draw(2, 4, 4, 4), draw(6, 4, 3, 3), draw(6), draw(2, 6, 4, 4), draw(2, 6, 4, 4)
    scale, shift, mean, var = draw(4), draw(4), draw(4), draw(4).abs()
    size, half = [4, 4], [2, 2]
    taps = torch.randint(0, 4, (2, 6, 2, 2), generator=generator, dtype=torch.uint8)
    yield Call("convolution", (x, weight, bias, y), (TAP, True), 4)
    yield Call("convolution_max", (x, weight, bias), (TAP, True, HALVING, half, 1), 3)
    yield Call("convolution_transpose", (dy, weight, draw(4), y), (TAP, size, False), 3)
    yield Call("convolution_weight_gradient", (x, dy, y), (TAP, True), 2)
    yield Call("max_pool", (x,), (HALVING, half), 1)
    yield Call("max_pool_gradient", (draw(2, 6, 2, 2), taps), (HALVING, size), 1)
    yield Call("average_pool", (x,), (HALVING, half, 0, False), 1)
    yield Call("average_pool_gradient", (draw(2, 6, 2, 2),), (HALVING, size, 0, False), 1)
    yield Call("batch_norm", (x, scale, shift, x, None, None), (1e-5, True), 4)
    yield Call("batch_norm", (x, scale, shift, None, mean, var), (1e-5, False), 3)
    yield Call("batch_norm_in_training", (x, scale, shift, x, mean, var), (0.1, 1e-5, True), 4)
    yield Call("batch_norm_gradient", (x, x + 1, scale, x, mean, var), (1e-5, True, True, True), 3)
