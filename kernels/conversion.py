"""A copy of any torch model on our layers, with what can be fused, fused.

Layers change their class and nothing else, since ours subclass torch's: parameters, buffers, hooks and names stay. What
is fused is found in the graphs that torch.fx traces, once for training and once for evaluation, and stands in the calls
of these graphs alone. A part of the model whose trace would not do all that its own code does keeps that code, and the
parts in it get graphs of their own.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from kernels import layers, torch_fallback
from kernels.checks import DTYPES
from kernels.converted import LAYERS, Converted, Graph, Source, converted_class
from kernels.fusion import CONVOLUTIONS, HEADS, Passes
from kernels.tracing import Trace, Tracer, arguments_of, describe

OURS = tuple(getattr(layers, name) for name in layers.__all__)
MOST_OPTIONAL = 4
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
OWN = ("forward", "_conv_forward", "activation", "pool")  # what a layer of torch has from its class, or not at all


@dataclass
class Report:
    """What `convert` did, each by the name of the layer.

    Args:
        replaced: layers and functions that are ours now, and of what type. They leave to torch what we do not take,
            as integers.
        fused: layers and functions with what follows them in the same kernel.
        left: layers that are torch's still, and why.
        untraced: parts that keep their own code, and why; the parts in these are traced by themselves. The whole model
            has the name "".
    """

    replaced: dict[str, str] = field(default_factory=dict)
    fused: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    untraced: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} replaced, {len(self.fused)} fused, {len(self.left)} left"]
        for title in ("replaced", "fused", "left", "untraced"):
            lines += [f"  {title} {name or 'the model'}: {text}" for name, text in getattr(self, title).items()]
        return "\n".join(lines)


def convert(module: nn.Module, *, fold_batch_norm: bool = False) -> nn.Module:
    """Copy `module`, with its layers replaced by ours; the module itself is not changed.

    Convolutions, transposed convolutions, linear, pooling and batch-norm layers are replaced, as are calls of
    torch.nn.functional by these names; tensors that we do not take, they leave to torch. What follows a convolution, a
    linear layer or a batch norm is fused into it: the sum with a residual, ReLU, and after a convolution max pooling
    whose windows do not overlap.

    What is fused comes apart where it has to: a part that is replaced, hooked or put in another mode later on runs as
    it would in the module, and so do calls with other arguments than were traced. Only new values of attributes do not
    show, where the code asks for them to decide what to do: set these first. `kernels.tracing` says what is not traced.

    Args:
        fold_batch_norm: for evaluation, multiply each batch norm into the convolution before it. The state_dict then
            lacks the keys of the batch norms.

    Returns:
        The copy, an instance of the class of `module`, with the attribute `report`.

    Raises:
        TypeError: for what is no module.
        ValueError: the module cannot be copied, or folding was asked of one that is in training mode or cannot be
            traced.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"convert: module must be a torch.nn.Module, got {type(module).__name__}")
    if fold_batch_norm and module.training:
        raise ValueError("convert: fold_batch_norm=True needs a module in evaluation mode: call module.eval() first")
    if fold_batch_norm and isinstance(module, Converted):
        raise ValueError("convert: fold_batch_norm=True needs the original module, not a converted one")
    model = _copy(module)
    if isinstance(model, Converted):
        return model
    conversion = _Conversion(model, fold_batch_norm)
    conversion.replace_layers()
    conversion.convert("", model)
    if not isinstance(model, (Converted, fx.GraphModule)) and not _stays_whole(model):
        with contextlib.suppress(TypeError):  # a class that refuses subclasses
            model.__class__ = converted_class(type(model))
    model.report = conversion.report
    return model


def _copy(module: nn.Module) -> nn.Module:
    """Return a deep copy, in which tensors that a layer computes before each call are mere values.

    Raises:
        ValueError: it cannot be copied.
    """
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:  # by weight_norm, spectral_norm or pruning
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(module, memo)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"convert: module cannot be copied by copy.deepcopy: {describe(error)}") from error


