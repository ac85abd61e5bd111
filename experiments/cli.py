"""LightningCLI for the recipes: one way to configure, and no trace of a run that failed."""

import logging
import os
import shlex
import shutil
import signal
import sys
import threading
import time
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Checkpoint,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.model_helpers import is_overridden
from threadpoolctl import threadpool_limits

import kernels
from experiments import COMMANDS
from experiments.checkpoints import check_finite, check_fits, check_progress, check_resumable, read_checkpoint
from experiments.config import check_numbers
from experiments.errors import connected, did_you_mean, is_out_of_memory
from experiments.expectation import Expectation
from experiments.precompile.callback import CompileAhead
from experiments.predictions import write_predictions
from experiments.preparation import CompileNetwork, pack_weights
from experiments.runs import (
    BEST,
    NO_BATCHES,
    SaveRecipe,
    keep_metrics,
    newest_checkpoint,
    resume_in_place,
    untouched_by_failure,
)
from kernels.backend import INTERPRETING, explain, launch_count
from lightning_modules.architectures import plain
from lightning_modules.captured_step import CaptureSteps
from lightning_modules.checkpoint_io import DurableCheckpointIO
from lightning_modules.finite import FiniteLoss
from lightning_modules.loggers import let_caller_report, make_tolerant
from lightning_modules.module import NetworkModule
from lightning_modules.reproducibility import (
    ExactResume,
    LastCheckpoint,
    ShareWeights,
    check_hyper_parameters,
    hyper_parameters,
)

INSTEAD_OF = {  # callbacks that cannot do here what they are for
    LearningRateFinder: "compare values of --model.optimizer.lr",
    BatchSizeFinder: "compare values of --data.batch_size",
    StochasticWeightAveraging: "its averages reach no checkpoint, as those of lightning.pytorch.callbacks."
    "WeightAveraging do; take that",
}


