"""Records of a table that several processes may tune into at the same time."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

from kernels import table
from kernels.table import Record
from lightning_modules.files import replace


def add(path: Path, target: str, record: Record) -> int:
    """Put a record into the table of `target` in a file, and return how many the table then holds.

    It takes the place of a record of its class. All others stay, also what another process has added meanwhile: under a
    lock the table is read anew, and replaced.

    Raises:
        OSError: the file cannot be written.
    """
    with FileLock(path.with_name(f".{path.name}.lock")):
        records = table.read(path, target).records | {record.product.problem_class: record}
        replace(path, table.dumps(target, records.values()))
    return len(records)
