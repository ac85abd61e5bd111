"""The layers of a network in the order in which they run, found by running it on tensors without memory.

It runs twice, on PyTorch's operations. In training mode every tensor is followed: which layer made it, what it reads of
the input, and whether the backward pass will need it. In evaluation mode it is seen what prediction does without.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
from experiments.summary.operations import Field, Step, field_after, flops_of, name_of, step_of, tensors_in
from experiments.summary.receptive import SELF, windowed
from kernels.layers import LocalConv2d, TableConv2d, TiledConv2d
from kernels.shape import Window

BATCH = 2  # batch norm has no variance of one value
CONVOLUTIONS = ("convolution", "transposed convolution")


@dataclass(frozen=True)
class Row:
    """A layer, for one image.

    Args:
        name: in the network's state_dict; of what no layer does, that of the module which does it.
        kind: class of the layer, or operation, and what is fused into it.
        input, output: (C, *grid), or (F,).
        window: over the grid, of a convolution or pooling; None without.
        field, jump: receptive field and steps between neighbours', in input positions along each axis; None where the
            layer looks at all of the input, or at what is no window of it.
        fan_in: least and most weights of a kernel: those that go into one output, or, where the convolution is
            transposed, into a channel of the output; None without weights.
        bias: whether a kernel has one.
        weights, biases: parameters that no layer before it uses.
        connections: products of a weight and an input.
        flops: that PyTorch's formulas count, 2 for each product that is computed.
        activations: bytes of the output that prediction makes; 0 where it is a view of the input or written over it.
        kept: bytes that the layer makes in training and keeps for the backward pass.
        training_only: whether prediction leaves the layer out.
    """

    name: str
    kind: str
    input: tuple[int, ...]
    output: tuple[int, ...]
    window: Window | None = None
    field: tuple[int, ...] | None = None
    jump: tuple[float, ...] | None = None
    fan_in: tuple[int, int] | None = None
    bias: bool = False
    weights: int = 0
    biases: int = 0
    connections: int = 0
    flops: int = 0
    activations: int = 0
    kept: int = 0
    training_only: bool = False


def layers_of(network: nn.Module, input_shape: Sequence[int]) -> list[Row]:
    """Every layer of a network for one image of `input_shape` (C, *grid), the first row the image itself.

    Raises:
        ValueError: the network does not take such images.
    """
    trained = _keyed(_run(network, input_shape, training=True))
    predicted = dict(_keyed(_run(network, input_shape, training=False)))
    rows = []
    for key, row in trained:
        counterpart = predicted.get(key)
        activations = row.activations if counterpart is None else counterpart.activations
        rows.append(replace(row, activations=activations, training_only=counterpart is None))
    return rows


def _keyed(rows: Sequence[Row]) -> list[tuple[tuple[str, str, int], Row]]:
    """Rows by name, kind and which of its calls it is."""
    calls: Counter[tuple[str, str]] = Counter()
    found = []
    for row in rows:
        calls[row.name, row.kind] += 1
        found.append(((row.name, row.kind, calls[row.name, row.kind]), row))
    return found


def _run(network: nn.Module, input_shape: Sequence[int], training: bool) -> list[Row]:
    with ExitStack() as stack:
        mode = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        tensors = (*network.parameters(), *network.buffers())
        memo: dict[int, Any] = {id(tensor): mode.from_tensor(tensor) for tensor in tensors}
        copied = copy.deepcopy(network, memo).train(training)  # what is shared stays so
        recorder = _Recorder(network, copied, stack)
        images = torch.empty(BATCH, *input_shape)
        recorder.start(images)
        stack.enter_context(torch.set_grad_enabled(training))
        stack.enter_context(kernels.use_backend("torch"))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(recorder.keep, lambda tensor: tensor))
        stack.enter_context(recorder)
        copied(images)
    return [call.row() for call in recorder.calls]


class _Call:
    """One run of a layer, or of operations one after another that no layer does."""

    def __init__(self, name: str, layer: nn.Module | None, inputs: list[Tensor]) -> None:
        self.name, self.layer, self.inputs = name, layer, inputs
        self.kinds = [] if layer is None else [type(layer).__name__]
        if layer is not None and len(inputs) > 1 and hasattr(layer, "activation"):
            self.kinds.append("residual")
        self.steps: list[Step] = []
        self.output: Tensor | None = None
        self.field: Field = None
        self.fan_in: tuple[int, int] | None = None
        self.weights = self.biases = self.flops = self.kept = 0
        self.made: set[int] = set()  # storages

    def row(self) -> Row:
        output = self.inputs[0] if self.output is None else self.output
        main = next((step for step in self.steps if step.kind in CONVOLUTIONS or "pool" in step.kind), None)
        fan_in, connections = self.fan_in, self.flops // 2 // BATCH
        if isinstance(self.layer, TableConv2d):  # it is run as a dense convolution
            channels = self.layer.table.sum(1) * prod(self.layer.kernel_size)
            fan_in = int(channels.min()), int(channels.max())
            connections = self.layer.weight.numel() * prod(output.shape[2:])
        return Row(
            self.name, " + ".join(self.kinds), tuple(self.inputs[0].shape[1:]), tuple(output.shape[1:]),
            window=None if main is None else _padded(main.window, self.steps, self.inputs[0].dim() - 2),
            field=None if self.field is None else tuple(reach.size for reach in self.field),
            jump=None if self.field is None else tuple(float(reach.jump) for reach in self.field),
            fan_in=fan_in, bias=self.biases > 0 or getattr(self.layer, "bias", None) is not None,
            weights=self.weights, biases=self.biases, connections=connections, flops=self.flops // BATCH,
            activations=output.nbytes // BATCH if _storage(output) in self.made else 0,
            kept=self.kept // BATCH,
        )  # fmt: skip


class _Recorder(TorchDispatchMode):
    """Follows every operation while it is entered."""

    def __init__(self, network: nn.Module, copied: nn.Module, stack: ExitStack) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self._modules: list[str] = []
        self._layer: _Call | None = None
        self._fields: dict[tuple[int, tuple[int, ...]], Field] = {}  # by storage and shape: of views, too
        self._makers: dict[int, _Call] = {}
        self._held: list[torch.UntypedStorage] = []  # so that none takes the place of another
        self._kept: set[int] = set()
        self._parameters = {_storage(tensor): name for name, tensor in copied.named_parameters()}
        for (name, module), (_, mirrored) in zip(network.named_modules(), copied.named_modules(), strict=True):
            stack.callback(mirrored.register_forward_pre_hook(self._entering(name, module), with_kwargs=True).remove)
            stack.callback(mirrored.register_forward_hook(self._leaving(module)).remove)

    def start(self, images: Tensor) -> None:
        self.calls.append(_Call("", None, [images]))
        self.calls[0].kinds = ["INPUT"]
        self._note(images, (SELF,) * (images.dim() - 2), self.calls[0])
        self.calls[0].output, self.calls[0].field = images, (SELF,) * (images.dim() - 2)

    def keep(self, tensor: Tensor) -> Tensor:
        storage = _storage(tensor)
        if storage in self._makers and storage not in self._kept:
            self._kept.add(storage)
            self._makers[storage].kept += tensor.untyped_storage().nbytes()
        return tensor

    def __torch_dispatch__(
        self, operator: OpOverload, types: Any, arguments: Sequence[Any] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        keywords = keywords or {}
        result = operator(*arguments, **keywords)
        if tensors_in(result):
            self._follow(operator, arguments, keywords, result)
        return result

    def _follow(self, operator: OpOverload, arguments: Sequence[Any], keywords: dict[str, Any], result: Any) -> None:
        given, outputs = tensors_in((arguments, keywords)), tensors_in(result)
        inputs = [(tensor, self._fields[key]) for tensor in given if (key := _key(tensor)) in self._fields]
        step = step_of(operator, arguments, keywords, outputs[0]) if inputs else None
        field = field_after(operator, step, inputs, outputs[0]) if inputs else None
        call = self._layer
        if call is None and inputs and not operator.is_view:
            call = self._function(operator, step, [tensor for tensor, _ in inputs])
        if call is not None:
            flops = flops_of(operator, arguments, keywords, result)
            call.flops += flops
            self._count(call, given)
            if step is not None:
                call.steps.append(step)
            if flops and call.fan_in is None:
                call.fan_in = _fan_in(step, given)
            if call.layer is not None:
                call.kinds += _fused(call, name_of(operator), step)
            elif not operator.is_view:
                call.output, call.field = outputs[0], field
        if inputs:
            for tensor in outputs:
                self._note(tensor, field, call)

    def _function(self, operator: OpOverload, step: Step | None, inputs: list[Tensor]) -> _Call:
        """The call that an operation outside of layers belongs to: the last one, where it goes on with its output."""
        last, name = self.calls[-1], name_of(operator).strip("_")
        follows = last.layer is None and len(self.calls) > 1 and len(inputs) == 1 and inputs[0] is last.output
        computes = name_of(operator) in ("convolution", "mm", "addmm", "bmm") or (
            step is not None and step.kind != "padding"
        )
        kind = name if step is None else step.kind
        if follows and not computes:
            last.kinds.append(kind)
            return last
        module = self._modules[-1] if self._modules else ""
        self.calls.append(_Call(module, None, inputs))
        self.calls[-1].kinds = [kind]
        return self.calls[-1]

    def _count(self, call: _Call, given: list[Tensor]) -> None:
        """Give a call the parameters that it is the first to use."""
        for tensor in given:
            name = self._parameters.pop(_storage(tensor), None)
            if name is not None and name.endswith("bias"):
                call.biases += tensor.numel()
            elif name is not None:
                call.weights += tensor.numel()

    def _note(self, tensor: Tensor, field: Field, call: _Call | None) -> None:
        storage = _storage(tensor)
        self._fields[_key(tensor)] = field
        if call is not None and storage not in self._makers:
            self._makers[storage] = call
            self._held.append(tensor.untyped_storage())
            call.made.add(storage)

    def _entering(self, name: str, module: nn.Module) -> Any:
        def enter(mirrored: nn.Module, arguments: Any, keywords: Any) -> None:
            self._modules.append(name)
            if _is_layer(module):
                inputs = [tensor for tensor in tensors_in((arguments, keywords)) if tensor.is_floating_point()]
                self._layer = _Call(name, module, inputs)
                self.calls.append(self._layer)

        return enter

    def _leaving(self, module: nn.Module) -> Any:
        def leave(mirrored: nn.Module, arguments: Any, result: Any) -> None:
            self._modules.pop()
            call = self._layer
            if call is None or call.layer is not module:
                return
            output = call.output = tensors_in(result)[0]
            if isinstance(module, TiledConv2d | LocalConv2d):
                self._resolve(call, module, output)
            call.field = self._fields.get(_key(output))
            self._layer = None

        return leave

    def _resolve(self, call: _Call, layer: TiledConv2d | LocalConv2d, output: Tensor) -> None:
        """Say what a layer does whose PyTorch twin is not made of operations with windows."""
        x = call.inputs[0]
        window = layer.window
        call.steps = [Step("convolution", window, windowed(window, x.shape[2:], output.shape[2:]))]
        fan_in = layer.in_channels // window.groups * window.taps
        call.fan_in, call.flops = (fan_in, fan_in), 2 * fan_in * output.numel()
        field = self._fields[_key(x)]
        if field is not None:
            field = tuple(reach.through(sight) for reach, sight in zip(field, call.steps[0].sights, strict=True))
        self._note(output, field, call)


def _is_layer(module: nn.Module) -> bool:
    """Whether a module has none inside that are called: the pooling of a convolution is fused into it."""
    return all(child is getattr(module, "pool", None) for child in module.children())


def _fused(call: _Call, name: str, step: Step | None) -> list[str]:
    """What an operation inside a layer adds to what the layer's class says."""
    layer = call.layer
    if name.rstrip("_") == "relu" and not isinstance(layer, nn.ReLU):
        return ["ReLU"]
    pool = getattr(layer, "pool", None)
    if step is not None and step.kind == "max pool" and pool is not None:
        return [f"{step.kind} {sides(step.window.kernel)} every {sides(step.window.stride)}"]
    if name == "max" and pool is not None:
        return [f"maxout of {pool.pool_size}"]
    return []


