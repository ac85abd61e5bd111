"""`convnets results` itself: which runs, one after another, and what they come to."""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import shutil
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.config import read_config
from experiments.expectation import Expectation
from experiments.interruption import termination_interrupts
from experiments.recipe import data_of_recipe, network_of_recipe
from experiments.results.baseline import linear
from experiments.results.records import Job, Record, Records
from experiments.results.report import Result, markdown
from experiments.results.training import trained
from experiments.summary.table import of_prediction, totals
from experiments.summary.trace import layers_of
from lightning_modules.files import replace


def run(options: argparse.Namespace) -> int:
    """Run what has not been run, print and write the table; the exit code is 1 where something is not as expected.

    Raises:
        ValueError: whatever the user can put right.
        KeyboardInterrupt: when interrupted; what was found until then is kept.
    """
    expected = {recipe: expectation_of(recipe) for recipe in options.recipes}
    jobs = [job for recipe in expected for job in jobs_of(recipe, expected[recipe], options.seeds, options.fit)]
    records, failures = Records(options.json), {}
    missing = [job for job in jobs if options.again or records.get(job) is None]
    directory = Path(tempfile.mkdtemp(prefix="convnets-results-"))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with termination_interrupts(), Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=len(missing))
        for number, job in enumerate(missing):
            progress.update(bar, description=job.name)
            place = directory / f"{number} {job.name}"
            place.mkdir()
            try:
                record = found(job, place)
            except KeyboardInterrupt:
                kept = f"{len(jobs) - len(missing) + number} of {len(jobs)} results are kept in {options.json}"
                raise KeyboardInterrupt(f"{kept}; go on with the same command") from None
            except ValueError as error:
                failures[job] = f"{job.name} failed: {error}"
            else:
                shutil.rmtree(place)  # of what failed it can be read why
                records.add(job, dataclasses.replace(record, conditions=conditions()))
            progress.advance(bar)
    if not failures:
        directory.rmdir()
    results = [result_of(recipe, expected[recipe], jobs, records, failures) for recipe in expected]
    return report(results, options.markdown)


def expectation_of(recipe: Path) -> Expectation:
    """What a recipe expects.

    Raises:
        ValueError: it does not say, or not so that it can be read.
    """
    stated = read_config(str(recipe)).get("expect")
    if not isinstance(stated, dict):
        raise ValueError(f"{recipe} must say under the key expect what is expected of it, see CONTRIBUTING.md")
    try:
        return Expectation(**stated)
    except TypeError as error:
        raise ValueError(f"{recipe}: expect: {error}") from error


def jobs_of(recipe: Path, expectation: Expectation, seeds: Sequence[int], options: tuple[str, ...]) -> list[Job]:
    """The runs of a recipe, each once."""
    jobs = [Job(recipe, "ours", seed, options) for seed in seeds]
    jobs.append(Job(recipe, "torch", seeds[0], options))
    if expectation.margin is not None:
        jobs.append(Job(recipe, "linear", 0))
    if expectation.ablation:
        jobs += [Job(recipe, "ablation", seed, (*options, *expectation.ablation)) for seed in seeds]
    return list(dict.fromkeys(jobs))


def found(job: Job, directory: Path) -> Record:
    """What a job gives.

    Raises:
        ValueError: it fails.
        KeyboardInterrupt: when interrupted.
    """
    if job.kind != "linear":
        return trained(job, directory)
    lightning.seed_everything(job.seed, verbose=False)
    return Record(linear(data_of_recipe(job.recipe)))


def result_of(
    recipe: Path, expectation: Expectation, jobs: Sequence[Job], records: Records, failures: dict[Job, str]
) -> Result:
    """What the runs of a recipe come to."""
    own: dict[str, list[Record]] = {}
    for job in jobs:
        record = records.get(job)
        if job.recipe == recipe and job not in failures and record is not None:
            own.setdefault(job.kind, []).append(record)
    network: Any = network_of_recipe(recipe)
    sums = totals(of_prediction(layers_of(network, tuple(network.input_shape))))
    return Result(
        recipe.stem, expectation, own.get("ours", []), next(iter(own.get("torch", [])), None),
        next(iter(own.get("linear", [])), None), own.get("ablation", []), sums.parameters, sums.flops,
        [text for job, text in failures.items() if job.recipe == recipe],
    )  # fmt: skip


def report(results: Sequence[Result], path: Path | None) -> int:
    """Print the table, write it, and say what is not as expected."""
    text = markdown(results)
    print(text, flush=True)
    if path is not None:
        replace(path, text)
    console = Console(stderr=True)
    faults = [(result.name, fault) for result in results for fault in result.faults()]
    for name, fault in faults:
        console.print(f"{name}: {fault}", style="red", markup=False, highlight=False, soft_wrap=True)
    return int(bool(faults))


def conditions() -> dict[str, str]:
    """What the times depend on besides the code."""
    threads = os.environ.get("OMP_NUM_THREADS")
    device = f"{os.cpu_count()} CPU cores ({platform.processor() or platform.machine()})"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    return {
        "device": device + (f", OMP_NUM_THREADS={threads}" if threads else ""),
        "torch": f"torch {torch.__version__}", "lightning": f"lightning {lightning.__version__}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
