"""What was measured, as numbers and as rows of a CSV file."""

from __future__ import annotations

import csv
import io
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from experiments.closeness import Closeness
from experiments.convolutions import Layer
from kernels.problem import OPERATIONS


class Quartiles(NamedTuple):
    lower: float
    median: float
    upper: float

    @staticmethod
    def of(values: Sequence[float]) -> Quartiles:
        if len(values) == 1:
            return Quartiles(values[0], values[0], values[0])
        return Quartiles(*statistics.quantiles(values, n=4, method="inclusive"))


@dataclass(frozen=True)
class Task:
    """An operation of a layer of an architecture."""

    architecture: str
    layer: Layer
    operation: str


@dataclass(frozen=True)
class Result:
    """A task by one implementation.

    Args:
        seconds: of each round; none where it is at fault.
        closeness: to float64; None where it did not run.
        fault: "", or what is wrong.
    """

    task: Task
    implementation: str
    seconds: tuple[float, ...]
    closeness: Closeness | None
    fault: str = ""

    @property
    def time(self) -> Quartiles:
        """Seconds."""
        return Quartiles.of(self.seconds)

    @property
    def _operations(self) -> tuple[str, ...]:
        """The convolution's operations in the task's: a step is the forward pass and both gradients."""
        return OPERATIONS if self.task.operation == "step" else (self.task.operation,)

    @property
    def teraflops(self) -> float:
        """TFLOP/s."""
        return len(self._operations) * self.task.layer.problem.flops / self.time.median / 1e12

    @property
    def gigabytes(self) -> float:
        """GB/s of what must be read and written at least, by each operation."""
        return sum(map(self.task.layer.problem.bytes, self._operations)) / self.time.median / 1e9

    def ratio(self, base: Result) -> Quartiles | None:
        """Of the times of each round, this one's over those of `base`; None where either has none."""
        if not self.seconds or not base.seconds:
            return None
        return Quartiles.of([mine / its for mine, its in zip(self.seconds, base.seconds, strict=True)])


class Total(NamedTuple):
    """An operation of all layers that every implementation computed, each counted as often as it occurs.

    Args:
        layers: their number.
        seconds: sum of the median times, by implementation.
        ratios: geometric mean over layers of the median ratios to the last implementation, by implementation.
    """

    layers: int
    seconds: dict[str, float]
    ratios: dict[str, float]


def total(rows: Sequence[Sequence[Result]]) -> Total | None:
    """Of one operation's results, a row for each layer; None where there is no sound row."""
    sound = [row for row in rows if not any(result.fault for result in row)]
    if not sound:
        return None
    counts = [row[0].task.layer.count for row in sound]
    seconds, ratios = {}, {}
    for column in zip(*sound, strict=True):
        name = column[0].implementation
        seconds[name] = math.fsum(n * result.time.median for n, result in zip(counts, column, strict=True))
        logs = (math.log(q.median) for row, r in zip(sound, column, strict=True) if (q := r.ratio(row[-1])) is not None)
        ratios[name] = math.exp(math.fsum(n * log for n, log in zip(counts, logs, strict=True)) / sum(counts))
    return Total(sum(counts), seconds, ratios)


COLUMNS = (
    "architecture", "layer", "count", "batch", "channels", "outputs", "size", "kernel", "stride", "padding", "dilation",
    "groups", "dtype", "operation", "implementation", "median_ms", "lower_quartile_ms", "upper_quartile_ms", "rounds",
    "ratio", "ratio_to", "tflop_per_s", "compulsory_gb_per_s", "error", "allowed_error", "fault",
)  # fmt: skip


def columns_of(result: Result, base: Result) -> dict[str, object]:
    """A result as values of COLUMNS; what it does not have is left out."""
    problem, reached = result.task.layer.problem, result.closeness
    window = problem.window
    row: dict[str, object] = {
        "architecture": result.task.architecture, "layer": result.task.layer.names[0],
        "count": result.task.layer.count, "batch": problem.batch, "channels": problem.channels,
        "outputs": problem.outputs, "size": _joined(problem.size), "kernel": _joined(window.kernel),
        "stride": _joined(window.stride), "padding": _joined([before for before, _ in window.padding]),
        "dilation": _joined(window.dilation), "groups": window.groups,
        "dtype": str(problem.dtype).removeprefix("torch."), "operation": result.task.operation,
        "implementation": result.implementation, "fault": result.fault,
    }  # fmt: skip
    if reached is not None:
        row |= {"error": f"{reached.error:.3e}", "allowed_error": f"{reached.allowed:.3e}"}
    if result.seconds:
        lower, median, upper = (f"{second * 1e3:.6g}" for second in result.time)
        row |= {"median_ms": median, "lower_quartile_ms": lower, "upper_quartile_ms": upper}
        row |= {"rounds": len(result.seconds), "tflop_per_s": f"{result.teraflops:.4g}"}
        row |= {"compulsory_gb_per_s": f"{result.gigabytes:.4g}"}
    ratio = result.ratio(base)
    if ratio is not None and result is not base:
        row |= {"ratio": f"{ratio.median:.4g}", "ratio_to": base.implementation}
    return row


def _joined(values: Sequence[int]) -> str:
    return "x".join(map(str, values))


class CsvFile:
    """A CSV file that grows by whole rows, so that it is sound whenever the run ends.

    The first rows take the place of an earlier content. Where the disk is full, measuring goes on without the file.

    Args:
        provenance: columns that are the same in every row.

    Raises:
        ValueError: the file cannot be written; on `close`, not all of its rows could be.
    """

    def __init__(self, path: Path, provenance: Mapping[str, str]) -> None:
        self._path = path
        self._provenance = provenance
        self._fields = (*COLUMNS, "revision", *provenance)
        self._size = 0  # bytes of whole rows
        self._error: OSError | None = None
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        except OSError as error:
            raise ValueError(f"--csv {path}: {error.strerror}") from error

    def add(self, results: Sequence[Result], revisions: Mapping[str, str]) -> None:
        """Add the results of one task; `revisions` are those of the code, by implementation."""
        base = results[-1]
        text = io.StringIO()
        writer = csv.DictWriter(text, self._fields, lineterminator="\n")
        if self._size == 0:
            writer.writeheader()
        writer.writerows(
            columns_of(result, base) | {"revision": revisions[result.implementation]} | dict(self._provenance)
            for result in results
        )
        if self._error is None:
            self._write(text.getvalue().encode())

    def close(self) -> None:
        os.close(self._file)
        if self._error is not None:
            raise ValueError(f"--csv {self._path} lacks rows: {self._error.strerror}") from self._error

    def _write(self, rows: bytes) -> None:
        if self._size == 0:
            self._cut()
        written = 0
        try:
            while written < len(rows):
                written += os.write(self._file, rows[written:])
            self._size += written
        except OSError as error:
            self._error = error
            self._cut()

    def _cut(self) -> None:
        """Remove what is no whole row."""
        with suppress(OSError):  # a pipe
            os.ftruncate(self._file, self._size)
