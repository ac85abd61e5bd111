"""Graphs of models by torch.fx, which runs a model's code once, with stand-ins for the tensors.

A graph does not repeat what the code does besides calling layers and functions: contexts, changes of attributes, random
numbers, questions that a stand-in cannot answer. So every function that a trace runs is read, as far as its lines were
executed. A part of the model whose code does any of these stays whole in the graph, and runs its own code.
"""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import operator
import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.hazards import hazards_in, lines_of_assertions, names_compared_by_identity

KNOWN = {"torch", "kernels", *sys.stdlib_module_names} - {"__main__"}  # packages whose functions need not be read
CONTEXTS = {"torch.amp.autocast_mode", "torch.utils._contextlib", "torch.utils.checkpoint"}
SEVERAL_OUTPUTS = (nn.RNNBase, nn.MultiheadAttention, nn.AdaptiveLogSoftmaxWithLoss)
TENSOR_FUNCTIONS = {
    torch.add, torch.cat, torch.conv2d, torch.flatten, torch.mean, torch.relu, torch.sigmoid, torch.stack,
    F.batch_norm, F.interpolate, F.relu,
}  # fmt: skip
TENSOR_METHODS = {"clone", "contiguous", "flatten", "mean", "relu", "relu_", "reshape", "sigmoid", "view"}
OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor")


class StandIn(fx.Proxy):
    """A value in a trace, which records what is done to it in place as such, and gives no text or key in its place."""

    def _text(self, *_: Any) -> str:
        caller = sys._getframe(1)
        if caller.f_lineno not in lines_of_assertions(caller.f_code):
            raise ValueError("its code makes a text of what it has computed")
        return str(self.node.name)

    def __hash__(self) -> int:
        raise ValueError("its code makes a key of what it has computed")

    __repr__ = __str__ = __format__ = _text

    def __getattr__(self, name: str) -> fx.proxy.Attribute:
        return _Attribute(self, name)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


class _Attribute(fx.proxy.Attribute, StandIn):
    """An attribute of a stand-in, or a method of it that is called."""


def _in_place(function: Callable[..., Any], self: StandIn, other: Any) -> fx.Proxy:
    return self.tracer.create_proxy("call_function", function, (self, other), {})


for _operator in OPERATORS:
    _method = f"__i{_operator.rstrip('_')}__"
    setattr(StandIn, _method, functools.partialmethod(functools.partial(_in_place, getattr(operator, _method))))


def is_tensor(node: fx.Node) -> bool:
    """Return True if what `node` gives is known to be one tensor."""
    if node.op in ("placeholder", "get_attr"):
        return True  # of a placeholder it is asked when the graph is called
    if node.op == "call_module":
        return bool(node.meta.get("gives_tensor"))
    if node.op == "call_method":
        return node.target in TENSOR_METHODS and is_tensor(node.args[0])
    if node.target in TENSOR_FUNCTIONS:
        return True
    arithmetic = node.op == "call_function" and getattr(node.target, "__module__", "") == "_operator"
    named = arithmetic and node.target.__name__.removeprefix("i") in {*OPERATORS, "neg"}
    return named and any(isinstance(arg, fx.Node) and is_tensor(arg) for arg in node.args)


def may_be_none(node: fx.Node) -> bool:
    """Return True if `node` gives something of a part that runs its own code, which may be None."""
    if node.op == "call_module":
        return not is_tensor(node)
    if node.op == "call_method" or node.target in (operator.getitem, getattr):
        return isinstance(node.args[0], fx.Node) and not is_tensor(node) and may_be_none(node.args[0])
    return node.op == "call_function" and not _is_package_known(getattr(node.target, "__module__", None) or "torch")


@dataclass
class Trace:
    """A part of a model as a graph.

    Attributes:
        graph: its arguments are those without a default, and those that were `given`.
        kept: parts that the graph calls whole, and why.
        inlined: parts whose code the graph repeats, "" being the part itself.
        tensors: True if the arguments must be tensors, as the code has asked; else numbers and lists of tensors do too.
        given: arguments with a default that are not left to it.
    """

    graph: fx.Graph
    kept: dict[str, str]
    inlined: list[str]
    tensors: bool
    given: tuple[str, ...]


