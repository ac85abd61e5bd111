"""Passes over the graph of a model: what follows a layer joins it, and batch norms are folded into convolutions.

A chain is a convolution, a linear layer or a batch norm, called as a layer or as a function, then the sum with a
residual, ReLU, and max pooling whose windows do not overlap.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from kernels import layers, torch_fallback
from kernels.layers.convolution import max_pool_arguments
from kernels.tracing import hooked

CONVOLUTIONS = (layers.Conv1d, layers.Conv2d, layers.Conv3d)
TRANSPOSES = (layers.ConvTranspose1d, layers.ConvTranspose2d, layers.ConvTranspose3d)
NORMS = (layers.BatchNorm1d, layers.BatchNorm2d, layers.BatchNorm3d)
HEADS = (*CONVOLUTIONS, *TRANSPOSES, *NORMS, layers.Linear)
POOLS = (layers.MaxPool1d, layers.MaxPool2d, layers.MaxPool3d)
RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
ARITHMETIC = (operator.add, operator.sub, operator.mul, torch.add, torch.mul, torch.cat)
IN_PLACE_ADDS = (operator.iadd, "add_")
FUNCTIONAL_HEADS = {f for f in torch_fallback.FUNCTIONS.values() if "pool" not in f.__name__}
PURE_PACKAGES = {"torch", "_operator", "builtins", "collections", "kernels", "math"}


@dataclass
class Changes:
    """The changes that the passes have made to a graph.

    Attributes:
        replaced: functions that are ours now, and batch norms that were folded, by name.
        fused: heads of chains, and what they do now.
        merged: layers whose call is another one's now, or does more than before.
    """

    replaced: dict[str, str] = field(default_factory=dict)
    fused: dict[str, str] = field(default_factory=dict)
    merged: set[str] = field(default_factory=set)


class Passes:
    """The passes over the graph of one part of a model in one mode."""

    def __init__(self, part: nn.Module, graph: fx.Graph) -> None:
        self.graph, self.changes = graph, Changes()
        self.modules = dict(part.named_modules(remove_duplicate=False))
        self.calls = Counter(self.modules[node.target] for node in graph.nodes if node.op == "call_module")

    def replace_functions(self) -> None:
        for node in self.graph.nodes:
            if node.op == "call_function" and node.target in torch_fallback.FUNCTIONS:
                node.target = torch_fallback.FUNCTIONS[node.target]
                self.changes.replaced[_name(node)] = f"function {node.target.__name__}"

    def drop_identities(self) -> None:
        """Take out layers that give what they are given, and attributes that nothing reads."""
        for node in reversed(list(self.graph.nodes)):
            if node.target is getattr and not node.users:
                self.graph.erase_node(node)
        for node, layer in self._layers():
            if type(layer) is nn.Identity and len(node.args) == 1 and not node.kwargs:
                self.changes.merged.add(node.target)
                node.replace_all_uses_with(node.args[0])
                self.graph.erase_node(node)

    def fold(self, untouched: set[nn.Module]) -> None:
        """Multiply batch norms into the convolutions before them, whose weights they scale and whose biases they shift.

        Args:
            untouched: layers that the graph does not call alone.
        """
        used = {node.target.rpartition(".")[0] for node in self.graph.nodes if node.op == "get_attr"}
        for node, layer in self._layers():
            norm_node = _only_user(node)
            norm = self._called(norm_node)
            if not isinstance(layer, (*CONVOLUTIONS, *TRANSPOSES)) or not isinstance(norm, NORMS):
                continue
            plain = layer.activation is None and getattr(layer, "pool", None) is None and node.target not in used
            fits = norm.running_mean is not None and not (isinstance(layer, TRANSPOSES) and layer.groups > 1)
            if not plain or not fits or norm.training or norm.activation is not None or len(norm_node.args) > 1:
                continue
            if layer in untouched or norm in untouched:
                continue
            layer.weight, layer.bias = fuse_conv_bn_weights(
                layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias,
                transpose=isinstance(layer, TRANSPOSES),
            )  # fmt: skip
            norm_node.replace_all_uses_with(node)
            self.graph.erase_node(norm_node)
            parent, _, child = norm_node.target.rpartition(".")
            setattr(self.modules[parent], child, nn.Identity())
            self.changes.replaced[norm_node.target] = f"folded into {node.target}"

    def fuse(self) -> None:
        """Let each call of a head do what follows it."""
        for node in reversed(list(self.graph.nodes)):  # of two addends the later one takes the other in
            head = self._head(node)
            if head is None:
                continue
            after, chain, text = _only_user(node), [], ""
            if self._is_sum(after, node) and "transpose" not in head.lower() and self._can_move(node, after):
                following = _only_user(after)
                if self._is_relu(following):
                    (other,) = (arg for arg in after.args if arg is not node)
                    after.prepend(node)  # the residual is computed by then
                    node.update_kwarg("residual", other)
                    chain, text = [after, following], f"{head} + residual + ReLU"
            elif self._is_relu(after):
                chain, text = [after], f"{head} + ReLU"
                pool_node = _only_user(after)
                pool = self._called(pool_node, times=None)
                changed = any(self._changes_input(user) for user in (pool_node or after).users)  # the ReLU keeps it
                layer = self._called(node)
                if isinstance(layer, CONVOLUTIONS) and _fuses_pool(pool, len(layer.kernel_size)) and not changed:
                    chain.append(pool_node)
                    node.update_kwarg("max_pool", max_pool_arguments(pool))
                    text += " + max pooling"
            if chain:
                node.update_kwarg("activation", "relu")
                chain[-1].replace_all_uses_with(node)
                self.changes.fused[_name(node)] = text
                self.changes.merged |= {step.target for step in (node, *chain) if step.op == "call_module"}
                for done in reversed(chain):
                    self.graph.erase_node(done)

    def _head(self, node: fx.Node) -> str | None:
        """Return the name of what `node` calls if a chain can start with it."""
        if node.op == "call_function" and node.target in FUNCTIONAL_HEADS:
            return f"function {node.target.__name__}" if node.args else None
        layer = self._called(node)
        if not isinstance(layer, HEADS) or layer.activation or getattr(layer, "pool", None):
            return None
        return type(layer).__name__ if len(node.args) == 1 and not node.kwargs else None

    def _layers(self) -> Iterator[tuple[fx.Node, nn.Module]]:
        for node in list(self.graph.nodes):
            layer = self._called(node)
            if layer is not None:
                yield node, layer

    def _called(self, node: fx.Node | None, times: int | None = 1) -> nn.Module | None:
        """Return the layer that `node` calls, if that is called so many `times` (None: any) and has no hooks."""
        if node is None or node.op != "call_module":
            return None
        layer = self.modules[node.target]
        return None if hooked(layer) or times not in (None, self.calls[layer]) else layer

    def _is_relu(self, node: fx.Node | None) -> bool:
        if node is None:
            return False
        if node.op == "call_module":
            layer = self.modules[node.target]
            return type(layer) is nn.ReLU and not hooked(layer)
        return node.op in ("call_function", "call_method") and node.target in RELUS

    def _is_sum(self, node: fx.Node | None, addend: fx.Node) -> bool:
        """Return True if `node` adds another value to `addend`, and no other node sees it if that is done in place."""
        if node is None or node.op not in ("call_function", "call_method") or node.target not in ADDS or node.kwargs:
            return False
        if len(node.args) != 2 or not all(isinstance(a, fx.Node) for a in node.args) or node.args[0] is node.args[1]:
            return False
        first = node.args[0]
        return node.target not in IN_PLACE_ADDS or first is addend or (len(first.users) == 1 and self._is_new(first))

    def _is_new(self, node: fx.Node) -> bool:
        """Return True if what `node` gives is no view of another value."""
        if node.op == "call_module":
            return isinstance(self.modules[node.target], HEADS)
        return node.op == "call_function" and node.target in (*FUNCTIONAL_HEADS, *ARITHMETIC)

    def _can_move(self, node: fx.Node, target: fx.Node) -> bool:
        """Return True if `node` may run just before `target`: nothing between the two is changed in place."""
        between = node.next
        while between is not target:
            if self._changes_input(between):
                return False
            between = between.next
        return True

    def _changes_input(self, node: fx.Node) -> bool:
        """Return True if `node` may change something in place."""
        if node.op == "call_module":
            layer = self.modules[node.target]
            inside = type(layer).__module__.startswith(("torch.nn.", "kernels."))
            return bool(getattr(layer, "inplace", False)) or not inside
        if node.op == "call_method":
            return node.target.endswith("_") and not node.target.endswith("__")
        if node.op != "call_function":
            return False
        if (getattr(node.target, "__module__", None) or "torch").split(".")[0] not in PURE_PACKAGES:
            return True
        name = getattr(node.target, "__name__", "")
        operators = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
        changes = name.endswith("_") or name in ("setitem", *(f"i{op}" for op in operators))
        return changes or "out" in node.kwargs or True in (node.kwargs.get("inplace"), *node.args[1:])


def _name(node: fx.Node) -> str:
    """Return the path of the layer that `node` calls, or the path of what calls the function, and its node's name."""
    if node.op == "call_module":
        return str(node.target)
    stack = list(node.meta.get("nn_module_stack", {}).values())
    owner = stack[-1][0] if stack else ""
    return ".".join(filter(None, (owner, node.name)))


def _only_user(node: fx.Node | None) -> fx.Node | None:
    users = [] if node is None else list(node.users)
    return users[0] if len(users) == 1 else None


def _fuses_pool(pool: nn.Module | None, axes: int) -> bool:
    """Return True if `pool` is max pooling whose windows do not overlap, so that nothing is computed twice."""
    if type(pool) is not POOLS[axes - 1] or pool.return_indices:
        return False
    per_axis = lambda value: value if isinstance(value, tuple | list) else (value,) * axes  # noqa: E731
    extents = [d * (k - 1) + 1 for d, k in zip(per_axis(pool.dilation), per_axis(pool.kernel_size), strict=True)]
    return all(stride >= extent for stride, extent in zip(per_axis(pool.stride), extents, strict=True))
