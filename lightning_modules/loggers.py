"""TensorBoard as Lightning writes it, for networks that may hold what PyTorch cannot trace."""

import warnings
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor


class TolerantTensorBoardLogger(TensorBoardLogger):
    """A TensorBoardLogger that draws the graph once, and goes on with a warning where it cannot be traced."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._drawn = False

    def log_graph(self, model: LightningModule, input_array: Tensor | None = None) -> None:  # type: ignore[override]
        if self._drawn:
            return
        self._drawn = True
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a trace that is only looked at may hold constants
                super().log_graph(model, input_array)
        except Exception as error:  # tracing runs the whole network: anything can come out of it
            rank_zero_warn(f"TensorBoard shows no graph, the network could not be traced: {error}")
