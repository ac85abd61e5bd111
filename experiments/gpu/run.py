"""`convnets gpu` itself: each step in a process of its own, its records kept as they come."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

from experiments.gpu import bundle, clocks
from experiments.gpu.markdown import PLOT, write_markdown
from experiments.gpu.plan import STEPS, Step
from experiments.gpu.report import DONE, Report
from experiments.gpu.step import MARK
from experiments.interruption import interrupted_once

CLOSING = 10.0  # seconds that the report takes at the end
GRACE = 2.0  # seconds that a step's processes have to end once they are killed
LEAST = 15.0  # seconds without which a step is not begun: it imports torch, and starts a context of the GPU
FOLDERS = {False: Path("gpu-report"), True: Path("build/gpu-rehearsal")}
TOOLS = "/usr/local/cuda/bin"  # where ncu and compute-sanitizer are if not on the path
HARMLESS = (DONE, "skipped", "no time left", "stopped")


def run(options: argparse.Namespace) -> int:
    """Run the steps that were asked for and are not done; the exit code is 1 if any is at fault.

    Raises:
        ValueError: there is no GPU, or the folder cannot be used.
        KeyboardInterrupt: after writing the report of what was done until then.
    """
    deadline = time.monotonic() + 60 * options.minutes - CLOSING
    folder = options.output or FOLDERS[options.rehearse]
    machine = describe_machine(options.rehearse)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        afresh = options.again and options.step is None
        report = Report(folder, options.rehearse, machine, afresh)
        report.write()
        if afresh:
            for name in ("clocks.csv", PLOT):
                (folder / name).unlink(missing_ok=True)
        log = (folder / "log.txt").open("w" if afresh else "a", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--output {folder}: {error.strerror}") from error
    os.environ["PATH"] = os.pathsep.join(filter(None, (os.environ.get("PATH"), TOOLS)))
    environment = writable_cache() | bundle.unpacked(Path.cwd())
    with log, interrupted_once(), clocks.watched(folder / "clocks.csv"):
        try:
            runner = Runner(options, report, folder, log, deadline, environment)
            return runner.run([step for step in STEPS if options.step is None or step.name in options.step])
        finally:
            report.content["clocks"] = clocks.summary(folder / "clocks.csv")
            report.write()
            write_markdown(report.content, folder)
            print(f"report: {folder / 'report.md'}")


def writable_cache() -> dict[str, str]:
    """Return an environment in which Triton can keep its kernels: nothing where it can keep them at home."""
    try:
        (Path.home() / ".triton").mkdir(exist_ok=True)
        usable = os.access(Path.home() / ".triton", os.W_OK)
    except (OSError, RuntimeError):  # there is no home
        usable = False
    if usable or "TRITON_CACHE_DIR" in os.environ:
        return {}
    return {"TRITON_CACHE_DIR": os.path.join(tempfile.gettempdir(), f"triton-cache-{os.getuid()}")}


def describe_machine(rehearse: bool) -> dict[str, str]:
    """Return what the results of a folder must have in common: device and versions.

    Raises:
        ValueError: there is no GPU that PyTorch can use, and this is no rehearsal.
    """
    import torch
    import triton

    if not rehearse and not torch.cuda.is_available():
        raise ValueError("there is no GPU here that PyTorch can use: --rehearse runs the same steps without one")
    device = "none" if rehearse else torch.cuda.get_device_name()
    return {"device": device, "torch": torch.__version__, "triton": triton.__version__}


class Runner:
    """Runs steps one after another, some in the background.

    Args:
        environment: for their processes, besides this one's.
    """

    def __init__(
        self, options: argparse.Namespace, report: Report, folder: Path, log: IO[str], deadline: float,
        environment: dict[str, str],
    ) -> None:  # fmt: skip
        self._options, self._report, self._folder, self._log = options, report, folder, log
        self._deadline = deadline
        self._environment = environment
        self._active: list[Running] = []

    def run(self, steps: list[Step]) -> int:
        try:
            for step in steps:
                if self._report.is_done(step.name) and not self._options.again:
                    self._say(f"{step.name}: done before")
                    continue
                if step.waits:
                    self._finish_all()
                running = self._begin(step)
                if running is not None and not step.background:
                    self._finish(running)
            self._finish_all()
        finally:
            for each in self._active:
                each.kill()
            seconds = {each.step.name: each.seconds for each in self._active}
            for step in steps:  # among them one that was only just begun
                if self._report.content["steps"].get(step.name, {}).get("status") == "running":
                    self._report.end(step.name, "interrupted", seconds.get(step.name, 0.0))
        at_fault = [step.name for step in steps if self._is_at_fault(step)]
        self._say(f"at fault: {', '.join(at_fault)}" if at_fault else "nothing at fault")
        return int(bool(at_fault))

    def _begin(self, step: Step) -> Running | None:
        """Start a step; None, and its status in the report, where it lacks something or time."""
        missing = step.missing_packages if self._options.rehearse else step.missing
        left = self._deadline - time.monotonic()
        if missing or left < LEAST:
            status = f"skipped: {', '.join(missing)} is not installed" if missing else "no time left"
            self._report.end(step.name, status, 0.0)
            self._say(f"{step.name}: {status}")
            return None
        limit = min(step.rehearsal if self._options.rehearse else step.limit, left)
        self._report.begin(step.name, keep=step.resumes and not self._options.again)
        running = Running(step, limit, self._environment | self._environment_of_steps(), self._report, self._log)
        self._active.append(running)
        return running

    def _environment_of_steps(self) -> dict[str, str]:
        return {
            "CONVNETS_GPU_REPORT": str(self._folder / "report.json"),
            "CONVNETS_GPU_REHEARSAL": "1" if self._options.rehearse else "0",
        }

    def _finish_all(self) -> None:
        while self._active:
            self._finish(self._active[0])

    def _finish(self, running: Running) -> None:
        """Wait for a step, and note in the report how it ended."""
        status = running.wait()
        self._active.remove(running)
        self._report.end(running.step.name, status, running.seconds)
        self._say(f"{running.step.name}: {status} after {running.seconds:.0f} s of {running.limit:.0f}")
        with contextlib.suppress(OSError):  # of a full disk, as in report.py
            write_markdown(self._report.content, self._folder, plot=False)

    def _is_at_fault(self, step: Step) -> bool:
        """Return True if a step failed or found something wrong; in a rehearsal also if it took too long."""
        status = self._report.content["steps"].get(step.name, {}).get("status", "")
        harmless = HARMLESS[:2] if self._options.rehearse else HARMLESS
        faults = [each for each in self._report.records(step.name) if each.get("fault")]
        return not status.startswith(harmless) or bool(faults or self._report.records(step.name, what="failure"))

    def _say(self, text: str) -> None:
        print(text, flush=True)
        write_to(self._log, text)


def write_to(log: IO[str], text: str) -> None:
    """Add a line to the log, unless the disk is full or, for a process that outlived its step, the log is closed."""
    with contextlib.suppress(OSError, ValueError):
        log.write(text + "\n")
        log.flush()


class Running:
    """A step in its process, and what it prints: records for the report, anything else for the log."""

    def __init__(self, step: Step, limit: float, environment: dict[str, str], report: Report, log: IO[str]) -> None:
        self.step, self.limit = step, limit
        self._report, self._log = report, log
        self._started, self._ended = time.monotonic(), float("inf")
        inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", step.module],
            env=inherited | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"} | environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def seconds(self) -> float:
        """That it has run, in the background too until it ended and not until it was waited for."""
        return min(time.monotonic(), self._ended) - self._started

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                text, mark, record = line.partition(MARK)  # a test's dot may stand before
                try:
                    fields = json.loads(record) if mark else None
                except ValueError:  # a process was ended in mid-line, or something else prints the mark
                    text, fields = line, None
                if text.strip():
                    write_to(self._log, f"[{self.step.name}] {text.rstrip()}")
                if isinstance(fields, dict):
                    self._report.add(self.step.name, fields)
        self._ended = time.monotonic()

    def wait(self) -> str:
        """Return how the step ended, at its limit at the latest."""
        try:
            code = self._process.wait(max(0.0, self.limit - self.seconds))
            status = DONE if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            status = f"stopped at its limit of {self.limit:.0f} s"
        self.kill()  # with what it may have left
        self._reader.join(timeout=GRACE)
        return status

    def kill(self) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        with contextlib.suppress(subprocess.TimeoutExpired):  # a driver that hangs keeps its process from ending
            self._process.wait(GRACE)
