"""What the commands share: a parser whose complaints are ValueErrors, and the numbers that it reads."""

import argparse
from typing import NoReturn


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
    """A whole number of at least 1."""
    return _number(text, 1)


def natural(text: str) -> int:
    """A whole number of at least 0."""
    return _number(text, 0)


def _number(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
    return int(text)
