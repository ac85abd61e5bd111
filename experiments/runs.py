"""Where a run writes: its directory, which a resumed run goes on in and a failed one leaves as it was."""

import csv
import io
import pydoc
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_modules.files import replace, replacing

BEST = "hp/best_monitored"  # what the checkpoints are chosen by; TensorBoard lists the hyper-parameters beside it
NO_BATCHES = "--data has no batches to train on"


class SaveRecipe(SaveConfigCallback):
    """Saves the complete configuration in the run's log directory, and shows it in TensorBoard as hyper-parameters.

    It does so after the first batch: a run that cannot train writes none, and a resumed one leaves what is there.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None: ...

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.loggers and not self.already_saved:  # the directory of a run without a logger is the user's own
            place = Path(trainer.log_dir or ".", "config.yaml")
            with replacing(place) if trainer.is_global_zero else nullcontext(place) as draft:
                self.config_filename = draft.name
                super().setup(trainer, pl_module, "fit")

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        config = self.config.as_dict()
        parameters = {key: config[key] for key in ("seed_everything", "model", "data")}
        resumes = config["ckpt_path"] is not None and config["resume"] == "all"
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                unknown = None if resumes else {BEST: float("nan")}  # a resumed run has it
                logger.log_hyperparams(parameters, unknown)
            else:
                logger.log_hyperparams(parameters)


def newest_checkpoint(name: str, trainer: Namespace) -> Path:
    """Return the newest checkpoint `name`.ckpt of the runs that a trainer's configuration writes.

    Raises:
        ValueError: there is none.
    """
    if trainer.logger is False:
        home = _root(trainer)
        found = list(home.glob(f"checkpoints/{name}.ckpt"))
    else:
        home = runs_directory(trainer)
        found = list(home.glob(f"*/checkpoints/{name}.ckpt"))
    if not found:
        raise ValueError(f"--ckpt_path {name}: no {name}.ckpt among the runs in {home}")
    return max(found, key=lambda path: path.stat().st_mtime)


def runs_directory(trainer: Namespace) -> Path:
    """Return where the first configured logger, or Lightning's default, keeps a directory for each run."""
    configured = configured_loggers(trainer)
    if not configured or "save_dir" not in configured[0].init_args:
        return _root(trainer) / "lightning_logs"
    return home_of(configured[0])


def configured_loggers(trainer: Namespace) -> list[Namespace]:
    """Return the loggers that are configured by class and arguments."""
    loggers = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
    return [logger for logger in loggers if isinstance(logger, Namespace) and "init_args" in logger]


def home_of(logger: Namespace) -> Path:
    return Path(logger.init_args.get("save_dir") or ".") / (logger.init_args.get("name") or "")


def resume_in_place(trainer: Namespace, checkpoint: Path, step: int) -> bool:
    """Let a run that is resumed from a checkpoint of an earlier one go on in its log directory.

    Its curves go on, too, without what was logged after the checkpoint, and what was the best checkpoint stays it until
    there is a better one.

    Returns:
        True if it does: the checkpoint is of a run of the first logger, which names no other version.
    """
    run, loggers = checkpoint.parent.parent, configured_loggers(trainer)
    mine = [
        logger
        for logger in loggers
        if (home_of(logger) / run.name).is_dir() and logger.init_args.get("version") in (None, run.name)
    ]
    if not mine or mine[0] is not loggers[0] or home_of(mine[0]).resolve() != run.parent.resolve():
        return False
    for logger in mine:
        logger.init_args.version = run.name
        if issubclass(pydoc.locate(logger.class_path), TensorBoardLogger):  # type: ignore[arg-type]
            logger.init_args.purge_step = step
    return True


def keep_metrics(trainer: pl.Trainer, step: int) -> None:
    """Have the tables of a resumed run's loggers keep what is from before the checkpoint: Lightning deletes them.

    Raises:
        OSError: a table cannot be written; it is left as it was.
    """
    for logger in trainer.loggers:
        table = Path(logger.log_dir or "", "metrics.csv")
        if not (isinstance(logger, CSVLogger) and trainer.is_global_zero and table.is_file()):
            continue
        aside = table.rename(table.with_name(".metrics.csv"))
        try:
            writer = logger.experiment
        finally:
            aside.rename(table)
        with table.open(newline="") as file:
            reader = csv.DictReader(file)
            writer.metrics_keys = list(reader.fieldnames or ())
            whole = (row for row in reader if None not in row.values())  # a kill may have cut the last one
            rows = [row for row in whole if int(row["step"]) < step]
        kept = io.StringIO(newline="")
        columns = csv.DictWriter(kept, writer.metrics_keys)
        columns.writeheader()
        columns.writerows(rows)
        replace(table, kept.getvalue())


@contextmanager
def untouched_by_failure(trainer: Any) -> Iterator[None]:
    """Have a run that fails leave no trace.

    Remove the log directory of a run that ends before its first checkpoint, if the run has made it. In a directory that
    was there, remove the files that a run has added that ends before its first step, and restore those it has changed.
    """
    directory = Path(trainer.log_dir or ".")
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    before = None if made or not trainer.loggers else contents(directory)
    steps = _Steps()
    trainer.callbacks.insert(0, steps)
    try:
        yield
    except BaseException:
        if made and trainer.is_global_zero and not any(directory.rglob("*.ckpt")):
            shutil.rmtree(directory, ignore_errors=True)
            with suppress(OSError):
                for parent in made[1:]:
                    parent.rmdir()
        if before is not None and trainer.is_global_zero and not steps.taken:
            restore_contents(directory, before)
        raise


class _Steps(pl.Callback):
    """Notes that a batch was trained on, and raises ValueError after an epoch without any: a stream may have none."""

    taken = False

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.taken = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.global_step:
            raise ValueError(NO_BATCHES)


def contents(directory: Path) -> dict[Path, bytes | None]:
    """Return the files of a run, with what is in those that are written anew when it is resumed."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {path: path.read_bytes() if path.suffix in (".yaml", ".csv") else None for path in files}


def restore_contents(directory: Path, before: dict[Path, bytes | None]) -> None:
    """Remove the files that are not in `before`, and write the others back where they differ."""
    for path in [*directory.rglob("*")]:
        if path.is_file() and path not in before:
            path.unlink()
    for path, content in before.items():
        if content is not None and (not path.is_file() or path.read_bytes() != content):
            replace(path, content)


def _root(trainer: Namespace) -> Path:
    return Path(trainer.default_root_dir or ".")
