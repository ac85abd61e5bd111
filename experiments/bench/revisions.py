"""The kernels of another git revision, in a process of their own, beside those that are here."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.closeness import Closeness
    from kernels.problem import Problem

ROOT = Path(__file__).resolve().parents[2]


def described(revision: str | None = None) -> str:
    """A commit's short hash; of the files as they lie here with "-dirty" after it, or "unknown" outside a clone."""
    try:
        if Path(_git("rev-parse", "--show-toplevel").decode().strip()).resolve() != ROOT:
            return "unknown"
        arguments = ("--dirty",) if revision is None else (revision,)
        return _git("describe", "--always", "--exclude=*", *arguments).decode().strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A temporary directory with the kernels of a revision of this repository.

    It is an archive and no `git worktree`, so that nothing has to be tidied up in the repository, however this ends.

    Raises:
        ValueError: there is no such revision, or it is older than the problems that are to be timed.
    """
    commit = resolved(revision)
    with tempfile.TemporaryDirectory(prefix="convnets-bench-") as directory:
        with tarfile.open(fileobj=BytesIO(_git("archive", "--format=tar", commit))) as archive:
            archive.extractall(directory, filter="data")
        if not Path(directory, "kernels", "problem.py").is_file():
            raise ValueError(f"--against {revision}: it has no kernels/problem.py, which is what the benchmark runs")
        yield Path(directory)


def resolved(revision: str) -> str:
    """The commit of a revision.

    Raises:
        ValueError: there is none, or no repository.
    """
    try:
        return _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}").decode().strip()
    except OSError as error:
        raise ValueError("--against needs git, which is not installed") from error
    except subprocess.CalledProcessError as error:
        raise ValueError(f"--against {revision}: no such revision in the repository at {ROOT}") from error


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=True).stdout


class Worker:
    """A `measure.Contender` for our kernels as they are in the directory `tree`."""

    def __init__(self, tree: Path, device: str) -> None:
        # In a session of its own, so that Ctrl-C comes to this process only, which then ends the worker.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "experiments.bench.worker", str(tree), device],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def prepare(self, problem: Problem, operation: str) -> Closeness:
        reached: Closeness = self._ask("prepare", problem, operation)
        return reached

    def seconds(self) -> float:
        return float(self._ask("seconds"))

    def close(self) -> None:
        self._process.kill()
        with suppress(BrokenPipeError):  # what could not be said to it any more
            self._process.communicate()

    def _ask(self, method: str, *arguments: object) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            pickle.dump((method, arguments), self._process.stdin)
            self._process.stdin.flush()
            answer, fault = pickle.load(self._process.stdout)
        except (EOFError, BrokenPipeError) as error:
            raise RuntimeError(f"its process ended with exit code {self._process.wait()}") from error
        if fault:
            raise RuntimeError(fault)
        return answer
