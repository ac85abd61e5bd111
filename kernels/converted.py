"""The class of a part of a model that was traced, and its graphs, each of which holds as long as the part does."""

from __future__ import annotations

import copy
import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from kernels import layers
from kernels.fusion import POOLS
from kernels.layers.convolution import max_pool_arguments
from kernels.tracing import Trace, arguments_of, hooked

LAYERS = {getattr(nn, name): getattr(layers, name) for name in layers.__all__ if hasattr(nn, name)}


@dataclass(frozen=True)
class Source:
    """A graph in a form that can be copied and pickled, and for which parts it holds.

    Attributes:
        code: of a function, as torch.fx writes it.
        objects, modules: what the code calls by which names.
        tensors: True if its arguments must be tensors.
        given: arguments with a default that it takes nevertheless.
        inlined: parts whose code it repeats.
        merged: layers whose call is another one's, or does more than the layer.
    """

    code: str
    objects: dict[str, Any]
    modules: dict[str, str]
    tensors: bool
    given: tuple[str, ...]
    inlined: list[str]
    merged: set[str]

    @staticmethod
    def of(trace: Trace, merged: set[str]) -> Source:
        written = trace.graph.python_code("self")
        modules = {name: value.__name__ for name, value in written.globals.items() if isinstance(value, ModuleType)}
        objects = {name: value for name, value in written.globals.items() if name not in modules}
        return Source(written.src, objects, modules, trace.tensors, trace.given, trace.inlined, merged)

    def compile(self) -> Callable[..., Any]:
        scope = self.objects | {name: importlib.import_module(module) for name, module in self.modules.items()}
        exec(self.code, scope)
        return scope["forward"]


class Graph:
    """The compiled code of a graph of `part`, and what must be so for it to stand for the own code of `part`."""

    def __init__(self, part: nn.Module, source: Source) -> None:
        self.run, self.source = source.compile(), source
        self.inlined = [part.get_submodule(name) for name in source.inlined]
        self.unhooked = [*self.inlined[1:], *(part.get_submodule(name) for name in sorted(source.merged))]
        self.places = [
            (part.get_submodule(name.rpartition(".")[0])._modules, name.rpartition(".")[2], part.get_submodule(name))
            for name in (*source.inlined[1:], *sorted(source.merged))
        ]
        self.children = [(layer._modules, len(layer._modules)) for layer in self.inlined]
        self.pools = [(layer, _pooling_of(layer)) for layer in self.unhooked if isinstance(layer, POOLS)]

    def stands(self, training: bool) -> bool:
        """Return True if no part was replaced, added, hooked or put in another mode since the graph was traced.

        Nor given a forward of its own, nor its pooling changed.
        """
        for modules, name, module in self.places:
            if modules.get(name) is not module:
                return False
        for modules, number in self.children:
            if len(modules) != number:
                return False
        for layer in self.unhooked:
            if hooked(layer) or "forward" in layer.__dict__:
                return False
        for layer, pooling in self.pools:
            if _pooling_of(layer) != pooling:
                return False
        for part in self.inlined:
            if part.training is not training:
                return False
        return not _has_any_global_hook()

    def takes(self, inputs: Sequence[Any]) -> bool:
        """Return True if the graph was traced for such arguments, of which none may be None or decide anything."""
        for value in inputs:
            if isinstance(value, Tensor):
                continue
            several = isinstance(value, list | tuple) and all(isinstance(each, Tensor) for each in value)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if self.source.tensors or not (several or number):
                return False
        return True


def _pooling_of(pool: nn.Module) -> tuple[Any, ...]:
    return pool.return_indices, *max_pool_arguments(pool).values()


class Arguments:
    """The arguments of a class's forward."""

    def __init__(self, kind: type[nn.Module]) -> None:
        try:
            self.required, self.optional = arguments_of(kind)
        except ValueError:  # no graph
            self.required, self.optional = [], {}

    def given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[str, ...], Sequence[Any]] | None:
        """Return which arguments with a default have another value, and the values of these and of the required ones.

        Returns:
            None for what is no call of the function.
        """
        if not kwargs and len(args) == len(self.required):
            return (), args
        values = dict(zip((*self.required, *self.optional), args, strict=False)) | kwargs
        if len(values) != len(args) + len(kwargs) or not values.keys() <= {*self.required, *self.optional}:
            return None
        given = tuple(name for name, default in self.optional.items() if values.get(name, default) is not default)
        names = (*self.required, *given)
        return (given, [values[name] for name in names]) if values.keys() >= {*names} else None


class Converted:
    """The base that a traced part of a model gets besides its own class: its forward is the code of a graph.

    There is one for training and one for evaluation, and for each choice of arguments with a default that are given.

    Where the graph does not stand for what the part has become since, or for the arguments of a call, the part runs its
    own code, with nothing fused.
    """

    _kind: type[nn.Module]

    def train(self, mode: bool = True) -> Any:
        if mode and self.__dict__.get("_folded"):
            raise RuntimeError("its batch norms were folded into its convolutions: this model is for evaluation only")
        return super().train(mode)

    def __reduce_ex__(self, protocol: int) -> tuple[Any, ...]:
        """The class is made when it is needed, and functions made from text cannot be pickled."""
        graphs = self.__dict__.get("_graphs", {})
        sources = {key: graph.source for key, graph in graphs.items() if graph.stands(self.training)}
        return _rebuild, (self._kind,), self.__dict__ | {"_graphs": sources}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._graphs = {key: Graph(self, source) for key, source in self._graphs.items()}

    def __prepare_scriptable__(self) -> nn.Module:
        """Return a copy on torch's own layers for torch.jit.script, which cannot compile ours."""
        model = copy.deepcopy(self)
        for part in model.modules():
            added: set[str] = set()
            if isinstance(part, Converted):
                part.__class__, added = part._kind, {"report", "_graphs", "_folded"}
            elif type(part) in LAYERS.values() and "functional" in vars(part):  # and no layer that was ours before
                part.__class__ = next(theirs for theirs, ours in LAYERS.items() if ours is type(part))
                added = {"activation", "pool", "functional", "__module__"}
            for name in added & vars(part).keys():
                delattr(part, name)
        return model


@functools.cache
def converted_class(kind: type[nn.Module]) -> type:
    arguments = Arguments(kind)

    @functools.wraps(kind.forward)  # for whoever asks for its arguments
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        graphs = self.__dict__.get("_graphs")  # a slice of a Sequential has none
        call = arguments.given(args, kwargs) if graphs else None
        if call is not None:
            graph = graphs.get((self.training, call[0]))
            if graph is not None and graph.takes(call[1]) and graph.stands(self.training):
                return graph.run(self, *call[1])
        return kind.forward(self, *args, **kwargs)

    forward.__code__ = forward.__code__.replace()  # torch.compile counts what it compiles for one code, up to a limit
    names = {"forward": forward, "__module__": kind.__module__, "_kind": kind}
    return type(f"Converted{kind.__name__}", (Converted, kind), names)


def _rebuild(kind: type[nn.Module]) -> nn.Module:
    converted = converted_class(kind)
    return converted.__new__(converted)
