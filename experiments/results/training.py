"""One run of `convnets fit`, as a process of its own."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

from experiments.results.records import KINDS, Job, Record
from lightning_modules import epoch_time

ROOT = Path(__file__).resolve().parents[2]


def trained(job: Job, directory: Path) -> Record:
    """Train and test; everything that is written goes into `directory`.

    Raises:
        ValueError: the run failed; the last line that it said.
        KeyboardInterrupt: when interrupted, after the run has ended.
    """
    log = directory / "output.txt"
    with log.open("w") as file:
        process = subprocess.Popen(command(job, directory), cwd=directory, env=environment(), stdout=file, stderr=file)
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
    text = log.read_text(errors="replace")
    if code != 0:
        *_, last = text.strip().splitlines() or [f"exit code {code}"]
        raise ValueError(f"{last.removeprefix('convnets: error: ')} (all of it: {log})")
    return record_of(text, directory / "run" / "metrics.csv")


def command(job: Job, directory: Path) -> list[str]:
    """The command of a job, whose figures go to run/metrics.csv in `directory`."""
    logger = {"save_dir": directory, "name": "", "version": "run"}
    return [
        sys.executable, "-m", "experiments", "fit", "--config", str(job.recipe), "--backend", "torch",
        "--seed_everything", str(job.seed), "--trainer.logger", "lightning.pytorch.loggers.CSVLogger",
        *(f"--trainer.logger.{name}={value}" for name, value in logger.items()),
        f"--trainer.callbacks+={epoch_time.__name__}.{epoch_time.EpochTime.__name__}", *KINDS[job.kind], *job.options,
    ]  # fmt: skip


def environment() -> dict[str, str]:
    """This process's, in which the run imports what this process does, wherever it runs."""
    paths = (str(ROOT), os.environ.get("PYTHONPATH", ""))
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def record_of(output: str, metrics: Path) -> Record:
    """A run's figures, from what it said and the file of its CSVLogger.

    Raises:
        ValueError: it was not tested.
    """
    columns: dict[str, list[float]] = {}
    with metrics.open(newline="") as file:
        for row in csv.DictReader(file):
            for name, text in row.items():
                if text:
                    columns.setdefault(name, []).append(float(text))
    tested = {name: values[-1] for name, values in columns.items() if name.startswith("test/")}
    if not tested:
        raise ValueError("the run was not tested: it needs a ModelCheckpoint")
    curves = {name: values for name, values in columns.items() if name in ("train/loss", "val/loss")}
    said = re.search(r"^training: ([\d.]+) s", output, re.MULTILINE)
    return Record(tested, curves, columns.get(epoch_time.TAG, []), float(said[1]) if said else 0.0)
