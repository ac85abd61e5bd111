"""LightningCLI for the recipes: one way to configure, errors in one line, no trace of a run that failed."""

import difflib
import logging
import os
import re
import shlex
import shutil
import sys
import threading
import time
import warnings
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from threadpoolctl import threadpool_limits

import kernels
from experiments import COMMANDS
from experiments.checkpoints import check_finite, check_fits, check_resumable, find_checkpoint, read_checkpoint
from experiments.expectation import Expectation
from experiments.precompile.callback import CompileAhead
from experiments.predictions import write_predictions
from kernels.backend import INTERPRETING, explain, launch_count
from kernels.shape import FORMATS
from lightning_modules.architectures import plain
from lightning_modules.captured_step import CaptureSteps
from lightning_modules.checkpoint_io import DurableCheckpointIO
from lightning_modules.finite import FiniteLoss
from lightning_modules.loggers import let_caller_report, make_tolerant
from lightning_modules.reproducibility import ExactResume, LastCheckpoint, ShareWeights

BEST = "hp/best_monitored"  # what the checkpoints are chosen by; TensorBoard lists the hyper-parameters beside it


class SaveRecipe(SaveConfigCallback):
    """Saves the complete configuration in the run's log directory, and shows it in TensorBoard as hyper-parameters."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.loggers:  # the directory of a run without a logger is the user's own
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        config = self.config.as_dict()
        parameters = {key: config[key] for key in ("seed_everything", "model", "data")}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                unknown = {BEST: float("nan")} if config["ckpt_path"] is None else None  # a resumed run has it
                logger.log_hyperparams(parameters, unknown)
            else:
                logger.log_hyperparams(parameters)


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

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            message = error.message or str(error)
            known = self._subcommand_parsers[sys.argv[1]].get_defaults().keys()
            raise ValueError(message + did_you_mean(message, list(known))) from error
        self.options = self.config[self.config.subcommand]
        self.checkpoint: Path | None = None
        if self.options.ckpt_path is not None:
            self.checkpoint = find_checkpoint(str(self.options.ckpt_path), runs_directory(self.options.trainer))
            self.options.ckpt_path = str(self.checkpoint)
            content = read_checkpoint(self.checkpoint)
            self.state_dict = content["state_dict"]
            check_finite(self.state_dict, self.checkpoint)
            if self.config.subcommand == "fit":
                check_resumable(content, self.checkpoint)
                resume_in_place(self.options.trainer, self.checkpoint, content["global_step"])

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
        trainer: Any = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = DurableCheckpointIO()
        for logger in trainer.loggers:
            make_tolerant(logger)
        if self.options.compile_ahead and self.options.layers == "kernels":
            trainer.callbacks.insert(0, CompileAhead())
        if self.options.compile:
            trainer.callbacks.insert(0, CompileNetwork(self.options.compile))
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
            check_fits(self.state_dict, self.model, self.checkpoint)
        elif self.subcommand != "fit":
            self._say("no --ckpt_path is given: the weights are those before training")

    def fit(self, **kwargs: Any) -> None:
        started, launched = time.perf_counter(), launch_count()
        try:
            with no_trace_of_failure(self.trainer):
                self.trainer.fit(**kwargs, weights_only=True)
        except SystemExit:
            if not self.trainer.interrupted:
                raise
            kept = (
                callback.path for callback in self.trainer.checkpoint_callbacks if isinstance(callback, LastCheckpoint)
            )
            last = next(kept, None)
            advice = f"resume with the same command and --ckpt_path {last}" if last else "no checkpoint was written"
            raise KeyboardInterrupt(advice) from None
        self.training_seconds = time.perf_counter() - started
        self.training_launches = launch_count() - launched

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
        if isinstance(checkpoints, ModelCheckpoint) and Path(checkpoints.best_model_path).is_file():
            if checkpoints.best_model_score is not None:
                for board in boards:
                    board.log_metrics({BEST: float(checkpoints.best_model_score)}, step=self.trainer.global_step)
            tested = self.trainer.test(
                self.model, self.datamodule, ckpt_path=checkpoints.best_model_path, weights_only=True, verbose=False
            )
            self._say(f"best checkpoint: {checkpoints.best_model_path}")
            for name, value in tested[0].items() if tested else ():
                self._say(f"{name}: {value:.4f}")
        for board in boards:
            self._say(
                f"to look at it: {tensorboard()} --logdir {shlex.quote(board.root_dir)} --samples_per_plugin images=100"
            )

    def validate(self, **kwargs: Any) -> None:
        self.trainer.validate(**kwargs, weights_only=True)

    def test(self, **kwargs: Any) -> None:
        self.trainer.test(**kwargs, weights_only=True)

    def predict(self, **kwargs: Any) -> None:
        """Write a row for each image of the predicted split; maps go to files of their own, which the row names."""
        if self.trainer.world_size > 1:
            raise ValueError(f"predict writes one table: use --trainer.devices 1, got {self.trainer.world_size}")
        batches: Any = self.trainer.predict(**kwargs, weights_only=True)
        if not batches:
            raise ValueError("predict was given no batches: raise --trainer.limit_predict_batches")
        table = write_predictions(batches, self.checkpoint.parent if self.checkpoint else Path())
        self._say(f"predictions: {table}")

    def _say(self, line: str) -> None:
        if self.trainer.is_global_zero:
            print(line, flush=True)


def runs_directory(trainer: Namespace) -> Path:
    """Where the configured TensorBoardLogger, or Lightning's default, keeps a directory for each run."""
    logger = trainer.logger[0] if isinstance(trainer.logger, list) and trainer.logger else trainer.logger
    configured = logger.get("init_args") if isinstance(logger, Namespace) else None
    if configured is None or "save_dir" not in configured:
        return Path(trainer.default_root_dir or ".") / "lightning_logs"
    return Path(configured.save_dir) / (configured.get("name") or "")


