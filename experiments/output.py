"""Files of a report: all of them or none."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lightning_modules.files import replacing_all
from lightning_modules.gabor_figures import DPI


def write(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write the content of files by their names, in the place of earlier ones.

    Raises:
        OSError: one cannot be written; all are as they were then.
    """
    with replacing_all(directory) as draft:
        for name, content in files.items():
            (draft / name).write_bytes(content)


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def strict_json(content: Any) -> bytes:
    """JSON as the standard has it: what is not finite is null."""
    return (json.dumps(_finite(content), indent=1, allow_nan=False) + "\n").encode()


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
