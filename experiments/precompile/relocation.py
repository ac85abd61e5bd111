"""Triton's cache in another place: the group file of each kernel names its files by absolute paths."""

from __future__ import annotations

import json
from pathlib import Path


def relocate(cache: Path) -> None:
    """Have the groups of a cache name their files where they are now, and only those that are there."""
    for group in cache.glob("*/__grp__*"):
        content = group.read_text()
        if (here := regroup(content, group.parent)) != content:
            group.write_text(here)


def regroup(content: str, folder: Path) -> str:
    """Return the content of a group file for files that are in `folder` now."""
    names = [Path(path).name for path in json.loads(content)["child_paths"].values()]
    here = folder.resolve()
    return json.dumps({"child_paths": {name: str(here / name) for name in names if (here / name).is_file()}})
