"""report.json: what the steps recorded, replaced as a whole whenever something is added."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FORMAT = 1
DONE = "done"


class Report:
    """The results of a run, in memory and on disk.

    Args:
        folder: of report.json, which is read where it exists.
        rehearsal: True if nothing in it was measured on a GPU.

    Raises:
        ValueError: the file there is no report, or one of the other kind.
    """

    def __init__(self, folder: Path, rehearsal: bool) -> None:
        self._path = folder / "report.json"
        self.content: dict[str, Any] = {"format": FORMAT, "rehearsal": rehearsal, "machine": {}, "steps": {}}
        self._written = 0.0
        if self._path.exists():
            self.content = self._read(rehearsal)

    def _read(self, rehearsal: bool) -> dict[str, Any]:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            sound = content["format"] == FORMAT and isinstance(content["steps"], dict)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"--output: {self._path} is no report of this command: {error}") from error
        if not sound or content["rehearsal"] != rehearsal:
            kind = "a rehearsal" if content.get("rehearsal") else "a GPU run"
            raise ValueError(f"--output: {self._path} is of {kind} (format {content['format']}): name another folder")
        return content

    def is_done(self, step: str) -> bool:
        return bool(self.content["steps"].get(step, {}).get("status") == DONE)

    def begin(self, step: str, again: bool) -> None:
        """Start a step; what it recorded earlier, before it was stopped, stays unless `again`."""
        earlier = [] if again else self.content["steps"].get(step, {}).get("records", [])
        self.content["steps"][step] = {"status": "running", "seconds": 0.0, "records": earlier}
        self.write()

    def end(self, step: str, status: str, seconds: float) -> None:
        self.content["steps"].setdefault(step, {"records": []}).update(status=status, seconds=round(seconds, 2))
        self.write()

    def add(self, step: str, record: dict[str, Any]) -> None:
        """Keep a record of a step; the file follows within a second."""
        self.content["steps"][step]["records"].append(record)
        if time.monotonic() - self._written > 1.0:
            self.write()

    def records(self, step: str, **fields: Any) -> Iterator[dict[str, Any]]:
        """Yield the records of a step that have these values."""
        for record in self.content["steps"].get(step, {}).get("records", []):
            if all(record.get(name) == value for name, value in fields.items()):
                yield record

    def write(self) -> None:
        replace(self._path, json.dumps(self.content, indent=1) + "\n")
        self._written = time.monotonic()


def replace(path: Path, text: str) -> None:
    """Write a file beside the old one, then rename it: whoever reads meanwhile has a whole one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)