@dataclass
class _Executed:
    """The lines that the model's own functions have executed in a part, and reasons against a graph."""

    lines: dict[CodeType, set[int]] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raise ValueError at what a graph would not do."""
        for reason in self.reasons:
            raise ValueError(reason)
        for code, lines in self.lines.items():
            for hazard in hazards_in(code):
                if any(hazard.first <= line <= hazard.last for line in lines):
                    raise ValueError(hazard.reason)


class Tracer(fx.Tracer):
    """Traces a model whose layers of `leaves` stay whole, as do parts that do what a graph would not."""

    proxy_buffer_attributes = True

    def __init__(self, leaves: tuple[type, ...], given: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.leaves, self.given = leaves, given

    def trace_part(self, root: nn.Module) -> Trace:
        """Return the trace of `root`.

        Raises:
            Exception: whatever the code of `root` raises when it is given stand-ins; ValueError at what a graph would
                not do.
        """
        self.kept: dict[str, str] = {}
        self.inlined, self.tensors = [""], False
        self.state = {id(tensor): name for name, tensor in [*root.named_parameters(), *root.named_buffers()]}
        self.state_proxies: dict[int, fx.Proxy] = {}
        self.attributes = _Attributes(root)
        dice, drawn = random.getstate(), _state_of_numpy()
        try:
            if "forward" in vars(root):
                raise ValueError("it has a forward of its own, which is not its class's")
            with torch.inference_mode(False), torch.enable_grad(), _NoComputation(), self._watch():
                self.modes = _modes()
                graph = self.trace(root)
                self.executed[-1].check()
            if random.getstate() != dice or _state_of_numpy() != drawn:
                raise ValueError("its code draws random numbers")
            if self.attributes.restore():
                raise ValueError("its code changes an attribute")
        finally:
            self.attributes.restore()
            random.setstate(dice)
        return Trace(graph, self.kept, self.inlined, self.tensors, self.given)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        required, optional = arguments_of(type(self.root))
        args: list[Any] = [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in required)]
        for name, default in optional.items():
            args.append(self.create_proxy("placeholder", name, (), {}) if name in self.given else default)
        return root_fn, args

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return StandIn(node, self)

    def create_arg(self, a: Any) -> Any:
        if type(a) is OrderedDict:  # which torch.fx makes a dict of
            items = [(key, self.create_arg(value)) for key, value in a.items()]
            return self.create_node("call_function", OrderedDict, (items,), {})
        if isinstance(a, dict) and type(a) is not dict:
            raise ValueError(f"its code makes a {type(a).__name__}")
        return super().create_arg(a)

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        if kind == "get_attr" and target not in self.state.values():
            raise ValueError(f"its code uses {target!r}, a tensor that is neither parameter nor buffer")
        if _modes() != self.modes:
            raise ValueError("its code has a context")
        return super().create_node(kind, target, *args, **kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in self.leaves or super().is_leaf_module(m, module_qualified_name)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        name = self.state.get(id(attr_val))
        if name is None:
            return attr_val
        if id(attr_val) not in self.state_proxies:
            self.state_proxies[id(attr_val)] = self.create_proxy("get_attr", name, (), {})
        return self.state_proxies[id(attr_val)]

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        name = self.path_of_module(m)
        if self.is_leaf_module(m, name):
            result = super().call_module(m, forward, args, kwargs)
            several = isinstance(m, SEVERAL_OUTPUTS) or getattr(m, "return_indices", False)
            takes = [is_tensor(node) for node in result.node.all_input_nodes]
            result.node.meta["gives_tensor"] = all(takes) if type(m) is nn.Identity else not several
            return result
        if name not in self.kept:
            last, stack = next(iter(reversed(self.graph.nodes)), None), copy.copy(self.module_stack)
            self.executed.append(_Executed())
            try:
                if hooked(m):
                    raise ValueError("it has hooks, which a graph would not run")
                if m.training != self.root.training:
                    raise ValueError("it is in another mode, training or evaluation, than the whole")
                result = super().call_module(m, forward, args, kwargs)
                self.executed[-1].check()
                self.inlined.append(name)
                return result
            except Exception as error:  # the model's own code may raise anything
                self.kept[name] = describe(error)
                self._forget(last)
                self.module_stack = stack
            finally:
                self.executed.pop()
        return self.create_proxy("call_module", name, args, kwargs)

    def _forget(self, last: fx.Node | None) -> None:
        """Undo what was traced after the node `last`."""
        for node in reversed(list(self.graph.nodes)):
            if node is last:
                break
            self.graph.erase_node(node)
        self.state_proxies.clear()
        self.attributes.restore()

    @contextmanager
    def _watch(self) -> Iterator[None]:
        """Note the lines that functions of other packages than KNOWN execute inside a `with` block.

        No garbage is collected there: what anybody has called at that is no part of the trace.
        """
        self.executed = [_Executed()]
        asking: list[dict[str, Any]] = []  # names of modules, whose functions ask for types

        def on_call(frame: FrameType, event: str, _: Any) -> Any:
            executed = self.executed[-1]
            if frame.f_globals.get("__name__") in CONTEXTS:
                executed.reasons.append(f"its code has a context, of {frame.f_globals['__name__']}")
            if _is_known(frame):
                return None
            if "isinstance" not in frame.f_globals:
                frame.f_globals["isinstance"] = self._isinstance
                asking.append(frame.f_globals)
            lines = executed.lines.setdefault(frame.f_code, set())
            try:
                compared = names_compared_by_identity(frame.f_code)
            except ValueError as error:  # what is raised here would end the watch
                executed.reasons.append(describe(error))
                return None

            def on_line(frame: FrameType, event: str, _: Any) -> Any:
                if event == "line":
                    lines.add(frame.f_lineno)
                    for name, with_none in compared.get(frame.f_lineno, ()):
                        value = frame.f_locals.get(name)
                        if isinstance(value, fx.Proxy) and not (with_none and not may_be_none(value.node)):
                            executed.reasons.append(f"its code asks what {name!r} is")
                return on_line

            return on_line

        previous, collects = sys.gettrace(), gc.isenabled()
        gc.disable()
        sys.settrace(on_call)
        try:
            yield
        finally:
            sys.settrace(previous)
            if collects:
                gc.enable()
            for names in asking:
                del names["isinstance"]

    def _isinstance(self, value: Any, kinds: Any) -> bool:
        """isinstance for the model's code, to which a stand-in is what it stands for.

        Raises:
            ValueError: it is not known what that is.
        """
        if not isinstance(value, fx.Proxy):
            return isinstance(value, kinds)
        if not is_tensor(value.node):
            raise ValueError("its code asks for the type of what it has computed")
        self.tensors = True
        return issubclass(Tensor, kinds)


class _NoComputation(TorchDispatchMode):
    """Refuses whatever computes with tensors and not with stand-ins: it would happen once."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise ValueError(f"its code computes with tensors that do not depend on its input, by {func}")


