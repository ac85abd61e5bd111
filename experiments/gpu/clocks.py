"""The GPU's clocks, power and temperature while the steps run, once a second: was it throttled?"""

from __future__ import annotations

import shutil
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

QUERY = "timestamp,clocks.sm,clocks.mem,power.draw,temperature.gpu"
NAMES = ("SM clock, MHz", "memory clock, MHz", "power, W", "temperature, C")


@contextmanager
def watched(path: Path) -> Iterator[None]:
    """Have nvidia-smi append its figures to a file inside a `with` block, where there is one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        yield
        return
    with path.open("a") as file:
        command = [program, f"--query-gpu={QUERY}", "--format=csv,noheader,nounits", "--loop-ms=1000", "--id=0"]
        watcher = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            watcher.terminate()  # so that it writes what it has
            try:
                watcher.wait(2.0)
            except subprocess.TimeoutExpired:
                watcher.kill()


def summary(path: Path) -> dict[str, tuple[float, float, float]]:
    """Return least, median and most of each figure in a file of `watched`; nothing where there is none."""
    columns: list[list[float]] = [[] for _ in NAMES]
    for line in path.read_text().splitlines() if path.exists() else []:
        values = [value.strip() for value in line.split(",")[1:]]
        try:
            numbers = [float(value) for value in values]
        except ValueError:  # "[N/A]", or the line that was being written at the end
            continue
        if len(numbers) == len(NAMES):
            for column, number in zip(columns, numbers, strict=True):
                column.append(number)
    return {
        name: (min(column), statistics.median(column), max(column))
        for name, column in zip(NAMES, columns, strict=True)
        if column
    }
