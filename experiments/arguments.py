"""A parser for all commands, whose complaints are ValueErrors, its numbers, and checks of where a command writes."""

import argparse
from pathlib import Path
from tempfile import TemporaryFile
from typing import NoReturn

MOST = 2**31 - 1


class Parser(argparse.ArgumentParser):
    """The parser of `convnets NAME`; texts are shown as they are written.

    Raises:
        ValueError: whatever is wrong with the arguments, in one line, where argparse would exit.
    """

    def __init__(self, name: str, description: str, epilog: str) -> None:
        super().__init__(
            f"convnets {name}", description=description, epilog=epilog, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def positive(text: str) -> int:
    """Return a whole number of at least 1, that kernels and PyTorch can take for an extent."""
    return _number(text, 1, MOST)


def natural(text: str) -> int:
    """Return a whole number of at least 0, that kernels and PyTorch can take for an extent."""
    return _number(text, 0, MOST)


def seed(text: str) -> int:
    """Return a number that all generators of random numbers take for a seed."""
    return _number(text, 0, 2**32 - 1)


def _number(text: str, least: int, most: int) -> int:
    if not text.isdecimal() or not least <= int(text[:20]) <= most:
        bound = f"of at least {least}" if not text.isdecimal() or int(text[:20]) < least else f"of at most {most}"
        raise argparse.ArgumentTypeError(f"must be a whole number {bound}, got {text!r}")
    return int(text)


def check_file(path: Path | None, option: str, *endings: str) -> None:
    """Check before the work that a file can be written at its end, if one is asked for at all. Nothing is left there.

    Args:
        endings: of its name, any of them; without, it may have any name.

    Raises:
        ValueError: there is no such directory, it cannot be written to, or something else than a file is in the way.
    """
    if path is None:
        return
    kind = f"a {', '.join(endings)} file" if endings else "a file"
    fits = not endings or any(path.name.removesuffix(ending) not in ("", path.name) for ending in endings)
    try:
        if not fits or path.is_dir() or not path.parent.is_dir():
            why = ", which is a directory" if path.is_dir() else ""
            raise ValueError(f"{option} must be {kind} in an existing directory, got {path}{why}")
        if path.is_file() or not path.exists():  # else a device or a pipe, as /dev/stdout
            _try_to_write(path.parent)
    except OSError as error:
        raise ValueError(f"{option} {path} cannot be written: {error.strerror}") from error


def check_folder(path: Path | None, option: str = "--output") -> None:
    """Check before the work that a directory is there, or can be made, and can be written to. Nothing is left there.

    Raises:
        ValueError: it is not so.
    """
    if path is None:
        return
    try:
        existing = next(each for each in (path, *path.absolute().parents) if each.exists())
        if not existing.is_dir():
            raise ValueError(f"{option} must be a directory, got {path}: {existing} is a file")
        _try_to_write(existing)
    except OSError as error:
        raise ValueError(f"{option} {path} cannot be written: {error.strerror}") from error


def _try_to_write(directory: Path) -> None:
    """Write a block to a file without a name: permissions do not say that a disk is full, or root may not write."""
    with TemporaryFile(dir=directory) as file:
        file.write(bytes(4096))
