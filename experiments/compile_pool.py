"""Processes that compile, on all cores: one that ends, as with a crash of the compiler, takes only its job with it.

with CompilePool(work) as pool:
    for number, result in pool.run(jobs):
        print(jobs[number], "crashes the compiler" if result is None else result)
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import ModuleType, TracebackType
from typing import Any, Generic, Self, TypeVar
from unittest import mock

from experiments.gpu.step import cores

Job = TypeVar("Job")
Result = TypeVar("Result")
_CONTEXT = get_context("forkserver")  # this process is not forked: it may hold a GPU, and have threads


class CompilePool(Generic[Job, Result]):
    """Processes that do one job after another, to be used in a `with` block.

    Args:
        work: a function of a module, which does a job. What it raises ends its process.
        processes: at most; by default one a core.
    """

    def __init__(self, work: Callable[[Job], Result], processes: int | None = None) -> None:
        self._work, self._processes = work, processes or cores()
        self._workers: list[BaseProcess] = []
        self._idle: list[Any] = []

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Result | None]]:
        """Do jobs, the first ones first; gives the number and the result of each as it is done.

        The result is None where the process ended. Another takes its place.
        """
        left = list(range(len(jobs)))[::-1]
        at_work: dict[Any, int] = {}
        while left or at_work:
            while left and len(at_work) < self._processes:
                connection = self._idle.pop() if self._idle else self._start()
                at_work[connection] = left.pop()
                with suppress(OSError):  # it has ended already, which is seen below
                    connection.send(jobs[at_work[connection]])
            ready: list[Any] = wait(list(at_work))
            for connection in ready:
                number, result = at_work.pop(connection), None
                with suppress(EOFError, OSError):
                    result = connection.recv()
                    self._idle.append(connection)
                yield number, result

    def _start(self) -> Any:
        """Start a process, and return the connection to it."""
        start_server()
        ours, theirs = _CONTEXT.Pipe()
        with _leaving_main_out():
            worker = _CONTEXT.Process(target=_serve, args=(self._work, theirs), daemon=True)
            worker.start()
        theirs.close()
        self._workers.append(worker)
        return ours

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for worker in self._workers:
            worker.terminate()
            worker.join()


def start_server() -> None:
    """Start the process that others are forked from, once; until it has imported everything, this one can go on."""
    _CONTEXT.set_forkserver_preload(["experiments.compile_preload"])
    interpret = os.environ.pop("TRITON_INTERPRET", None)  # such a process would compile nothing
    try:
        forkserver.ensure_running()
    finally:
        if interpret is not None:
            os.environ["TRITON_INTERPRET"] = interpret


@contextmanager
def _leaving_main_out() -> Iterator[None]:
    """Start processes inside a `with` block that do not import the main module: it may be a script that trains."""
    with mock.patch.dict(sys.modules, {"__main__": ModuleType("__main__")}):
        yield


def _serve(work: Callable[[Any], Any], connection: Connection) -> None:
    """Do the jobs that come, until no more can. An interruption is left to the parent, other cores to its others."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    with suppress(EOFError, BrokenPipeError):
        while True:
            connection.send(work(connection.recv()))
