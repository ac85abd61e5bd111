"""Stopping a training that has produced NaN or infinity, and saying where it came from."""

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class FiniteLoss(pl.Callback):
    """Stops the training at the first loss that is NaN or infinite, and names the layer where that began.

    Until then it only looks at the loss. Then it repeats the forward pass of the batch, not compiled, and looks at the
    output of each layer; layers that draw random numbers draw others. No checkpoint is written with such weights, so
    that the last one is good.

    Raises:
        ValueError: the loss, or a weight that is to be saved, is not finite.
    """

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch = batch

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        if not loss.isfinite():
            images = self._batch[0]
            with trainer.precision_plugin.train_step_context():
                origin = first_not_finite(pl_module, images) or "all layers gave finite outputs, the loss itself is not"
            raise ValueError(f"the loss is {loss.item()} in {_place(trainer)}: {origin}{_weights(pl_module)}")

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if any(not_finite(checkpoint["state_dict"])):
            raise ValueError(f"the weights are not finite after {_place(trainer)}{_weights(pl_module)}")


@torch.no_grad()
def first_not_finite(module: nn.Module, images: Tensor) -> str | None:
    """The first layer of `module(images)` whose output is not finite, in words; None if there is none."""
    if not images.isfinite().all():
        return "the images of the batch hold such values"
    found: list[str] = []
    handles: list[RemovableHandle] = []
    for name, layer in module.named_modules():

        def look(layer: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
            if not found and any(not tensor.isfinite().all() for tensor in _tensors(output)):
                found.append(f"{name or 'the network'} ({type(layer).__name__}) is the first layer with such an output")

        handles.append(layer.register_forward_hook(look))
    try:
        # What compiles is not imported for this: that takes seconds.
        compiling = "torch._dynamo" in sys.modules
        with torch.compiler.set_stance("force_eager") if compiling else nullcontext():
            module(images)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def not_finite(state: dict[str, Any]) -> Iterator[str]:
    """The names of those tensors that hold NaN or infinity."""
    return (name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all())


def _weights(module: nn.Module) -> str:
    names = list(not_finite(module.state_dict()))
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"; not finite among the weights: {names[0]}{more}" if names else ""


def _place(trainer: pl.Trainer) -> str:
    return f"epoch {trainer.current_epoch}, step {trainer.global_step}"


def _tensors(output: Any) -> Iterator[Tensor]:
    """The floating-point tensors of an output that is a tensor or tuples of them."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, list | tuple):
        for item in output:
            yield from _tensors(item)
