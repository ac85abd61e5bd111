"""A copy of any torch model on our layers, with what can be fused, fused.

Layers change their class and nothing else, since ours subclass torch's: parameters, buffers, hooks and names stay. What
is fused is found in the graph that torch.fx traces, once for training and once for evaluation, and stands in its calls
alone, so that a part of the model still does by itself what it did. A model whose trace would not do all that its own
code does keeps that code.
"""

from __future__ import annotations

import copy
import functools
import importlib
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from kernels import functional, layers
from kernels.checks import DTYPES
from kernels.layers.convolution import max_pool_arguments
from kernels.tracing import Tracer, hooked

LAYERS = {getattr(nn, name): getattr(layers, name) for name in layers.__all__ if hasattr(nn, name)}
FUNCTIONS = {getattr(F, name): getattr(functional, name) for name in functional.__all__ if hasattr(F, name)}
CONVOLUTIONS = (layers.Conv1d, layers.Conv2d, layers.Conv3d)
TRANSPOSES = (layers.ConvTranspose1d, layers.ConvTranspose2d, layers.ConvTranspose3d)
NORMS = (layers.BatchNorm1d, layers.BatchNorm2d, layers.BatchNorm3d)
HEADS = (*CONVOLUTIONS, *TRANSPOSES, *NORMS, layers.Linear)
POOLS = (layers.MaxPool1d, layers.MaxPool2d, layers.MaxPool3d)
RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
OWN = ("forward", "_conv_forward", "activation", "pool")  # what a layer of torch has from its class, or not at all
ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
IN_PLACE_ADDS = (operator.iadd, "add_")


