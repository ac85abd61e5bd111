"""Training by CUDA graphs: the loss, its gradients and the optimizer's update are each replayed as a whole.

Everything between them runs as it always does: metrics, logging, accumulation, scaling and clipping of gradients,
schedules, checkpoints. A graph is trusted only after its replay has given, bit for bit, what the step gives uncaptured.
"""

from __future__ import annotations

import functools
import random
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_modules.cuda_graph import OPTION, Graph, Results, capture, copies, difference, restore
from lightning_modules.module import NetworkModule
from lightning_modules.reproducibility import random_state, restore_random_state

CHECKED = 2  # replays of a new graph that are compared: of the captured batch, and of another

State = tuple[list[Tensor], dict[str, Any]]


class CapturedLoss:
    """The `compute` of a module as two CUDA graphs, of the forward and of the backward pass.

    Like `compute` it can be differentiated, once. It captures the first batch, and a larger one that comes later.
    Batches of other shapes run uncaptured, and so does everything without gradients. A number that Python changes
    later, such as a dropout rate, stays in a graph as it was.

    Args:
        module: a graph is captured again where its weights have moved in memory.
        graph: the class that captures and replays.

    Raises:
        ValueError: when called, the step cannot be captured, or a replay differs from the uncaptured step.
    """

    def __init__(self, module: NetworkModule, graph: type[Graph] = Graph) -> None:
        self.replays = 0
        self._compute = module.compute
        self._device = module.device
        self._graph = graph
        self._parameters = dict(module.named_parameters())
        self._buffers = dict(module.named_buffers())
        self._modules = dict(module.named_modules())
        self._inputs: list[Tensor] = []
        self._shapes: Any = None  # of the captured batch
        self._graphs: tuple[Graph, ...] = ()  # forward and backward

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if not torch.is_grad_enabled():
            return self._compute(*inputs)
        shapes = [(each.shape, each.stride(), each.dtype) for each in inputs]
        is_larger = not self._inputs or inputs[0].numel() > self._inputs[0].numel()
        if is_larger or (shapes == self._shapes and self._constants != self._constants_now()):
            self._shapes, self._graphs = shapes, ()  # frees the memory of earlier graphs
            self._capture(inputs)
        if shapes != self._shapes:
            return self._compute(*inputs)
        restore(self._inputs, inputs)
        if self._unchecked:
            self._check()
        self.replays += 1
        return _Replay.apply(self, *self._trained.values())

    def forward(self) -> list[Tensor]:
        """Replay the forward pass, and return the loss and the other outputs."""
        self._graphs[0].replay()
        return [each.clone() for each in self._graphs[0].results if each is not None]

    def backward(self, loss_gradient: Tensor) -> list[Tensor | None]:
        """Replay the backward pass, and return gradients in memory that the next replay overwrites."""
        gradients = self._graphs[1].results
        for parameter, gradient in zip(self._trained.values(), gradients, strict=True):
            kept = parameter.grad
            if kept is not None and gradient is not None and kept.data_ptr() == gradient.data_ptr():
                parameter.grad = kept.clone()  # accumulated from an earlier batch
        self._loss_gradient.copy_(loss_gradient)
        self._graphs[1].replay()
        return [each if each is None else each.detach() for each in gradients]

    def _constants_now(self) -> list[object]:
        """Return what a graph holds for good, besides shapes.

        Raises:
            ValueError: a parameter is another one than when training started, which the optimizer does not know.
        """
        for prefix, module in self._modules.items():
            for name, parameter in module._parameters.items():
                known = self._parameters.get(f"{prefix}.{name}" if prefix else name, parameter)
                if known is not parameter:
                    raise ValueError(
                        f"{OPTION} needs the parameters that training started with: {prefix}.{name} is new"
                    )
        tensors = (*self._parameters.values(), *self._buffers.values())
        constants: list[object] = [(each.data_ptr(), each.requires_grad) for each in tensors]
        constants += [each.training for each in self._modules.values()]
        return constants + [bool(each._backward_hooks) for each in self._parameters.values()]

    def _capture(self, inputs: Sequence[Tensor]) -> None:
        check_hooks(self._parameters)
        self._inputs = copies(inputs)
        self._constants = self._constants_now()
        self._trained = {name: each for name, each in self._parameters.items() if each.requires_grad}
        self._unchecked = CHECKED
        state = self._state()

        def step() -> None:
            self._loss_gradient = torch.ones_like(self._run_forward()[0])
            self._run_backward()

        self._graph.warm_up(step)
        forward = capture(self._graph, self._run_forward)
        self._graphs = (forward, capture(self._graph, self._run_backward, forward))
        self._set_state(state)

    def _run_forward(self) -> list[Tensor]:
        with torch.enable_grad():
            self._outputs: tuple[Tensor, ...] = self._compute(*self._inputs)
        torch.clear_autocast_cache()  # each run casts the weights itself: a graph must not read what another has cast
        return [each.detach() for each in self._outputs]

    def _run_backward(self) -> list[Tensor | None]:
        trained = tuple(self._trained.values())
        with torch.autocast(self._device.type, enabled=False):
            gradients = torch.autograd.grad(self._outputs[0], trained, self._loss_gradient, allow_unused=True)
        self._outputs = ()  # else later gradients would be accumulated on the stream of the capture
        places = [each.data_ptr() if each is not None else None for each in gradients]
        return [  # parameters that share a gradient do not share its memory
            each.clone() if each is not None and places.index(place) < number else each
            for number, (each, place) in enumerate(zip(gradients, places, strict=True))
        ]

    def _check(self) -> None:
        """Compare a replay with an uncaptured step from the same state, and leave that state.

        Raises:
            ValueError: they differ, or a replay would repeat random numbers.
        """
        state, draws, numbers = self._state(), host_draws(self._device), self._numbers()
        self._loss_gradient.fill_(1)

        def results(forward: Callable[[], list[Tensor]], backward: Callable[[], Results]) -> dict[str, Tensor | None]:
            self._set_state(state)
            named: dict[str, Tensor | None] = {f"output {number}": each for number, each in enumerate(forward())}
            gradients = zip(self._trained, backward(), strict=True)
            named |= {f"the gradient of {name}": gradient for name, gradient in gradients}
            generators = random_state(self._device)
            named |= {f"the random numbers of {name}": generators[name] for name in ("torch", "cuda")}
            return named | {name: buffer.clone() for name, buffer in self._buffers.items()}

        try:
            expected = results(self._run_forward, self._run_backward)
            if host_draws(self._device) != draws:
                raise ValueError(f"{OPTION} needs a network that draws its random numbers on the GPU, not on the CPU")
            changed = [name for name, number in self._numbers().items() if number != numbers.get(name)]
            name = difference(expected, results(self.forward, lambda: self.backward(self._loss_gradient)))
            if name is not None:
                if changed:
                    raise ValueError(
                        f"{OPTION} is wrong for a network that counts in Python: {name} differs between replay "
                        f"and step, which changes {changed[0]}; a graph can change a buffer"
                    )
                if difference(expected, results(self._run_forward, self._run_backward)) is not None:
                    advice = "which is not deterministic: use --trainer.deterministic true"
                    raise ValueError(f"{OPTION} cannot be checked: {name} differs between replay and step, {advice}")
                raise ValueError(f"{OPTION} is wrong for this network: {name} differs between replay and step")
        finally:
            self._set_state(state)
        self._unchecked -= 1

    def _numbers(self) -> dict[str, float]:
        """Return the numbers that modules hold in Python, by name."""
        return {
            f"{prefix}.{name}": value
            for prefix, module in self._modules.items()
            for name, value in vars(module).items()
            if isinstance(value, int | float)
        }

    def _state(self) -> State:
        """Return what a step changes besides gradients: buffers and random number generators."""
        return copies(list(self._buffers.values())), random_state(self._device)

    def _set_state(self, state: State) -> None:
        restore(list(self._buffers.values()), state[0])
        restore_random_state(state[1], self._device)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, captured: CapturedLoss, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.captured = captured
        loss, *others = captured.forward()
        ctx.mark_non_differentiable(*others)
        return loss, *others

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *ctx.captured.backward(loss_gradient))


