"""Whether the trace of a model stands for its code: torch.fx runs that code once, with stand-ins for the tensors.

What the code does besides calling layers and functions is done once and never again, or not at all: contexts, changes
of attributes, random numbers, questions of type. So every function that a trace runs is read, and a model whose code
does any of these is refused, though its trace might be right.
"""

from __future__ import annotations

import ast
import gc
import inspect
import random
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

import torch
from torch import fx, nn

# What reads or changes more than tensors.
NAMES = {
    "OrderedDict", "append", "apply", "buffers", "checkpoint", "children", "data", "detach_", "eval", "extend",
    "getattr",
    "hasattr", "is_autocast_enabled", "is_grad_enabled", "isinstance", "load_state_dict", "modules", "named_buffers",
    "named_parameters", "np", "numpy", "parameters", "pop", "random", "register_hook", "requires_grad",
    "requires_grad_", "set_grad_enabled", "setattr", "state_dict", "train", "type", "update",
}  # fmt: skip
STATEMENTS = {
    ast.With: "a context", ast.Try: "try", ast.Global: "a global", ast.Nonlocal: "a name of another function",
    ast.Delete: "del", ast.Assert: "assert", ast.NamedExpr: "an assignment in an expression", ast.Await: "await",
    ast.Yield: "yield",
}  # fmt: skip
KNOWN = {"torch", "kernels", *sys.stdlib_module_names} - {"__main__"}  # packages whose functions need not be read


class Tracer(fx.Tracer):
    """Traces a model whose layers of `leaves` stay whole; raises ValueError at what a graph would not do."""

    proxy_buffer_attributes = True

    def __init__(self, leaves: tuple[type, ...]) -> None:
        super().__init__()
        self.leaves = leaves

    def trace(self, root: nn.Module) -> fx.Graph:
        self.parameters = {name for name, _ in root.named_parameters(remove_duplicate=False)}
        for name, part in root.named_modules():
            self._check_part(root, name, part)
        dice = random.getstate(), torch.get_rng_state()
        with functions_called() as called:
            graph = super().trace(root)
        if random.getstate() != dice[0] or not torch.equal(torch.get_rng_state(), dice[1]):
            raise ValueError("its code draws random numbers")
        for code in called:
            check_code(code)
        return graph

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in self.leaves or super().is_leaf_module(m, module_qualified_name)

    def _check_part(self, root: nn.Module, name: str, part: nn.Module) -> None:
        if "forward" in part.__dict__:
            raise ValueError(f"{name or 'it'} has a forward of its own, which is not its class's")
        if part is not root and self.is_leaf_module(part, name):
            return
        if hooked(part):
            raise ValueError(f"{f'its part {name!r}' if name else 'it'} has hooks, which a graph would not run")
        if type(part).train is not nn.Module.train:
            raise ValueError(f"{name or 'it'} decides by itself what train() does")
        if part.training != root.training:
            raise ValueError(f"its part {name!r} is in another mode, training or evaluation, than the whole")

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, *args, **kwargs)
        if kind == "placeholder" and (node.args or node.target.startswith("*")):
            raise ValueError(f"its argument {node.target!r} has a default or is a list of arguments")
        if kind == "get_attr" and node.target not in self.parameters:
            raise ValueError(f"its code uses {node.target!r}, a tensor that is no parameter")
        return node


def hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


@contextmanager
def functions_called() -> Iterator[dict[CodeType, None]]:
    """The code of the functions of other packages than KNOWN that are called inside a `with` block.

    No garbage is collected there: what anybody has called at that is no part of the trace.
    """
    called: dict[CodeType, None] = {}  # in order

    def note(frame: FrameType, event: str, _: Any) -> None:
        module = frame.f_globals.get("__name__", "")
        if event == "call" and module.split(".")[0] not in KNOWN and not module.startswith("namedtuple_"):
            called[frame.f_code] = None

    previous: Callable[..., Any] | None = sys.getprofile()
    collects = gc.isenabled()
    gc.disable()
    sys.setprofile(note)
    try:
        yield called
    finally:
        sys.setprofile(previous)
        if collects:
            gc.enable()


def check_code(code: CodeType) -> None:
    """Raise ValueError where the text of a function does more than a graph can hold."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, SyntaxError, TypeError):
        raise ValueError(f"the code of {code.co_name!r} in {code.co_filename} cannot be read") from None
    where = f"its function {code.co_name!r}"
    made_here = {}  # by each name: whether it only ever is the result of a layer
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    made_here[target.id] = made_here.get(target.id, True) and _is_call_of_layer(node.value)
    for node in ast.walk(tree):
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None
        if name in NAMES:
            raise ValueError(f"{where} uses {name!r}")
        if type(node) in STATEMENTS:
            raise ValueError(f"{where} has {STATEMENTS[type(node)]}")
        if isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
            raise ValueError(f"{where} changes an attribute or a part of something")
        if isinstance(node, ast.AugAssign) and not made_here.get(getattr(node.target, "id", None)):
            raise ValueError(f"{where} changes in place what may have another name")


def _is_call_of_layer(node: ast.expr) -> bool:
    """Whether `node` is self.layer(...)."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    return isinstance(node.func.value, ast.Name) and node.func.value.id == "self"