@dataclass
class Report:
    """What `convert` did, each by the name of the layer.

    Args:
        replaced: layers and functions that are ours now, and of what type.
        fused: layers with what follows them in the same kernel.
        left: layers that are torch's still, and why.
        untraced: why the model kept its own code, with nothing fused; None where it was traced.
    """

    replaced: dict[str, str] = field(default_factory=dict)
    fused: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    untraced: str | None = None

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} replaced, {len(self.fused)} fused, {len(self.left)} left"]
        if self.untraced:
            lines.append(f"nothing fused: {self.untraced}")
        for title in ("replaced", "fused", "left"):
            lines += [f"  {title} {name}: {text}" for name, text in getattr(self, title).items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Source:
    """The code that torch.fx writes for a graph, and the names it uses, in a form that can be copied and pickled."""

    code: str
    objects: dict[str, Any]
    modules: dict[str, str]

    @staticmethod
    def of(graph: fx.Graph) -> _Source:
        written = graph.python_code("self")
        modules = {name: value.__name__ for name, value in written.globals.items() if isinstance(value, ModuleType)}
        objects = {name: value for name, value in written.globals.items() if name not in modules}
        return _Source(written.src, objects, modules)

    def compile(self) -> Callable[..., Any]:
        scope = self.objects | {name: importlib.import_module(module) for name, module in self.modules.items()}
        exec(self.code, scope)
        return scope["forward"]


class Converted:
    """What a traced model becomes besides its own class: its forward is the code of a graph, one for each mode."""

    report: Report

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if "_forwards" not in self.__dict__:  # made by its class, as a slice of a Sequential is
            return super().forward(*args, **kwargs)
        return self._forwards[self.training](self, *args, **kwargs)

    def train(self, mode: bool = True) -> Any:
        if mode not in self.__dict__.get("_forwards", (mode,)):
            raise RuntimeError("its batch norms were folded into its convolutions: this model is for evaluation only")
        return super().train(mode)

    def __reduce_ex__(self, protocol: int) -> tuple[Any, ...]:
        """The class is made when it is needed, and functions made from text cannot be pickled."""
        state = {name: value for name, value in self.__dict__.items() if name != "_forwards"}
        return _rebuild, (type(self).__mro__[2],), state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_sources" in state:
            self._forwards = {mode: source.compile() for mode, source in self._sources.items()}


@functools.cache
def _converted_class(kind: type[nn.Module]) -> type:
    return type(f"Converted{kind.__name__}", (Converted, kind), {})


def _rebuild(kind: type[nn.Module]) -> nn.Module:
    converted = _converted_class(kind)
    return converted.__new__(converted)


def convert(module: nn.Module, *, fold_batch_norm: bool = False) -> nn.Module:
    """A copy of `module` with its layers replaced by ours; the module itself is not changed.

    Convolutions, transposed convolutions, linear, pooling and batch-norm layers are replaced, as are calls of
    torch.nn.functional by these names. What follows a convolution, a linear layer or a batch norm is fused into it: the
    sum with a residual, ReLU, and after a convolution max pooling whose windows do not overlap.

    Where something is fused, the copy is what the module was: replacing or hooking a part of it later on, or giving a
    part another mode or attribute, does not show in it. Do that first. `kernels.tracing` says what is not traced.

    Args:
        fold_batch_norm: for evaluation, multiply each batch norm into the convolution before it. The state_dict then
            lacks the keys of the batch norms.

    Returns:
        The copy, an instance of the class of `module`, with the attribute `report`.

    Raises:
        TypeError: for what is no module.
        ValueError: folding was asked of a module that is in training mode or cannot be traced.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"convert: module must be a torch.nn.Module, got {type(module).__name__}")
    if fold_batch_norm and module.training:
        raise ValueError("convert: fold_batch_norm=True needs a module in evaluation mode: call module.eval() first")
    if fold_batch_norm and isinstance(module, Converted):
        raise ValueError("convert: fold_batch_norm=True needs the original module, not a converted one")
    model = copy.deepcopy(module)
    if isinstance(model, Converted):
        return model
    model.report = report = Report()
    _replace_layers(model, report)
    if type(model) in LAYERS.values():  # has no graph
        return model
    try:
        converted = _converted_class(type(model))
        graphs = {mode: _trace(model, mode) for mode in ((False,) if fold_batch_norm else (True, False))}
    except Exception as error:  # tracing runs the model's own code, which may raise anything
        report.untraced = f"torch.fx cannot trace it: {(str(error) or type(error).__name__).splitlines()[0]}"
        if fold_batch_norm:
            raise ValueError(f"convert: fold_batch_norm=True, but {report.untraced}") from error
        model = copy.deepcopy(module)  # the trace may have left its marks
        model.report = report
        _replace_layers(model, report)
        _report_left(report, model.named_modules())
        return model
    if fold_batch_norm:
        _fold(model, graphs[False], report)
    for graph in graphs.values():
        _replace_functions(graph, report)
        _fuse(model, graph, report)
        graph.lint()
    called = {node.target for graph in graphs.values() for node in graph.nodes if node.op == "call_module"}
    _report_left(report, [(name, model.get_submodule(name)) for name in sorted(called)])
    model._sources = {mode: _Source.of(graph) for mode, graph in graphs.items()}
    model._forwards = {mode: source.compile() for mode, source in model._sources.items()}
    model.__class__ = converted
    return model


def _replace_layers(model: nn.Module, report: Report) -> None:
    for name, layer in model.named_modules():
        if type(layer) not in LAYERS:
            continue
        odd = [f"{p.dtype} is not supported" for p in layer.parameters() if p.dtype not in DTYPES]
        odd += [f"it has {own!r} of its own" for own in OWN if own in vars(layer)]
        if odd:
            report.left[name] = f"{type(layer).__name__}: {odd[0]}"
            continue
        layer.__class__ = LAYERS[type(layer)]
        if isinstance(layer, HEADS):
            layer.activation = None
        if isinstance(layer, (*CONVOLUTIONS, layers.Linear)):
            layer.pool = None
        report.replaced[name] = type(layer).__name__


def _report_left(report: Report, named: Iterable[tuple[str, nn.Module]]) -> None:
    """Name the layers that run and are none of ours."""
    for name, layer in named:
        if type(layer) not in LAYERS.values() and name not in report.left and not any(True for _ in layer.children()):
            report.left[name] = f"{type(layer).__name__} has no equivalent"


def _trace(model: nn.Module, mode: bool) -> fx.Graph:
    """The graph of `model` in training (True) or evaluation."""
    whole, modes = model.training, [(layer, layer.training) for layer in model.modules()]
    try:
        for layer, was in modes:
            layer.training = mode if was == whole else not mode
        return Tracer(tuple(LAYERS.values())).trace(model)
    finally:
        for layer, was in modes:
            layer.training = was


def _replace_functions(graph: fx.Graph, report: Report) -> None:
    for node in graph.nodes:
        if node.op == "call_function" and node.target in FUNCTIONS:
            node.target = FUNCTIONS[node.target]
            report.replaced[node.name] = f"function {node.target.__name__}"


def _fold(model: nn.Module, graph: fx.Graph, report: Report) -> None:
    """Multiply batch norms into the convolutions before them, whose weights they scale and whose biases they shift."""
    used = {node.target.rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    for node, layer in _layers_called_once(model, graph):
        norm_node = _only_user(node)
        norm = _called_once(model, graph, norm_node)
        if not isinstance(layer, (*CONVOLUTIONS, *TRANSPOSES)) or not isinstance(norm, NORMS):
            continue
        plain = layer.activation is None and getattr(layer, "pool", None) is None and node.target not in used
        fits = norm.running_mean is not None and not (isinstance(layer, TRANSPOSES) and layer.groups > 1)
        if not plain or not fits or norm.training or norm.activation is not None or len(norm_node.args) > 1:
            continue
        layer.weight, layer.bias = fuse_conv_bn_weights(
            layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias,
            transpose=isinstance(layer, TRANSPOSES),
        )  # fmt: skip
        norm_node.replace_all_uses_with(node)
        graph.erase_node(norm_node)
        parent, _, child = norm_node.target.rpartition(".")
        setattr(model.get_submodule(parent), child, nn.Identity())
        report.replaced[norm_node.target] = f"folded into {node.target}"


def _fuse(model: nn.Module, graph: fx.Graph, report: Report) -> None:
    """Let each call of a layer do what follows it."""
    for node in reversed(list(graph.nodes)):  # of two addends the later one takes the other in
        layer = _called_once(model, graph, node)
        if not isinstance(layer, HEADS) or layer.activation or getattr(layer, "pool", None) or len(node.args) != 1:
            continue
        after, chain = _only_user(node), []
        if _is_sum(after, node) and not isinstance(layer, TRANSPOSES) and _can_move(model, node, after):
            following = _only_user(after)
            if _is_relu(model, following):
                (other,) = (arg for arg in after.args if arg is not node)
                after.prepend(node)  # the residual is computed by then
                node.update_kwarg("residual", other)
                chain = [after, following]
                report.fused[node.target] = f"{type(layer).__name__} + residual + ReLU"
        elif _is_relu(model, after):
            chain = [after]
            report.fused[node.target] = f"{type(layer).__name__} + ReLU"
            pool = _called_once(model, graph, _only_user(after), times=None)
            changed = any(_in_place(model, user) for user in (_only_user(after) or after).users)  # the ReLU keeps it
            if isinstance(layer, CONVOLUTIONS) and _fuses_pool(pool, len(layer.kernel_size)) and not changed:
                chain.append(_only_user(after))
                node.update_kwarg("max_pool", max_pool_arguments(pool))
                report.fused[node.target] += " + max pooling"
        if chain:
            node.update_kwarg("activation", "relu")
            chain[-1].replace_all_uses_with(node)
            for done in reversed(chain):
                graph.erase_node(done)


def _layers_called_once(model: nn.Module, graph: fx.Graph) -> Iterator[tuple[fx.Node, nn.Module]]:
    for node in list(graph.nodes):
        layer = _called_once(model, graph, node)
        if layer is not None:
            yield node, layer


def _called_once(model: nn.Module, graph: fx.Graph, node: fx.Node | None, times: int | None = 1) -> nn.Module | None:
    """The layer that `node` calls, if it is called so many `times` (None: any) and nothing is hooked to it."""
    if node is None or node.op != "call_module":
        return None
    layer = model.get_submodule(node.target)
    calls = [n for n in graph.nodes if n.op == "call_module" and model.get_submodule(n.target) is layer]
    return None if hooked(layer) or times not in (None, len(calls)) else layer


def _only_user(node: fx.Node | None) -> fx.Node | None:
    users = [] if node is None else list(node.users)
    return users[0] if len(users) == 1 else None


def _is_relu(model: nn.Module, node: fx.Node | None) -> bool:
    if node is None:
        return False
    if node.op == "call_module":
        layer = model.get_submodule(node.target)
        return type(layer) is nn.ReLU and not hooked(layer)
    return node.op in ("call_function", "call_method") and node.target in RELUS


def _is_sum(node: fx.Node | None, addend: fx.Node) -> bool:
    """Whether `node` adds another value to `addend`, and changes nothing but it in place."""
    if node is None or node.op not in ("call_function", "call_method") or node.target not in ADDS or node.kwargs:
        return False
    if len(node.args) != 2 or not all(isinstance(a, fx.Node) for a in node.args) or node.args[0] is node.args[1]:
        return False
    return node.target not in IN_PLACE_ADDS or node.args[0] is addend


def _can_move(model: nn.Module, node: fx.Node, target: fx.Node) -> bool:
    """Whether `node` may run just before `target`: nothing between the two is changed in place."""
    between = node.next
    while between is not target:
        if _in_place(model, between):
            return False
        between = between.next
    return True


def _in_place(model: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(node.target), "inplace", False))
    if node.op == "call_method":
        return node.target.endswith("_") and not node.target.endswith("__")
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "")
    changes = name.endswith("_") or name in ("setitem", *(f"i{op}" for op in ("add", "sub", "mul", "truediv", "pow")))
    return changes or "out" in node.kwargs or True in (node.kwargs.get("inplace"), *node.args[1:])


def _fuses_pool(pool: nn.Module | None, axes: int) -> bool:
    """Whether `pool` is max pooling whose windows do not overlap, so that nothing is computed twice."""
    if type(pool) is not POOLS[axes - 1] or pool.return_indices:
        return False
    per_axis = lambda value: value if isinstance(value, tuple | list) else (value,) * axes  # noqa: E731
    extents = [d * (k - 1) + 1 for d, k in zip(per_axis(pool.dilation), per_axis(pool.kernel_size), strict=True)]
    return all(stride >= extent for stride, extent in zip(per_axis(pool.stride), extents, strict=True))
