"""Metrics of what a network has learned."""

from typing import Any

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_modules.gabor import fit_gabor, is_gabor, principal_kernel

MIN_WINDOW = 7


class GaborLikeness(Metric):
    """How much the kernels of a layer resemble Gabor functions (see `fit_gabor` and `is_gabor`).

    `update` takes the weight of a Conv2d, [O, C, kh, kw], of which each kernel counts by its first principal component
    over the channels; further updates add kernels. `compute` returns 0-dim float tensors: `mean_r2` and `median_r2`
    over the live kernels (0 if there are none), `fraction`, the strictly Gabor-like among all kernels, and `dead`, the
    number of dead ones, each judged within its own layer.

    Under DDP the kernels of all processes are gathered. Replicas hold equal weights, so that counts multiply and all
    else stays; `sync_on_compute=False` keeps each process to its own.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    r2: list[Tensor]
    gabor: list[Tensor]
    dead: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for state in ("r2", "gabor", "dead"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, weight: Tensor) -> None:
        """Add the kernels of `weight`, [O, C, kh, kw] with kh, kw >= 7.

        Raises TypeError unless it is a floating-point tensor, ValueError for another rank, an empty tensor, NaN or inf,
        and for a smaller window, which a Gabor function with its eight parameters fits whatever it holds.
        """
        kernels, _ = principal_kernel(weight)
        kh, kw = kernels.shape[1:]
        if min(kh, kw) < MIN_WINDOW:
            raise ValueError(
                f"weight has a {kh}x{kw} window, but Gabor-likeness needs {MIN_WINDOW}x{MIN_WINDOW} or more: "
                "white noise already fits with an R2 of 0.84 in 3x3 and 0.48 in 5x5 windows"
            )
        fit = fit_gabor(kernels)
        self.r2.append(fit.r2.float())
        self.gabor.append(is_gabor(fit))
        self.dead.append(fit.dead)

    def compute(self) -> dict[str, Tensor]:
        """The scores of all kernels so far. Raises ValueError if there are none."""
        if len(self.r2) == 0:
            raise ValueError("GaborLikeness has no kernels to score: call update(weight) before compute()")
        r2, gabor, dead = (dim_zero_cat(state) for state in (self.r2, self.gabor, self.dead))
        live = r2 if dead.all() else r2[~dead]  # the dead have an r2 of 0
        return {
            "mean_r2": live.mean(),
            "median_r2": live.quantile(0.5),
            "fraction": gabor.float().mean(),
            "dead": dead.float().sum(),
        }