class _Conversion:
    """The conversion of one model."""

    def __init__(self, model: nn.Module, folds: bool) -> None:
        self.model, self.folds, self.report = model, folds, Report()
        self.visited: set[nn.Module] = set()

    def replace_layers(self) -> None:
        for name, layer in self.model.named_modules():
            if type(layer) not in LAYERS:
                continue
            odd = [f"{p.dtype} is not supported" for p in layer.parameters() if p.dtype not in DTYPES]
            odd += [f"{p.layout} is not supported" for p in layer.parameters() if p.layout != torch.strided]
            odd += [f"it has {own!r} of its own" for own in OWN if own in vars(layer)]
            if odd:
                self.report.left[name] = f"{type(layer).__name__}: {odd[0]}"
                continue
            layer.__class__ = LAYERS[type(layer)]
            if isinstance(layer, HEADS):
                layer.activation = None
            if isinstance(layer, (*CONVOLUTIONS, layers.Linear)):
                layer.pool = None
            layer.functional = getattr(torch_fallback, layer.functional.__name__)
            layer.__module__ = "torch.nn"  # by which torch.fx knows that a layer stays whole in a graph
            self.report.replaced[name] = type(layer).__name__

    def convert(self, name: str, part: nn.Module) -> None:
        """Give `part` its graphs, or if it has none, the parts in it theirs."""
        if part in self.visited or type(part) in OURS or isinstance(part, Converted):
            return
        self.visited.add(part)
        children = {f"{name}.{child}".lstrip("."): layer for child, layer in part.named_children()}
        if isinstance(part, fx.GraphModule):
            self.report.untraced[name] = "it is a GraphModule: convert the model that it was traced from"
            children = {}
        elif _stays_whole(part):
            self._leave(name, part)
            children = {}
        elif not isinstance(part, CONTAINERS):
            traces = self._trace(name, part)
            sources = {key: self._run_passes(name, part, trace) for key, trace in traces.items()}
            graphs = {key: Graph(part, source) for key, source in sources.items() if source is not None}
            if graphs:
                part.__class__ = converted_class(type(part))
                vars(part).update(_graphs=graphs, _folded=self.folds)
            whole = {node.target for t in traces.values() for node in t.graph.nodes if node.op == "call_module"}
            if any((mode, ()) not in traces for mode in self._modes()) or _optional_arguments(type(part)):
                whole |= {child for child, _ in part.named_children()}
            children = {f"{name}.{child}".lstrip("."): part.get_submodule(child) for child in sorted(whole)}
            if not children and not traces:
                self._leave(name, part)
        for child, layer in children.items():
            self.convert(child, layer)

    def _modes(self) -> tuple[bool, ...]:
        return (False,) if self.folds else (True, False)

    def _trace(self, name: str, part: nn.Module) -> dict[tuple[bool, tuple[str, ...]], Trace]:
        """Return traces of `part` by mode, training (True) or evaluation, and by arguments that are not left out."""
        traces = {}
        whole, modes = part.training, [(layer, layer.training) for layer in part.modules()]
        for mode, given in itertools.product(self._modes(), self._choices(type(part))):
            try:
                converted_class(type(part))
                if self.folds and arguments_of(type(part))[1]:  # with which its code may go other ways
                    raise ValueError("its forward has optional arguments")
                for layer, was in modes:
                    layer.training = mode if was == whole else not mode
                traces[mode, given] = Tracer(OURS, given).trace_part(part)
            except Exception as error:  # tracing runs the model's own code, which may raise anything
                if not given:
                    self.report.untraced[name] = f"torch.fx cannot trace it: {describe(error)}"
                if self.folds and not name:
                    raise ValueError(f"convert: fold_batch_norm=True, but {self.report.untraced[name]}") from error
            finally:
                for layer, was in modes:
                    layer.training = was
        return traces

    def _choices(self, kind: type[nn.Module]) -> list[tuple[str, ...]]:
        """Return which arguments with a default to trace as given: none, each by itself, and all."""
        optional = _optional_arguments(kind)
        return list(dict.fromkeys([(), *((name,) for name in optional), optional]))

    def _run_passes(self, name: str, part: nn.Module, trace: Trace) -> Source | None:
        """Return the source of the trace with what can be fused fused; None where nothing was there to do."""
        passes = Passes(part, trace.graph)
        if self.folds and not name:
            passes.fold({layer for kept in trace.kept for layer in part.get_submodule(kept).modules()})
        passes.replace_functions()
        passes.drop_identities()
        passes.fuse()
        trace.graph.lint()
        for record in ("replaced", "fused"):
            changed = getattr(passes.changes, record)
            getattr(self.report, record).update({f"{name}.{key}".lstrip("."): text for key, text in changed.items()})
        if not passes.changes.replaced and not passes.changes.fused:
            return None
        return Source.of(trace, passes.changes.merged)

    def _leave(self, name: str, layer: nn.Module) -> None:
        """Name a layer that runs and is none of ours."""
        if name in self.report.left:
            return
        reason = ""
        kinds = [kind.__name__ for kind in LAYERS if isinstance(layer, kind)]
        if parametrize.is_parametrized(layer):
            reason = ": it is parametrized"
        elif type(layer).__module__.startswith("torch.ao"):
            reason = ": it is quantised"
        elif kinds:
            reason = f", a subclass of {kinds[0]} with its own code"
        self.report.left[name] = f"{type(layer).__name__} has no equivalent{reason}"


def _optional_arguments(kind: type[nn.Module]) -> tuple[str, ...]:
    """Return the names of the arguments with a default of a class's forward, if there are few enough to try."""
    try:
        names = tuple(arguments_of(kind)[1])
    except ValueError:  # cannot be traced
        return ()
    return names if len(names) <= MOST_OPTIONAL else ()


def _stays_whole(part: nn.Module) -> bool:
    """Return True for layers of torch and ours, which have no graph."""
    kind = type(part)
    if kind in OURS:
        return True
    return kind.__module__.startswith(("torch.nn.", "torch.ao.", "torch.jit.")) and not isinstance(
        part, (nn.Sequential, *CONTAINERS)
    )
