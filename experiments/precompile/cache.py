"""Triton's cache: a folder a kernel, named after all that its binary depends on, with a group file that lists it.

Before Triton 3.7 a kernel also needs a launcher, a library in a folder of its own. LIBRARIES names it, in the kernel's
folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from triton import knobs
from triton.runtime.cache import FileCacheManager

LIBRARIES = "convnets_libraries.json"


def cache_folder() -> Path:
    """Return where Triton keeps what it compiles."""
    return Path(knobs.cache.dir)


class Located(Exception):
    """Carries the folder of a kernel out of Triton's compiler, and whether the kernel is there."""

    def __init__(self, key: str, is_cached: bool) -> None:
        super().__init__(key)
        self.key, self.is_cached = key, is_cached


class _Locator(FileCacheManager):
    def get_group(self, filename: str) -> dict[str, str] | None:
        raise Located(self.key, super().get_group(filename) is not None)


class _LibraryRecorder(FileCacheManager):
    keys: list[str]

    def get_file(self, filename: str) -> str | None:
        if filename.endswith(".so") and self.key not in self.keys:
            self.keys.append(self.key)
        return super().get_file(filename)


@contextmanager
def locating() -> Iterator[None]:
    """Have Triton raise Located inside a `with` block where it would compile a kernel or load it from the cache."""
    with knobs.cache.scope():
        knobs.cache.manager_class = _Locator
        yield


@contextmanager
def recording_libraries() -> Iterator[list[str]]:
    """Give the list that fills with the folders of libraries that Triton builds or loads inside a `with` block."""
    keys: list[str] = []
    with knobs.cache.scope():
        knobs.cache.manager_class = type("Recorder", (_LibraryRecorder,), {"keys": keys})
        yield keys


def libraries_of(folder: Path) -> list[str] | None:
    """Return the folders of libraries that the kernel in `folder` needs; None if that is not recorded."""
    try:
        return list(json.loads((folder / LIBRARIES).read_text()))
    except (OSError, ValueError):
        return None


def has_libraries(folder: Path) -> bool:
    """Return True if the libraries of the kernel in `folder` are recorded and there."""
    keys = libraries_of(folder)
    return keys is not None and all(any((folder.parent / key).glob("*.so")) for key in keys)