def pack_weights(model: torch.nn.Module) -> None:
    """Lay the weights of convolutions out as the kernels read them, once: else each call packs them.

    The outputs of a layer follow its weight, so that from the first layer on all maps are channels-last too.
    """
    for parameter in model.parameters():
        if parameter.dim() in FORMATS:
            parameter.data = parameter.data.contiguous(memory_format=FORMATS[parameter.dim()])


def resume_in_place(trainer: Namespace, checkpoint: Path, step: int) -> None:
    """Let a run that is resumed from a checkpoint of an earlier one go on in its log directory.

    Its curves go on, too, without what was logged after the checkpoint, and what was the best checkpoint stays it until
    there is a better one.
    """
    run = checkpoint.parent.parent
    logger = trainer.logger
    mine = isinstance(logger, Namespace) and run.parent.resolve() == runs_directory(trainer).resolve()
    if mine and "init_args" in logger and logger.init_args.get("version") is None:
        logger.init_args.version = run.name
        logger.init_args.purge_step = step


@contextmanager
def no_trace_of_failure(trainer: pl.Trainer) -> Iterator[None]:
    """Remove the log directory of a run that ends before its first checkpoint, if the run has made it."""
    directory = Path(trainer.log_dir or ".")
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        if made and trainer.is_global_zero and not any(directory.rglob("*.ckpt")):
            shutil.rmtree(directory, ignore_errors=True)
            with suppress(OSError):
                for parent in made[1:]:
                    parent.rmdir()
        raise


def tensorboard() -> str:
    """The command that runs this environment's TensorBoard: with its path, where the environment is not active."""
    here = Path(sys.executable).with_name("tensorboard")
    return "tensorboard" if shutil.which("tensorboard") == str(here) else os.path.relpath(here)


def did_you_mean(message: str, known: list[str]) -> str:
    """What to add to a parser's complaint about an option: the names close to it, if any."""
    option = re.search(r"(?:option '|arguments: --)([\w.]+)", message)
    close = difflib.get_close_matches(option[1], known) if option else []
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def quieten() -> None:
    """Leave out what Lightning says that is of no use here."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # the data are in memory
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")  # a resumed run goes on in its directory
    warnings.filterwarnings("ignore", message=".*overridden `on_before_batch_transfer`.*")  # a LightningModule may
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own use of PyTorch
    threading.excepthook = let_caller_report
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "Tip" not in record.msg)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Raises ValueError for those errors of libraries that the user can put right."""
    try:
        yield
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
    except (MemoryError, RuntimeError) as error:
        first, *_ = str(error).splitlines() or [""]
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or re.search(r"allocate memory|overflow", first):
            size = re.search(r"tried to allocate ([\d.]+ \w+)|allocate ([\d.]+ \w+)", first, re.IGNORECASE)
            wanted = f" ({size[1] or size[2]} at once)" if size else ""
            raise ValueError(f"not enough memory{wanted}: use smaller images, batches or networks") from error
        raise


def run() -> int:
    """Run the command in `sys.argv`, and return its exit code.

    Raises:
        ValueError: whatever the user can put right.
    """
    quieten()
    with one_line_errors():
        ConvnetsCLI()
    return 0
