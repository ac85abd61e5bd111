"""A copy of any torch model on our layers, with what can be fused, fused.

The layers change their class and nothing else, since ours subclass torch's: parameters, buffers, hooks and names stay.
Chains are found in the graph that torch.fx traces, once for training and once for evaluation, as a model may do
different things in the two. A model that cannot be traced keeps its own code, and has its layers replaced all the same.
"""

from __future__ import annotations

import copy
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

LAYERS = {getattr(nn, name): getattr(layers, name) for name in layers.__all__ if hasattr(nn, name)}
FUNCTIONS = {getattr(F, name): getattr(functional, name) for name in functional.__all__ if hasattr(F, name)}
CONVOLUTIONS = (layers.Conv1d, layers.Conv2d, layers.Conv3d)
TRANSPOSES = (layers.ConvTranspose1d, layers.ConvTranspose2d, layers.ConvTranspose3d)
NORMS = (layers.BatchNorm1d, layers.BatchNorm2d, layers.BatchNorm3d)
POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")


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
class Chain:
    """What follows a layer and can be fused into it: a residual sum, a ReLU, and the name of a max-pooling layer."""

    residual: bool = False
    relu: bool = False
    pool: str | None = None

    def __str__(self) -> str:
        parts = [("residual", self.residual), ("ReLU", self.relu), ("max pooling", self.pool)]
        return " + ".join(name for name, present in parts if present)


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


class Converted(nn.Module):
    """A model whose forward is the code of its traced graph, one for training and one for evaluation.

    Its layers have the names they had, so its state_dict has the same keys. `report` says what was done.
    """

    def __init__(self, model: nn.Module, graphs: dict[bool, fx.Graph], report: Report) -> None:
        super().__init__()
        for name, child in model.named_children():
            self.add_module(name, child)
        for name, parameter in model.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in model.named_buffers(recurse=False):
            self.register_buffer(name, buffer, persistent=name not in model._non_persistent_buffers_set)
        self._sources = {mode: _Source.of(graph) for mode, graph in graphs.items()}
        self._forwards = {mode: source.compile() for mode, source in self._sources.items()}
        self.report = report
        self.training = model.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._forwards[self.training](self, *args, **kwargs)

    def train(self, mode: bool = True) -> Converted:
        if mode not in self._forwards:
            raise RuntimeError("its batch norms were folded into its convolutions: this model is for evaluation only")
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_forwards"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forwards = {mode: source.compile() for mode, source in self._sources.items()}


