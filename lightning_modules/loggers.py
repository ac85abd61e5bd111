"""Loggers that let the training go on where they cannot: a graph that is not traced, a disk that is full."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor


class Tolerant(Logger):
    """Part of a logger: where the disk is full in mid-training, it warns once and the training goes on.

    Raises:
        ValueError: not even the first record can be written.
    """

    _experiment: Any
    _failed = False

    @property
    def experiment(self) -> Any:
        with self._tolerance():
            return super().experiment  # type: ignore[misc]

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        with self._tolerance():
            super().log_metrics(*args, **kwargs)  # type: ignore[safe-super]

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        with self._tolerance():
            super().log_hyperparams(*args, **kwargs)  # type: ignore[safe-super]

    def save(self) -> None:
        with self._tolerance():
            super().save()

    def finalize(self, status: str) -> None:
        with self._tolerance():
            super().finalize(status)

    @contextmanager
    def _tolerance(self) -> Iterator[None]:
        begun = self._experiment is not None
        try:
            yield
        except (OSError, ValueError) as error:
            cause: BaseException | None = error
            while not isinstance(cause, OSError | None):  # Lightning makes a ValueError of it
                cause = cause.__cause__
            if cause is None:
                raise
            message = f"{self.log_dir} cannot be written: {cause.strerror or cause}"
            if not begun:
                raise ValueError(message) from error
            if not self._failed:
                rank_zero_warn(f"{message}; training goes on without it")
            self._failed = True


def let_caller_report(args: threading.ExceptHookArgs) -> None:
    """Be a threading.excepthook that leaves TensorBoard's failure to write to the next call of the logger."""
    if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard.")):
        threading.__excepthook__(args)


class TolerantCSVLogger(Tolerant, CSVLogger):
    """A CSVLogger that does not end the training where the disk is full."""


class TolerantTensorBoardLogger(Tolerant, TensorBoardLogger):
    """A TensorBoardLogger that does not end the training where the disk is full, or the graph cannot be traced.

    The graph is drawn once.
    """

    _drawn = False

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


TOLERANT = {CSVLogger: TolerantCSVLogger, TensorBoardLogger: TolerantTensorBoardLogger}


def make_tolerant(logger: Logger) -> None:
    """Give one of Lightning's loggers of files the class that tolerates a full disk."""
    logger.__class__ = cast(Any, TOLERANT.get(type(logger), type(logger)))
