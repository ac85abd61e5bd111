"""What was found, as a Markdown table."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from experiments.expectation import Expectation
from experiments.results.records import Record

WIDE = 1000  # characters: no cell of a Markdown table is broken


@dataclass(frozen=True)
class Result:
    """What the runs of a recipe gave.

    Args:
        ours, ablation: a record for each seed.
        torch: of the first seed, with torch.nn's layers.
        linear: of the linear classifier.
        parameters, flops: of the network, and of one image that it predicts.
        failures: what runs failed of, in words.
    """

    name: str
    expectation: Expectation
    ours: list[Record]
    torch: Record | None
    linear: Record | None
    ablation: list[Record]
    parameters: int
    flops: int
    failures: list[str]

    @property
    def values(self) -> list[float]:
        """The metric, of each seed."""
        return values_of(self.ours, self.expectation.metric)

    def faults(self) -> list[str]:
        """What is not as expected, each in words."""
        found = list(self.failures)
        if self.ours:
            metric = self.expectation.metric
            found += self.expectation.unmet(
                statistics.fmean(self.values),
                [record.seconds for record in self.ours],
                None if self.linear is None else values_of([self.linear], metric)[0],
                statistics.fmean(values_of(self.ablation, metric)) if self.ablation else None,
            )
        return found


def values_of(records: Sequence[Record], metric: str) -> list[float]:
    """A metric of several records.

    Raises:
        ValueError: it is not among their figures.
    """
    for record in records:
        if metric not in record.metrics:
            raise ValueError(f"expect: metric must be one of {', '.join(record.metrics)}, got {metric!r}")
    return [record.metrics[metric] for record in records]


COLUMNS = (
    "recipe", "metric", "result", "expected", "linear classifier", "ablation", "seconds an epoch",
    "torch.nn's epoch", "loss curves differ by", "parameters", "MFLOPs an image",
)  # fmt: skip


def markdown(results: Sequence[Result]) -> str:
    """The table of all results, then in a line on which machines and when."""
    table = Table(box=box.MARKDOWN)
    for place, title in enumerate(COLUMNS):
        table.add_column(title, justify="left" if place < 2 else "right")
    for result in results:
        table.add_row(*_cells(result))
    return "\n".join((*lines_of(table), "", *_conditions(results))) + "\n"


def lines_of(table: Table) -> list[str]:
    """A table with the box MARKDOWN as text."""
    page = Console(file=io.StringIO(), width=WIDE)
    page.print(table)
    assert isinstance(page.file, io.StringIO)
    return [line.rstrip() for line in page.file.getvalue().splitlines() if line.strip()]


def _cells(result: Result) -> list[str]:
    metric, ours = result.expectation.metric, result.ours
    torch_epoch = result.torch.epoch if result.torch is not None else None
    epochs = [record.epoch for record in ours if record.epoch is not None]
    distance = ours[0].distance(result.torch) if ours and result.torch is not None else None
    return [
        result.name, metric.removeprefix("test/"), spread(result.values), result.expectation.bound,
        spread(values_of([result.linear], metric)) if result.linear is not None else "-",
        spread(values_of(result.ablation, metric)),
        f"{statistics.median(epochs):.3g}" if epochs else "-",
        f"{torch_epoch:.3g}" if torch_epoch is not None else "-",
        f"{distance:.1e}" if distance is not None else "-",
        f"{result.parameters:,}", f"{result.flops / 1e6:.3g}",
    ]  # fmt: skip


def spread(values: Sequence[float]) -> str:
    """The average, and the least and the most where there are several."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.4f} to {max(values):.4f})"


def _conditions(results: Sequence[Result]) -> list[str]:
    """A line for each machine and its versions, with the days."""
    days: dict[str, set[str]] = {}
    for result in results:
        for record in result.ours:
            known = dict(record.conditions)
            date = known.pop("date", "")[:10]
            days.setdefault(", ".join(known.values()), set()).add(date)
    return [f"{where}; {' to '.join(sorted({min(dates), max(dates)}))}" for where, dates in days.items()]