def convert(module: nn.Module, *, fold_batch_norm: bool = False) -> nn.Module:
    """A copy of `module` with its layers replaced by ours; the module itself is not changed.

    Convolutions, transposed convolutions, linear, pooling and batch-norm layers are replaced, as are calls of
    torch.nn.functional by these names. What follows a convolution, a linear layer or a batch norm is fused into it: the
    sum with a residual, ReLU, and after a convolution max pooling whose windows do not overlap.

    Args:
        fold_batch_norm: for evaluation, multiply each batch norm into the convolution before it. The state_dict then
            lacks the keys of the batch norms.

    Returns:
        The copy, with the attribute `report`.

    Raises:
        TypeError: for what is no module.
        ValueError: folding was asked of a module that is in training mode or cannot be traced.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"convert: module must be a torch.nn.Module, got {type(module).__name__}")
    if fold_batch_norm and module.training:
        raise ValueError("convert: fold_batch_norm=True needs a module in evaluation mode: call module.eval() first")
    model, report = copy.deepcopy(module), Report()
    _replace_layers(model, report)
    if type(model) in LAYERS.values():  # has no graph
        model.report = report
        return model
    try:
        graphs = {mode: _trace(model, mode) for mode in ((False,) if fold_batch_norm else (True, False))}
    except Exception as error:  # tracing runs the model's own code, which may raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        report.untraced = f"torch.fx cannot trace it: {reason}"
        if fold_batch_norm:
            raise ValueError(f"convert: fold_batch_norm=True, but {report.untraced}") from error
        _report_left(report, model.named_modules())
        model.report = report
        return model
    if fold_batch_norm:
        _fold(model, graphs[False], report)
    chains = _agreed_chains(model, graphs)
    for graph in graphs.values():
        _replace_functions(graph, report)
        _fuse(model, graph, chains)
        graph.eliminate_dead_code()
        graph.lint()
    for name, chain in chains.items():
        layer = model.get_submodule(name)
        layer.activation = "relu" if chain.relu else None
        if chain.pool:
            layer.pool = model.get_submodule(chain.pool)
        report.fused[name] = f"{type(layer).__name__} + {chain}"
    called = {node.target for graph in graphs.values() for node in graph.nodes if node.op == "call_module"}
    _report_left(report, [(name, model.get_submodule(name)) for name in sorted(called)])
    return Converted(model, graphs, report)


def _replace_layers(model: nn.Module, report: Report) -> None:
    for name, layer in model.named_modules():
        if type(layer) in LAYERS:
            odd = [p.dtype for p in layer.parameters() if p.dtype not in DTYPES]
            if odd:
                report.left[name] = f"{type(layer).__name__}: {odd[0]} is not supported"
                continue
            layer.__class__ = LAYERS[type(layer)]
            layer.activation = None
            if isinstance(layer, (*CONVOLUTIONS, layers.Linear)):
                layer.pool = None
            report.replaced[name] = type(layer).__name__


def _report_left(report: Report, named: Iterable[tuple[str, nn.Module]]) -> None:
    """Name the layers that run and are none of ours."""
    for name, layer in named:
        if type(layer) not in LAYERS.values() and name not in report.left and not any(True for _ in layer.children()):
            report.left[name] = f"{type(layer).__name__} has no equivalent"


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if type(m) in LAYERS.values() or super().is_leaf_module(m, module_qualified_name):
            return True
        if _hooked(m):
            raise ValueError(f"its part {module_qualified_name!r} has hooks, which a graph would not run")
        return False


def _trace(model: nn.Module, mode: bool) -> fx.Graph:
    """The graph of `model` in training (True) or evaluation."""
    modes = [(layer, layer.training) for layer in model.modules()]
    try:
        model.train(mode)
        if _hooked(model):
            raise ValueError("it has hooks, which a graph would not run")
        return _Tracer().trace(model)
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
    for node, layer in _layers_called_once(model, graph):
        norm_node = _only_user(node)
        norm = _called_once(model, graph, norm_node)
        if not isinstance(layer, (*CONVOLUTIONS, *TRANSPOSES)) or not isinstance(norm, NORMS):
            continue
        if norm.running_mean is None or (isinstance(layer, TRANSPOSES) and layer.groups > 1):
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


def _agreed_chains(model: nn.Module, graphs: dict[bool, fx.Graph]) -> dict[str, Chain]:
    """The chain that follows each layer, where all graphs that call it agree."""
    found: dict[str, list[Chain]] = {}
    for graph in graphs.values():
        called = [node.target for node in graph.nodes if node.op == "call_module"]
        for name in called:
            found.setdefault(name, [])
        claimed: set[fx.Node] = set()
        for node, layer in reversed(list(_layers_called_once(model, graph))):  # of two addends, the later one
            if isinstance(layer, (*CONVOLUTIONS, *TRANSPOSES, *NORMS, layers.Linear)):
                chain, nodes = _chain(model, node, layer)
                found[node.target].append(Chain() if claimed & set(nodes) else chain)
                claimed |= set(nodes)
        for name in called:
            if called.count(name) > 1:
                found[name].append(Chain())
    return {name: chains[0] for name, chains in found.items() if chains and len(set(chains)) == 1 and str(chains[0])}


def _chain(model: nn.Module, node: fx.Node, layer: nn.Module) -> tuple[Chain, list[fx.Node]]:
    """What can be fused into the layer that `node` calls, and the nodes that do it now."""
    residual, relu, pool, nodes = False, False, None, []
    after = _only_user(node)
    if _is_sum(after) and not isinstance(layer, TRANSPOSES) and _can_move(node, after):
        following = _only_user(after)
        if _is_relu(model, following):
            residual, relu, nodes = True, True, [after, following]
    elif _is_relu(model, after):
        relu, nodes = True, [after]
        following = _only_user(after)
        if isinstance(layer, CONVOLUTIONS) and following is not None and following.op == "call_module":
            candidate = model.get_submodule(following.target)
            if _fuses_pool(candidate, len(layer.kernel_size)):
                pool, nodes = following.target, [after, following]
    return Chain(residual, relu, pool), nodes


def _fuse(model: nn.Module, graph: fx.Graph, chains: dict[str, Chain]) -> None:
    """Let each layer stand for its chain."""
    for node in list(graph.nodes):
        if node.op != "call_module" or node.target not in chains:
            continue
        _, nodes = _chain(model, node, model.get_submodule(node.target))
        if chains[node.target].residual:
            total = nodes[0]
            (other,) = (arg for arg in total.args if arg is not node)
            total.prepend(node)  # the residual is computed by then
            node.update_kwarg("residual", other)
        nodes[-1].replace_all_uses_with(node)
        for done in reversed(nodes):
            graph.erase_node(done)


def _layers_called_once(model: nn.Module, graph: fx.Graph) -> Iterator[tuple[fx.Node, nn.Module]]:
    for node in list(graph.nodes):
        layer = _called_once(model, graph, node)
        if layer is not None:
            yield node, layer


def _called_once(model: nn.Module, graph: fx.Graph, node: fx.Node | None) -> nn.Module | None:
    """The layer that `node` calls, if nothing else calls it and nothing is hooked to it."""
    if node is None or node.op != "call_module":
        return None
    layer = model.get_submodule(node.target)
    calls = [n for n in graph.nodes if n.op == "call_module" and model.get_submodule(n.target) is layer]
    return layer if len(calls) == 1 and not _hooked(layer) else None


def _hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


def _only_user(node: fx.Node | None) -> fx.Node | None:
    users = [] if node is None else list(node.users)
    return users[0] if len(users) == 1 else None


def _is_relu(model: nn.Module, node: fx.Node | None) -> bool:
    if node is None:
        return False
    if node.op == "call_module":
        layer = model.get_submodule(node.target)
        return type(layer) is nn.ReLU and not _hooked(layer)
    return node.op in ("call_function", "call_method") and node.target in RELUS


def _is_sum(node: fx.Node | None) -> bool:
    """Whether `node` adds two different tensors."""
    if node is None or node.op not in ("call_function", "call_method") or node.target not in ADDS:
        return False
    return len(node.args) == 2 and all(isinstance(a, fx.Node) for a in node.args) and len(set(node.args)) == 2


def _can_move(node: fx.Node, target: fx.Node) -> bool:
    """Whether `node` may run just before `target`: nothing between the two changes its input in place."""
    between = node.next
    while between is not target:
        if set(between.all_input_nodes) & set(node.all_input_nodes) and _in_place(between):
            return False
        between = between.next
    return True


def _in_place(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op == "call_module" or name.endswith("_") or name.startswith("i") or bool(node.kwargs.get("inplace"))


def _fuses_pool(pool: nn.Module, axes: int) -> bool:
    """Whether `pool` is max pooling whose windows do not overlap, so that nothing is computed twice."""
    if type(pool) is not LAYERS[POOLS[axes - 1]] or pool.return_indices or _hooked(pool):
        return False
    per_axis = lambda value: value if isinstance(value, tuple) else (value,) * axes  # noqa: E731
    extents = [d * (k - 1) + 1 for d, k in zip(per_axis(pool.dilation), per_axis(pool.kernel_size), strict=True)]
    return all(stride >= extent for stride, extent in zip(per_axis(pool.stride), extents, strict=True))
