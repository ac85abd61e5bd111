"""What runs gave, kept in a JSON file that grows with each."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import statistics
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from experiments.config import read_config
from lightning_modules.files import replace

KINDS = {  # of a run: options of `convnets fit`
    "ours": (),
    "torch": ("--layers", "torch"),
    "ablation": (),
    "linear": (),
}


@dataclass(frozen=True)
class Job:
    """A run of a recipe.

    Args:
        kind: one of KINDS; "linear" is the classifier that it is compared with.
        options: of `convnets fit`, besides those of the kind.
    """

    recipe: Path
    kind: str
    seed: int
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.recipe.stem}, {self.kind}" + ("" if self.kind == "linear" else f", seed {self.seed}")

    @cached_property
    def key(self) -> str:
        """Changes with the recipe, but for its comments and what it expects, and with the options."""
        config = {key: value for key, value in read_config(str(self.recipe)).items() if key != "expect"}
        text = json.dumps([config, *self.options], sort_keys=True, default=str)
        return f"{self.recipe.stem} {self.kind} {self.seed} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class Record:
    """What a run gave.

    Args:
        metrics: figures of the test by name.
        curves: losses of each epoch, by name.
        epochs: seconds of each.
        seconds: of the training, the preparation of the data included.
        conditions: hardware, versions and date.
    """

    metrics: dict[str, float]
    curves: dict[str, list[float]] = field(default_factory=dict)
    epochs: list[float] = field(default_factory=list)
    seconds: float = 0.0
    conditions: dict[str, str] = field(default_factory=dict)

    @property
    def epoch(self) -> float | None:
        """Seconds, the median; without the first, in which much happens once, where there are more."""
        return statistics.median(self.epochs[1:] or self.epochs) if self.epochs else None

    def distance(self, other: Record) -> float | None:
        """The largest difference between the loss curves of two runs; None where they have none in common."""
        pairs = [
            abs(mine - its)
            for name in self.curves.keys() & other.curves.keys()
            for mine, its in zip(self.curves[name], other.curves[name], strict=False)
        ]
        return max(pairs, default=None)


class Records:
    """The records of a JSON file, by the keys of their jobs.

    Raises:
        ValueError: the file cannot be read or written, or is no such file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._known = self._read()
        except OSError as error:
            raise ValueError(f"--json {path}: {error.strerror}") from error

    def _read(self) -> dict[str, Record]:
        try:
            content: Any = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {}
            return {key: Record(**values) for key, values in content.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"--json {self._path} holds something else than results of this command") from error

    def get(self, job: Job) -> Record | None:
        return self._known.get(job.key)

    def add(self, job: Job, record: Record) -> None:
        """Keep a record, on disk too, beside what other processes kept meanwhile; the file is whole at any time."""
        with FileLock(self._path.with_name(f".{self._path.name}.lock")):
            self._known = self._read() | {job.key: record}
            text = json.dumps({key: dataclasses.asdict(each) for key, each in self._known.items()}, indent=1)
            replace(self._path, text + "\n")
