"""Registration of operators and of their gradients, and the short way to them.

As torch.library.custom_op and its register_autograd do it, but for operators without defaults, keywords and lists of
tensors: what those need at every call is most of what a call costs before its kernel runs.

torch's dispatcher takes several times as long as a launch: it boxes each argument twice. So where nobody but autograd
would see the call (no mode, transform, tracer, profiler; ordinary tensors), an operator is called past it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.nn import Parameter

from kernels.shape import Window

LIBRARY = torch.library.Library("convnets", "DEF")

_launches_on_meta = False
_ordinary_keys: set[int] = set()
_modes = torch._C._dispatch_tls_local_include_set
_keys = torch._C._dispatch_keys
_is_excluded = torch._C._dispatch_tls_is_dispatch_key_excluded
_AUTOGRAD = torch._C.DispatchKey.AutogradFunctionality


class Operator:
    """convnets::<name>, with the signature of a function; a Window stands for its integers.

    Attributes:
        op: the operator that torch knows.
    """

    def __init__(self, function: Callable[..., Any], mutates: tuple[str, ...] = ()) -> None:
        name = function.__name__
        LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=mutates))
        LIBRARY.impl(name, torch.compiler.disable(function), "CompositeExplicitAutograd")
        self.op: OpOverload = getattr(torch.ops.convnets, name).default
        self._function = function
        self._gradient: Callable[..., Any] | None = None
        functools.update_wrapper(self, function)

    def __call__(self, *inputs: Any) -> Any:
        if torch.compiler.is_compiling() or not _only_autograd_sees(inputs):
            return self.op(*(i.flat if isinstance(i, Window) else i for i in inputs))
        return (self._gradient if _is_recorded(inputs) else self._function)(*inputs)

    def fake(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A decorator: the function that gives the operator's outputs without their values."""
        torch.library.register_fake(self.op.name(), function, lib=LIBRARY)
        return function

    def differentiate(self, backward: Callable[..., Any], context: Callable[..., None]) -> None:
        """Register the gradient: `context(ctx, inputs, output)` notes what `backward(ctx, *gradients)` needs.

        The gradient of an output that nobody used is None; that of one output at least is not.
        """

        def below_autograd(*inputs: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                return self.op(*inputs)

        by_dispatcher = _with_gradient(self.op.name(), below_autograd, backward, context)
        self._gradient = _with_gradient(self.op.name(), self._function, backward, context)

        def dispatch(*inputs: Any) -> Any:
            return (by_dispatcher if _is_recorded(inputs) else below_autograd)(*inputs)

        LIBRARY.impl(self.op.name().split("::")[1], dispatch, "Autograd")


def operator(function: Callable[..., Any]) -> Operator:
    """A decorator: the operator with the signature of `function`, which changes none of its inputs."""
    return Operator(function)


@contextmanager
def launching_on_meta() -> Iterator[None]:
    """Run the launchers for meta tensors, too, inside a `with` block: to see what would be launched.

    Outside they have no launches, only shapes. What the launchers then do with a tensor without memory is for
    `backend.launch`, which must have been replaced.
    """
    global _launches_on_meta
    previous, _launches_on_meta = _launches_on_meta, True
    try:
        yield
    finally:
        _launches_on_meta = previous


def _with_gradient(
    name: str, run: Callable[..., Any], backward: Callable[..., Any], context: Callable[..., None]
) -> Callable[..., Any]:
    def forward(ctx: Any, *inputs: Any) -> Any:
        ctx.set_materialize_grads(False)
        output = run(*inputs)
        context(ctx, inputs, output)
        return output

    def backward_where_used(ctx: Any, *gradients: Tensor | None) -> Any:
        if all(g is None for g in gradients):
            return (None,) * len(ctx.needs_input_grad)
        return backward(ctx, *gradients)

    functions = {"forward": staticmethod(forward), "backward": staticmethod(backward_where_used)}
    return type(f"{name}_gradient", (torch.autograd.Function,), functions).apply


def _is_recorded(inputs: tuple[Any, ...]) -> bool:
    """True if autograd records the call: not below it, as in the handler of a TorchDispatchMode."""
    return torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs) and not _is_excluded(_AUTOGRAD)


def _only_autograd_sees(inputs: tuple[Any, ...]) -> bool:
    """True if a call needs no dispatcher: nobody but autograd would see it, and its tensors are ordinary."""
    if _modes().raw_repr() not in _ordinary_modes() or torch._C._is_torch_function_mode_enabled():
        return False
    if torch._C._get_tracing_state() is not None or torch._C._autograd._profiler_enabled():
        return False
    if not isinstance(inputs[0], Tensor):  # but a proxy of torch.fx
        return False
    for i in inputs:
        kind = type(i)
        if kind is Tensor or kind is Parameter:
            if _keys(i).raw_repr() not in _ordinary_keys and not _is_ordinary(i):
                return False
        elif isinstance(i, Tensor):
            return False
    return True


def _is_ordinary(x: Tensor) -> bool:
    """True if x is neither wrapped nor lazily negated; remembers the dispatcher's keys of such tensors."""
    if x.is_meta:
        return _launches_on_meta
    keys = _keys_on(x.device)
    _ordinary_keys.update(keys)
    return _keys(x).raw_repr() in keys


@functools.cache
def _keys_on(device: torch.device) -> frozenset[int]:
    """Return the dispatcher's keys of ordinary tensors on a device, made in inference mode and out of it."""
    return _in_and_out_of_inference_mode(lambda: _keys(torch.empty(0, device=device)).raw_repr())


@functools.cache
def _ordinary_modes() -> frozenset[int]:
    """Return the dispatcher's thread-local keys without modes and transforms, in inference mode and out of it."""
    return _in_and_out_of_inference_mode(lambda: _modes().raw_repr())


def _in_and_out_of_inference_mode(of: Callable[[], int]) -> frozenset[int]:
    """Ask in a thread of its own, whose modes are the default ones."""
    found = set()

    def ask() -> None:
        for inference in (False, True):
            with torch.inference_mode(inference):
                found.add(of())

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return frozenset(found)
