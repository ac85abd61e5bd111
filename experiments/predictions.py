"""The table of predictions, and beside it a file for each map."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lightning_modules.files import replacing_all

NAME = "predictions"


def write_predictions(batches: Sequence[Any], directory: Path) -> Path:
    """Write predictions.csv, a row for each sample, and its maps to predictions/<column>-<number>.npy.

    Args:
        batches: named tuples of tensors [N] or [N, *]; the table has a column for each field.
        directory: where the table goes, in the place of an earlier one.

    Returns:
        The path of the table.

    Raises:
        OSError: it cannot be written; an earlier one is left as it was.
    """
    rows = 0
    with replacing_all(directory) as draft:
        with (draft / f"{NAME}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(batches[0]._fields)
            for batch in batches:
                columns = [cells(draft, *column, rows) for column in zip(batch._fields, batch, strict=True)]
                writer.writerows(zip(*columns, strict=True))
                rows += len(columns[0])
        written = {file.name for file in (draft / NAME).glob("*.npy")}
    for earlier in (directory / NAME).glob("*-?????.npy"):
        if earlier.name not in written:
            earlier.unlink()
    return directory / f"{NAME}.csv"


def cells(directory: Path, name: str, values: Tensor, first: int) -> list[Any]:
    """Return a column of the table: values [N], or for values [N, *] their files, numbered from `first`."""
    if values.dim() == 1:
        return values.tolist()
    (directory / NAME).mkdir(exist_ok=True)
    files = [f"{NAME}/{name}-{number:05}.npy" for number in range(first, first + len(values))]
    for file, value in zip(files, values, strict=True):
        np.save(directory / file, value.float().numpy() if value.is_floating_point() else value.numpy())
    return files
