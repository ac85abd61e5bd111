import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest

from experiments.__main__ import main
from kernels import use_backend

DIGITS = str(Path(__file__).parents[2] / "experiments" / "digits.yaml")


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of an error of the user."""
        assert self.code == 2
        *_, last = self.err.splitlines()
        assert last.startswith("convnets: error: ") and "Traceback" not in self.err
        return last.removeprefix("convnets: error: ")


Convnets = Callable[..., Outcome]


@pytest.fixture
def convnets(monkeypatch, tmp_path, capfd) -> Convnets:
    """Run the command in this process, in an empty directory and on the torch backend.

    A command may set TRITON_INTERPRET, which must not reach the tests after it.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVNETS_BACKEND", "torch")
    monkeypatch.delenv("CONVNETS_DEBUG", raising=False)

    def call(*args: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["convnets", *args])
        capfd.readouterr()
        with use_backend("torch"), mock.patch.dict(os.environ):
            code = main()
        return Outcome(code, *capfd.readouterr())

    return call


@pytest.fixture
def digits(convnets) -> Convnets:
    """A command on two batches of the digits."""

    def call(command: str, *args: str) -> Outcome:
        short = ["--trainer.limit_train_batches=2"] if command == "fit" else []
        return convnets(command, "--config", DIGITS, "--trainer.accelerator=cpu", *short, *args)

    return call
