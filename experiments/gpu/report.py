"""report.json: what the steps recorded, replaced as a whole whenever something is added."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from pathlib import Path
from typing import Any

from lightning_modules.files import replace

FORMAT = 1
DONE = "done"


class Report:
    """The results of a run, in memory and on disk; several threads may add to them.

    Args:
        folder: of report.json, which is read where it exists.
        rehearsal: True if nothing in it was measured on a GPU.
        machine: device and versions, which all results of a folder have in common.
        afresh: True if an earlier report is to be replaced.

    Raises:
        ValueError: the file there is no report, or one of another machine or kind.
    """

    def __init__(self, folder: Path, rehearsal: bool, machine: dict[str, str], afresh: bool) -> None:
        self._path = folder / "report.json"
        self.content: dict[str, Any] = {"format": FORMAT, "rehearsal": rehearsal, "machine": machine, "steps": {}}
        self._written = 0.0
        self._lock = threading.RLock()
        if self._path.exists() and not afresh:
            self.content = self._read()

    def _read(self) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
            earlier = {name: content[name] for name in ("format", "rehearsal", "machine")}
            steps = content["steps"].values()
            sound = all(isinstance(step["records"], list) and isinstance(step["status"], str) for step in steps)
        except (ValueError, KeyError, TypeError, AttributeError):
            sound = False
        if not sound:
            raise ValueError(f"{self._path} is no report of this command: name another --output")
        for name, value in earlier.items():
            if value != self.content[name]:
                raise ValueError(f"{self._path} has {name} {value}, not {self.content[name]}: name another --output")
        return content

    def is_done(self, step: str) -> bool:
        return bool(self.content["steps"].get(step, {}).get("status") == DONE)

    def begin(self, step: str, keep: bool) -> None:
        """Start a step; with `keep` what it recorded without a fault stays, from before it was stopped."""
        with self._lock:
            earlier = [each for each in self.records(step) if keep and not each.get("fault")]
            self.content["steps"][step] = {"status": "running", "seconds": 0.0, "records": earlier}
            self._try_to_write()

    def end(self, step: str, status: str, seconds: float) -> None:
        with self._lock:
            state = self.content["steps"].setdefault(step, {"records": []})
            state.update(status=status, seconds=round(seconds, 2))
            self._try_to_write()

    def add(self, step: str, record: dict[str, Any]) -> None:
        """Keep a record of a step; the file follows within a second."""
        with self._lock:
            self.content["steps"][step]["records"].append(record)
            if time.monotonic() - self._written > 1.0:
                self._try_to_write()

    def records(self, step: str, **fields: Any) -> list[dict[str, Any]]:
        """Return the records of a step that have these values."""
        return records(self.content, step, **fields)

    def write(self) -> None:
        with self._lock:
            replace(self._path, json.dumps(self.content, indent=1) + "\n")
            self._written = time.monotonic()

    def _try_to_write(self) -> None:
        """Write, unless the disk is full for the moment: the steps go on, and what is in memory is written later."""
        with contextlib.suppress(OSError):
            self.write()


def records(content: dict[str, Any], step: str, **fields: Any) -> list[dict[str, Any]]:
    """Return the records of a step in the content of a report.json that have these values."""
    found = content["steps"].get(step, {}).get("records", [])
    return [each for each in found if all(each.get(name) == value for name, value in fields.items())]
