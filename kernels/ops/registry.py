"""Registration of operators and of their gradients.

As torch.library.custom_op and its register_autograd do it, but for operators without defaults, keywords and lists of
tensors: what those need at every call is most of what a call costs before its kernel runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

LIBRARY = torch.library.Library("convnets", "DEF")


def operator(function: Callable[..., Any]) -> OpOverload:
    """A decorator: the operator convnets::<name> with the signature of `function`, which changes none of its inputs."""
    name = function.__name__
    LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()))
    LIBRARY.impl(name, torch.compiler.disable(function), "CompositeExplicitAutograd")
    return getattr(torch.ops.convnets, name).default


def fake(*operators: OpOverload) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: the function that gives the outputs of `operators` without their values."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for op in operators:
            torch.library.register_fake(op.name(), function, lib=LIBRARY)
        return function

    return register


def differentiate(op: OpOverload, backward: Callable[..., Any], context: Callable[..., None]) -> None:
    """Register the gradient of an operator: `context(ctx, inputs, output)` notes what `backward(ctx, ...)` needs."""

    def run(*inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*inputs)

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = run(*inputs)
        context(ctx, inputs, output)
        return output

    functions = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    gradient = type(f"{op.name()}_gradient", (torch.autograd.Function,), functions)

    def dispatch(*inputs: Any) -> Any:
        recorded = torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs)
        return gradient.apply(*inputs) if recorded else run(*inputs)

    LIBRARY.impl(op.name().split("::")[1], dispatch, "Autograd")
