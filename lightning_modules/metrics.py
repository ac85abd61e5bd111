"""Metrics of what a network has learned."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_modules.gabor_score import COLUMNS, likeness, scores


class GaborLikeness(Metric):
    """How much the kernels of a layer resemble Gabor functions.

    `update` takes the weight of a Conv2d, [O, C, kh, kw], of which each kernel counts by its first principal component
    over the channels; further updates add kernels, each judged within its own layer. `compute` gives the scores that
    `gabor_score.scores` describes, and `table` the properties of each kernel.

    Under DDP the kernels of all processes are gathered. Replicas hold equal weights, so that counts multiply and all
    else stays; `sync_on_compute=False` keeps each process to its own.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    kernels: list[Tensor]  # [B, columns] each

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("kernels", default=[], dist_reduce_fx="cat")

    def update(self, weight: Tensor) -> None:
        """Add the kernels of `weight`, [O, C, kh, kw] with kh, kw >= 7.

        Raises TypeError unless it is a floating-point tensor, ValueError for another rank, an empty tensor, NaN or inf,
        and for a smaller window, which a Gabor function with its eight parameters fits whatever it holds.
        """
        self.kernels.append(torch.stack(list(likeness(weight).table().values()), dim=1))

    def compute(self) -> dict[str, Tensor]:
        """The scores of all kernels so far. Raises ValueError if there are none."""
        return scores(self.table())

    def table(self) -> dict[str, Tensor]:
        """The columns of `Likeness.table` for all kernels so far. Raises ValueError if there are none."""
        if len(self.kernels) == 0:
            raise ValueError("GaborLikeness has no kernels to score: call update(weight) first")
        return dict(zip(COLUMNS, dim_zero_cat(self.kernels).unbind(1), strict=True))