class _Attributes:
    """The attributes of a model's parts, the objects and containers in them, to see and undo changes."""

    def __init__(self, root: nn.Module) -> None:
        self.saved: dict[int, tuple[Any, Any]] = {}
        for part in root.modules():
            self._save(vars(part))

    def _save(self, value: Any) -> None:
        module = type(value).__module__
        if isinstance(value, Iterator) or module == "random" or module.startswith("numpy.random"):
            raise ValueError(f"it has a {type(value).__name__}, which its code may advance")
        if isinstance(value, dict | list | set | deque):
            if id(value) not in self.saved:
                self.saved[id(value)] = (value, value.copy())
                for inner in list(value.values()) if isinstance(value, dict) else list(value):
                    self._save(inner)
        elif isinstance(value, tuple):
            for inner in value:
                self._save(inner)
        elif hasattr(value, "__dict__") and not isinstance(value, type | nn.Module) and not _is_package_known(module):
            self._save(vars(value))

    def restore(self) -> bool:
        """Put everything back as it was; return True if anything had changed."""
        changed = False
        for value, before in self.saved.values():
            if not _is_same(value, before):
                changed = True
                value.clear()
                value.extend(before) if isinstance(value, list | deque) else value.update(before)
        return changed


def _is_same(value: Any, before: Any) -> bool:
    if len(value) != len(before):
        return False
    if isinstance(value, set):
        return value == before
    if isinstance(value, dict):
        return all(a is b and value[a] is before[b] for a, b in zip(value, before, strict=True))
    return all(a is b for a, b in zip(value, before, strict=True))


def hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


def describe(error: Exception) -> str:
    """Return the first line of an exception's text, or its type."""
    return (str(error) or type(error).__name__).splitlines()[0]


def arguments_of(kind: type[nn.Module]) -> tuple[list[str], dict[str, Any]]:
    """Return the arguments of a class's forward: the names of those without a default, and the others with theirs.

    Raises:
        ValueError: it takes a list of arguments, or some by name only.
    """
    parameters = list(inspect.signature(kind.forward).parameters.values())[1:]
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ValueError(f"its argument {parameter.name!r} is a list of arguments")
        if parameter.kind is parameter.KEYWORD_ONLY:
            raise ValueError(f"its argument {parameter.name!r} is given by name only")
    required = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
    return required, {parameter.name: parameter.default for parameter in parameters[len(required) :]}


def _modes() -> tuple[bool, ...]:
    """Return what contexts of torch have set for the operations inside them."""
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch._C._is_any_autocast_enabled()


def _state_of_numpy() -> str:
    """Return a text that is another one once NumPy's common generator has drawn."""
    return repr(sys.modules["numpy"].random.get_state()) if "numpy" in sys.modules else ""


def _is_known(frame: FrameType) -> bool:
    return _is_package_known(frame.f_globals.get("__name__") or "")


def _is_package_known(module: str) -> bool:
    return module.split(".")[0] in KNOWN or module.startswith("namedtuple_")