class ConvnetsCLI(LightningCLI):
    """`convnets fit|validate|test|predict`.

    Only `fit` writes logs. Checkpoints are read with `weights_only=True`, and before anything is trained. Callbacks
    that no recipe names see to it that a run resumes exactly, gives the same result on several processes, and stops
    when its loss is NaN.
    """

    def __init__(self) -> None:
        strict = {"exit_on_error": False, "allow_abbrev": False}
        super().__init__(
            save_config_callback=SaveRecipe,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={**strict, **{command: dict(strict) for command in COMMANDS}},
            auto_configure_optimizers=False,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        commands = LightningCLI.subcommands()
        return {name: commands[name] | {"weights_only", "return_predictions"} for name in COMMANDS}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--expect",
            type=Expectation | None,
            default=None,
            help="What a recipe states of its result beforehand; convnets results holds it to that.",
        )
        parser.add_argument(
            "--backend",
            type=Literal["auto", "triton", "torch"],
            default=os.environ.get("CONVNETS_BACKEND") or "auto",
            help="Who computes the layers. auto: Triton on a GPU, PyTorch on the CPU.",
        )
        parser.add_argument(
            "--layers",
            type=Literal["kernels", "torch"],
            default="kernels",
            help="What the network is built of: the layers of kernels, or torch.nn's, which no --backend concerns.",
        )
        parser.add_argument(
            "--compile",
            type=bool | str,
            default=False,
            help="Whether torch.compile compiles the network, with TorchInductor or the backend of that name.",
        )
        parser.add_argument(
            "--cuda_graph",
            type=bool,
            default=False,
            help="Whether fit replays training steps as CUDA graphs. It needs one GPU.",
        )
        parser.add_argument(
            "--compile_ahead",
            type=bool,
            default=True,
            help="Compile all Triton kernels in parallel before the first step, where it runs on a GPU.",
        )
        parser.add_argument(
            "--resume",
            type=Literal["all", "weights"],
            default="all",
            help="What fit takes from --ckpt_path. all: the run goes on, with the optimizer, schedule and seed that it "
            "was started with. weights: a new run starts from the checkpoint's weights.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            message = error.message or str(error)
            known = self._subcommand_parsers[sys.argv[1]].get_defaults().keys()
            raise ValueError(message + did_you_mean(message, list(known))) from error
        self.options = self.config[self.config.subcommand]
        self.recipe = self.options.clone()  # what is saved of a resumed run, too
        self.checkpoint: Path | None = None
        self.content: dict[str, Any] = {}  # of the checkpoint
        fits = self.config.subcommand == "fit"
        if fits:
            check_numbers(self.options.trainer)
        if self.options.ckpt_path is not None:
            given = str(self.options.ckpt_path)
            newest = given in ("best", "last")
            self.checkpoint = newest_checkpoint(given, self.options.trainer) if newest else Path(given)
            self.options.ckpt_path = self.recipe.ckpt_path = str(self.checkpoint)
            self.content = read_checkpoint(self.checkpoint)
            check_finite(self.content["state_dict"], self.checkpoint)
        elif self.options.resume == "weights" and fits:
            raise ValueError("--resume weights needs --ckpt_path, the checkpoint that has them")
        self.resumes = fits and self.checkpoint is not None and self.options.resume == "all"
        self.in_place = False
        if self.resumes:
            assert self.checkpoint is not None
            check_resumable(self.content, self.checkpoint)
            self.in_place = resume_in_place(self.options.trainer, self.checkpoint, self.content["global_step"])

    def before_instantiate_classes(self) -> None:
        kernels.use_backend(self.options.backend)
        if INTERPRETING and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)  # NumPy's small products are twice as slow where threads contend for the cores
            threadpool_limits(1)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        self.capture = [CaptureSteps()] if self.options.cuda_graph else []
        if self.subcommand == "fit":
            self.trainer_defaults["callbacks"] = [FiniteLoss(), ShareWeights(), ExactResume(), *self.capture]
        else:
            self.save_config_callback = None
            kwargs["logger"] = False
            warnings.filterwarnings("ignore", message="The dirpath has changed")  # of checkpoints that are not written
        trainer: Any = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = DurableCheckpointIO()
        for logger in trainer.loggers:
            make_tolerant(logger)
        if self.options.compile_ahead and self.options.layers == "kernels":
            trainer.callbacks.insert(0, CompileAhead())
        if self.options.compile:
            trainer.callbacks.insert(0, CompileNetwork(self.options.compile))
        for callback in trainer.callbacks:
            if isinstance(callback, SaveRecipe):
                callback.config = self.recipe
            for unfit, advice in INSTEAD_OF.items():
                if isinstance(callback, unfit):
                    name = type(callback).__name__
                    raise ValueError(f"--trainer.callbacks must be without {name}: {advice} instead")
        if trainer.fast_dev_run:  # Lightning would still write the last checkpoint
            trainer.callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, Checkpoint)]
        return cast(pl.Trainer, trainer)

    def after_instantiate_classes(self) -> None:
        if self.options.layers == "torch":
            self.model.network = plain(cast(torch.nn.Module, self.model.network))
            self._say("layers: torch.nn")
        else:
            try:
                self._say(explain(self.trainer.strategy.root_device))
            except RuntimeError as error:
                raise ValueError(str(error)) from error
        if self.trainer.strategy.root_device.type == "cuda":
            pack_weights(self.model)
        if self.checkpoint is not None:
            check_fits(self.content["state_dict"], self.model, self.checkpoint)
        elif self.subcommand != "fit":
            self._say("no --ckpt_path is given: the weights are those before training")
        if self.subcommand == "fit":
            self._check_training()

    def _check_training(self) -> None:
        """Raises ValueError where training cannot start, or go on from the checkpoint: before anything is written."""
        made: dict[str, Any] | None = None
        if isinstance(self.model, NetworkModule):
            optimizer, schedules = self.model.make_optimizer()
            made = hyper_parameters([optimizer], schedules)
        if self.resumes:
            assert self.checkpoint is not None
            if cast(Any, self.trainer).fast_dev_run:  # its limit is of steps more than were done
                loop = self.trainer.fit_loop
                loop.max_epochs, loop.epoch_loop.max_steps = -1, self.trainer.max_steps + self.content["global_step"]
            limits = {name: getattr(self.trainer, name) for name in ("max_epochs", "max_steps")}
            check_progress(self.content, self.trainer.fit_loop.state_dict(), limits, self.checkpoint)
            if made is not None:
                check_hyper_parameters(self.content, made)
            averages = any(isinstance(each, WeightAveraging) for each in cast(Any, self.trainer).callbacks)
            if "averaging_state" in self.content and not averages:
                raise ValueError(
                    f"--trainer.callbacks must average weights as the run of {self.checkpoint} did: its averaged ones "
                    "would be trained further; --resume weights starts anew from them"
                )
        elif self.checkpoint is not None:
            self.model.load_state_dict(self.content["state_dict"])
            self._say(f"weights: those of {self.checkpoint}")

    def fit(self, **kwargs: Any) -> None:
        started, launched = time.perf_counter(), launch_count()
        if not self.resumes:
            kwargs["ckpt_path"] = None
        with untouched_by_failure(self.trainer), self._running(self._how_to_resume):
            if self.in_place:
                keep_metrics(self.trainer, self.content["global_step"])
            try:
                self.trainer.fit(**kwargs, weights_only=True)
            except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
                is_restoring = bool(self.trainer._checkpoint_connector._loaded_checkpoint)
                if is_restoring and not is_out_of_memory(error):
                    reason = f"{type(error).__name__}: {error}"
                    raise ValueError(f"checkpoint {self.checkpoint} cannot be resumed from: {reason}") from error
                raise
            if not self.trainer.num_training_batches:
                raise ValueError(NO_BATCHES)
        self.training_seconds = time.perf_counter() - started
        self.training_launches = launch_count() - launched

    @contextmanager
    def _running(self, advice: Callable[[], str] = str) -> Iterator[None]:
        """Have what interrupts Lightning arrive as KeyboardInterrupt, and leave no process waiting for one that failed.

        Args:
            advice: gives how to go on after an interruption.
        """
        try:
            yield
        except SystemExit:
            if not self.trainer.interrupted:
                raise
            raise KeyboardInterrupt(advice()) from None
        except Exception:
            launcher: Any = self.trainer.strategy.launcher
            if not connected() and hasattr(launcher, "kill"):  # the others wait to be connected, for half an hour
                launcher.kill(signal.SIGTERM)
            raise

    def _how_to_resume(self) -> str:
        callbacks = self.trainer.checkpoint_callbacks
        last = next((each.path for each in callbacks if isinstance(each, LastCheckpoint) and each.path), None)
        return f"resume with the same command and --ckpt_path {last}" if last else "no checkpoint was written"

    def after_fit(self) -> None:
        """Test the best checkpoint and report the run."""
        self._say(
            f"training: {self.training_seconds:.1f} s, {self.trainer.global_step} steps, "
            f"{self.training_launches} launches of Triton kernels"
        )
        for capture in self.capture:
            self._say(f"CUDA graphs: {capture.replays}")
        boards = [logger for logger in self.trainer.loggers if isinstance(logger, TensorBoardLogger)]
        checkpoints = self.trainer.checkpoint_callback
        tests = is_overridden("test_step", self.model)
        if isinstance(checkpoints, ModelCheckpoint) and Path(checkpoints.best_model_path).is_file() and tests:
            if checkpoints.best_model_score is not None:
                for board in boards:
                    board.log_metrics({BEST: float(checkpoints.best_model_score)}, step=self.trainer.global_step)
            best = checkpoints.best_model_path
            for callback in cast(Any, self.trainer).callbacks:
                if isinstance(callback, WeightAveraging):
                    callback._average_model = None  # with it, the weights that were not averaged would be loaded
            with self._running(lambda: f"training is complete: test with --ckpt_path {best}"):
                tested = self.trainer.test(
                    self.model, self.datamodule, ckpt_path=best, weights_only=True, verbose=False
                )
            self._say(f"best checkpoint: {best}")
            for name, value in tested[0].items() if tested else ():
                self._say(f"{name}: {value:.4f}")
        for board in boards:
            self._say(
                f"to look at it: {tensorboard()} --logdir {shlex.quote(board.root_dir)} --samples_per_plugin images=100"
            )

    def validate(self, **kwargs: Any) -> None:
        self._evaluate(self.trainer.validate, "val", **kwargs)

    def test(self, **kwargs: Any) -> None:
        self._evaluate(self.trainer.test, "test", **kwargs)

    def _evaluate(self, evaluate: Callable[..., Any], split: str, **kwargs: Any) -> None:
        with self._running():
            if not evaluate(**kwargs, weights_only=True):
                raise ValueError(f"{self.subcommand} was given no batches: raise --trainer.limit_{split}_batches")

    def predict(self, **kwargs: Any) -> None:
        """Write a row for each image of the predicted split; maps go to files of their own, which the row names."""
        if self.trainer.world_size > 1:
            raise ValueError(f"predict writes one table: use --trainer.devices 1, got {self.trainer.world_size}")
        with self._running():
            batches: Any = self.trainer.predict(**kwargs, weights_only=True)
        if not batches:
            raise ValueError("predict was given no batches: raise --trainer.limit_predict_batches")
        table = write_predictions(batches, self.checkpoint.parent if self.checkpoint else Path())
        self._say(f"predictions: {table}")

    def _say(self, line: str) -> None:
        if self.trainer.is_global_zero:
            print(line, flush=True)


def tensorboard() -> str:
    """The command that runs this environment's TensorBoard: with its path, where the environment is not active."""
    here = Path(sys.executable).with_name("tensorboard")
    return "tensorboard" if shutil.which("tensorboard") == str(here) else os.path.relpath(here)


def quieten() -> None:
    """Leave out what Lightning says that is of no use here."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # the data are in memory
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")  # a resumed run goes on in its directory
    warnings.filterwarnings("ignore", message=".*overridden `on_before_batch_transfer`.*")  # a LightningModule may
    warnings.filterwarnings("ignore", message=".*the WeightAveraging callback, but loading a checkpoint outside.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own use of PyTorch
    threading.excepthook = let_caller_report
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "Tip" not in record.msg)


def run() -> int:
    """Run the command in `sys.argv`, and return its exit code.

    Raises:
        ValueError: whatever the user can put right.
    """
    quieten()
    ConvnetsCLI()
    return 0