class CapturedUpdate:
    """The `step` of an optimizer, whose update is a CUDA graph for as long as its learning rate and the like stay.

    After a change of one of them the next update runs uncaptured, and the one after is captured. So a schedule by
    epochs has most updates replayed, and a schedule by steps none.

    Raises:
        ValueError: when called, the update cannot be captured, or a replay differs from the uncaptured update.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, graph: type[Graph] = Graph) -> None:
        self.replays = 0
        self.uncaptured = optimizer.step
        self._optimizer = optimizer
        self._graph = graph
        self._constants: Any = None
        self._captured: Graph | None = None

    def as_method(self) -> types.MethodType:
        """Return this as a method of the optimizer: a schedule that comes later wraps its function."""

        @functools.wraps(self.uncaptured)
        def step(optimizer: torch.optim.Optimizer, closure: Callable[[], Any] | None = None) -> Any:
            return self(closure)

        return types.MethodType(step, self._optimizer)

    @staticmethod
    def can_capture(optimizer: torch.optim.Optimizer) -> bool:
        """True if nothing that the update reads on the CPU changes from step to step."""
        has_hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
        is_sgd = type(optimizer) is torch.optim.SGD
        return not has_hooks and all(group.get("capturable", is_sgd) for group in optimizer.param_groups)

    def __call__(self, closure: Callable[[], Any] | None = None) -> Any:
        with torch.enable_grad():
            loss = closure() if closure else None
        groups = self._optimizer.param_groups
        self._parameters = [each for group in groups for each in group["params"] if each.grad is not None]
        options = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        constants = options, [each.data_ptr() for each in self._parameters]
        if constants != self._constants:
            self._constants, self._captured = constants, None
            self.uncaptured()
        elif self._captured is None:
            self._capture()
        else:
            for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
                if parameter.grad.data_ptr() != gradient.data_ptr():  # of a batch that was not replayed
                    gradient.copy_(parameter.grad)
            self._captured.replay()
            self.replays += 1
        return loss

    def _capture(self) -> None:
        """Capture the update, compare its replay with the uncaptured one, and take the latter.

        Raises:
            ValueError: they differ.
        """
        self._gradients = [each.grad for each in self._parameters]
        state = [value for each in self._parameters for value in self._optimizer.state[each].values()]
        tensors = [*self._parameters, *(each for each in state if isinstance(each, Tensor))]
        before = copies(tensors)
        self._captured = capture(self._graph, self._run)
        restore(tensors, before)
        self._captured.replay()
        replayed = dict(enumerate(copies(tensors)))
        restore(tensors, before)
        self.uncaptured()
        if difference(dict(enumerate(tensors)), replayed) is not None:
            name = type(self._optimizer).__name__
            raise ValueError(f"{OPTION} is wrong for {name}: weights differ between a replayed update and an update")

    def _run(self) -> Results:
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        self.uncaptured()
        return []


class CaptureSteps(pl.Callback):
    """Has a module train by CUDA graphs, with bitwise the results that it has without.

    The update is captured of SGD, and of optimizers that are `capturable`. Of others only the loss and its gradients
    are.

    Args:
        graph: the class that captures and replays.

    Raises:
        ValueError: this training cannot be captured.
    """

    def __init__(self, graph: type[Graph] = Graph) -> None:
        self.graph = graph
        self.loss: CapturedLoss | None = None
        self.update: CapturedUpdate | None = None

    @property
    def replays(self) -> str:
        """The number of batches and of updates that were replayed, in words."""
        batches = self.loss.replays if self.loss else 0
        return f"{batches} batches and {self.update.replays if self.update else 0} updates replayed"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        strategy, device = trainer.strategy, trainer.strategy.root_device.type
        if device != self.graph.device_type:
            raise ValueError(f"{OPTION} needs a GPU, got --trainer.accelerator {device}")
        if not isinstance(strategy, SingleDeviceStrategy):
            raise ValueError(f"{OPTION} needs --trainer.devices 1 and no strategy, got {type(strategy).__name__}")
        if not isinstance(pl_module, NetworkModule):
            raise ValueError(f"{OPTION} needs a NetworkModule, got {type(pl_module).__name__}")
        check_hooks(dict(pl_module.named_parameters()))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, NetworkModule)
        (optimizer,) = trainer.optimizers
        self.loss, self.update = CapturedLoss(pl_module, self.graph), None
        vars(pl_module)["compute"] = self.loss
        # A scaler of gradients hands a fused optimizer other tensors at each step.
        has_scaler = getattr(trainer.precision_plugin, "scaler", None) is not None
        if CapturedUpdate.can_capture(optimizer) and not has_scaler:
            self.update = CapturedUpdate(optimizer, self.graph)
            vars(optimizer)["step"] = self.update.as_method()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        vars(pl_module).pop("compute", None)
        if self.update is not None:
            vars(trainer.optimizers[0])["step"] = self.update.uncaptured

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)


def check_hooks(parameters: Mapping[str, nn.Parameter]) -> None:
    """Refuse hooks on gradients, which would run in the graph and once more after its replay.

    Raises:
        ValueError: a parameter has one.
    """
    for name, parameter in parameters.items():
        if parameter._backward_hooks:
            raise ValueError(f"{OPTION} needs parameters without hooks, got one on {name}")


def host_draws(device: torch.device) -> list[object]:
    """Return the states of the random number generators that a replay does not advance."""
    _, keys, *rest = np.random.get_state()
    states: list[object] = [random.getstate(), np.asarray(keys).tobytes(), *rest]
    return states if device.type == "cpu" else [*states, torch.get_rng_state().numpy().tobytes()]
