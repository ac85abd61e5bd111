"""What a step sees of its run: the device, whether it rehearses, earlier records; and how it records a result."""

from __future__ import annotations

import json
import math
import os
import sys
from typing import Any

MARK = "RECORD "  # before a record, on a line of the output of a step
REHEARSAL = os.environ.get("CONVNETS_GPU_REHEARSAL") == "1"
DEVICE = "cpu" if REHEARSAL else "cuda"
TARGET = "sm_90"  # that a rehearsal compiles for


def interpret_in_rehearsal() -> None:
    """Have Triton interpret in a rehearsal; to be called before the first import of triton."""
    if REHEARSAL:
        os.environ["TRITON_INTERPRET"] = "1"


def record(**fields: Any) -> None:
    """Give a result to the report. Numbers that are not finite become null, as JSON has no others."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields.items()
    }
    sys.stdout.write(MARK + json.dumps(finite) + "\n")
    sys.stdout.flush()


def earlier(step: str) -> list[dict[str, Any]]:
    """Return the records of a step so far, from the report in the environment."""
    path = os.environ.get("CONVNETS_GPU_REPORT")
    if path is None:
        return []
    with open(path, encoding="utf-8") as file:
        return list(json.load(file)["steps"].get(step, {}).get("records", []))


def reason(error: BaseException) -> str:
    """Return the last line of an error, where a compiler says what it means."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" ^")]
    return f"{type(error).__name__}: {lines[-1][:200] if lines else ''}".rstrip(": ")
