"""Files that are replaced, never rewritten: a reader, and a run after a crash, always find a whole one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

STREAMS = ("/dev/std", "/dev/fd/", "/proc/")  # what is open already, even where it is a file


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the path of a draft, which takes the place of the file `path` where a `with` block ends without an error.

    The draft has the suffix of `path` and is beside it, since renaming is atomic within a file system only. It reaches
    the disk before it is renamed. A device or a pipe, such as /dev/stdout, is written to directly.

    Raises:
        OSError: the file cannot be written, for example because the disk is full. It is left as it was.
    """
    if str(path).startswith(STREAMS) or (path.exists() and not path.is_file()):
        with _naming(path, path):
            yield path
        return
    place = Path(os.path.realpath(path))
    draft = place.with_name(f".{place.stem}.{os.getpid()}{place.suffix}")
    try:
        with _naming(path, draft):
            yield draft
            if place.exists():
                shutil.copymode(place, draft)
            _flush(draft)
            os.replace(draft, place)
            _flush(place.parent)
    finally:
        with suppress(OSError):  # a system that is read-only refuses this even where there is no draft
            draft.unlink(missing_ok=True)


@contextmanager
def replacing_all(directory: Path) -> Iterator[Path]:
    """Give an empty draft directory, whose files move to `directory` where a `with` block ends without an error.

    They keep their place relative to it, and replace earlier files there. Missing directories are made.

    Raises:
        OSError: a file cannot be written. Earlier files are left as they were.
    """
    with _naming(directory, directory):
        directory.mkdir(parents=True, exist_ok=True)
        draft = TemporaryDirectory(prefix=".", dir=directory)
    with draft as name, _naming(directory, Path(name)):
        yield Path(name)
        moves = {file: directory / file.relative_to(name) for file in Path(name).rglob("*") if file.is_file()}
        for file, place in moves.items():
            if place.is_dir():
                raise IsADirectoryError(f"{place} is a directory")
            _flush(file)
        for file, place in moves.items():
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, place)
        for folder in {place.parent for place in moves.values()}:
            _flush(folder)


def replace(path: Path, content: str | bytes | memoryview) -> None:
    """Replace the content of a file, text as UTF-8; see `replacing`."""
    with replacing(path) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def _naming(path: Path, written: Path) -> Iterator[None]:
    """Let the OSError of a write name `path`, instead of no file or of a draft in the place `written`."""
    try:
        yield
    except OSError as error:
        mine = error.filename is None or os.fsdecode(error.filename).startswith(str(written))
        if not mine or error.strerror is None:
            raise
        raise type(error)(f"{path} cannot be written: {error.strerror}") from error


def _flush(path: Path) -> None:
    """Have a file, or the entries of a directory, written to the disk."""
    if path.is_dir() and os.name == "nt":  # has no such call
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