def _fan_in(step: Step | None, given: list[Tensor]) -> tuple[int, int]:
    if step is None:  # the second factor of a product [K, N] is the last
        return (given[-1].shape[-2],) * 2
    weight = given[1]
    count = prod(weight.shape[1:]) if step.kind == "convolution" else weight[:, 0].numel() // step.window.groups
    return count, count


def _padded(window: Window, steps: Sequence[Step], axes: int) -> Window:
    """A window on so many axes, with what pads the map before it, or crops it after a transposed convolution.

    PyTorch pools a line in a plane of it.
    """
    padding = window.padding
    for step in steps:
        if step.kind == "padding" and step.window.axes == window.axes:
            padding = tuple(
                (before + abs(b), after + abs(a))
                for (before, after), (b, a) in zip(padding, step.window.padding, strict=True)
            )
    ours = slice(max(window.axes - axes, 0), None)
    kernel, stride, dilation = (each[ours] for each in (window.kernel, window.stride, window.dilation))
    return replace(window, kernel=kernel, stride=stride, padding=padding[ours], dilation=dilation)


def sides(extents: Sequence[int]) -> str:
    """3x3, and 3 where there is one axis."""
    return "x".join(map(str, extents))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _key(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    return _storage(tensor), tuple(tensor.shape)
