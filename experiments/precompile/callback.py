"""Have Lightning compile all kernels before the first step, in parallel, instead of one after another during it."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import nn

from kernels import backend, tuning


class CompileAhead(pl.Callback):
    """Compiles what a command will launch, where it runs in Triton on a GPU; what the cache has takes a second.

    Of the processes on a machine the first does it: the others wait for it where Lightning has all of them set up.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        device, data = trainer.strategy.root_device, getattr(trainer, "datamodule", None)
        network = getattr(pl_module, "network", None)
        if trainer.local_rank != 0 or data is None or not isinstance(network, nn.Module):
            return
        if backend.INTERPRETING or not backend.uses_triton(torch.empty(0, device=device)):
            return
        from experiments.precompile.compiling import compile_or_warn  # needs triton
        from experiments.precompile.data import batches_of
        from experiments.precompile.step import run_batches

        def compute() -> None:
            run_batches(network, batches_of(data, stage), str(trainer.precision))

        compile_or_warn(tuning.target(device), compute)
