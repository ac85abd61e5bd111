"""Prepare a network for training: have it compiled, and its weights laid out as the kernels read them."""

from typing import Literal, cast

import lightning.pytorch as pl
import torch

from kernels.shape import FORMATS


class CompileNetwork(pl.Callback):
    """Has torch.compile compile the network in place, which leaves the names in checkpoints alone.

    Not before the first step: what shows its layers and its graph must see them.

    Args:
        backend: name of one of torch.compile's; True is TorchInductor.

    Raises:
        ValueError: there is no such backend.
    """

    def __init__(self, backend: str | Literal[True]) -> None:
        self.backend = "inductor" if backend is True else backend
        if self.backend not in torch.compiler.list_backends(exclude_tags=()):
            known = ", ".join(("true", "false", "eager", *torch.compiler.list_backends()))
            raise ValueError(f"--compile must be one of {known}, got {backend!r}")
        self._done = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._done:
            cast(torch.nn.Module, pl_module.network).compile(backend=self.backend)
        self._done = True

    on_validation_start = on_test_start = on_predict_start = on_train_start


def pack_weights(model: torch.nn.Module) -> None:
    """Lay the weights of convolutions out as the kernels read them, once: else each call packs them.

    The outputs of a layer follow its weight, so that from the first layer on all maps are channels-last too.
    """
    for parameter in model.parameters():
        if parameter.dim() in FORMATS:
            parameter.data = parameter.data.contiguous(memory_format=FORMATS[parameter.dim()])
