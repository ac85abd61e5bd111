"""`convnets gpu` itself: each step in a process of its own, its records kept as they come."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

from experiments.gpu.markdown import write_markdown
from experiments.gpu.plan import STEPS, Step
from experiments.gpu.report import DONE, Report
from experiments.gpu.step import MARK

CLOSING = 5.0  # seconds that the report takes at the end
LEAST = 5.0  # seconds without which a step is not begun
FOLDERS = {False: Path("gpu-report"), True: Path("build/gpu-rehearsal")}


def run(options: argparse.Namespace) -> int:
    """Run the steps that were asked for and are not done; the exit code is 1 if any is at fault.

    Raises:
        ValueError: there is no GPU, or the folder cannot be used.
        KeyboardInterrupt: after writing the report of what was done until then.
    """
    deadline = time.monotonic() + 60 * options.minutes - CLOSING
    if not options.rehearse:
        check_gpu()
    folder = options.output or FOLDERS[options.rehearse]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        report = Report(folder, options.rehearse)
        report.write()
        log = (folder / "log.txt").open("a", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--output {folder}: {error.strerror}") from error
    chosen = [step for step in STEPS if options.step is None or step.name in options.step]
    background: list[Running] = []
    with log:
        try:
            for step in chosen:
                if report.is_done(step.name) and not options.again:
                    say(log, f"{step.name}: done before")
                    continue
                if step.waits:
                    finish(background, report, log)
                running = begin(step, options, report, folder, log, deadline)
                if running is None:
                    continue
                background.append(running)
                if not step.background:
                    finish([background.pop()], report, log)
                write_markdown(report.content, folder)
            finish(background, report, log)
        except BaseException:
            for each in background:
                each.kill()
                report.end(each.step.name, "interrupted", each.seconds)
            raise
        finally:
            write_markdown(report.content, folder)
        at_fault = [step.name for step in chosen if is_at_fault(report, step.name)]
        say(log, f"{folder / 'report.md'}: " + (f"at fault: {', '.join(at_fault)}" if at_fault else "nothing at fault"))
    return int(bool(at_fault))


def check_gpu() -> None:
    """Raises ValueError where this machine has no GPU that PyTorch and Triton can use."""
    import torch

    if not torch.cuda.is_available():
        raise ValueError("there is no GPU here that PyTorch can use: --rehearse runs the same steps without one")


def is_at_fault(report: Report, name: str) -> bool:
    """Return True if a step failed, or found something wrong; not if it was skipped or ran out of time."""
    status = report.content["steps"].get(name, {}).get("status", "")
    faults = [each for each in report.records(name) if each.get("fault")]
    faults += list(report.records(name, what="failure"))
    return status.startswith("failed") or bool(faults)


def begin(
    step: Step, options: argparse.Namespace, report: Report, folder: Path, log: IO[str], deadline: float
) -> Running | None:
    """Start a step; None, and its status in the report, where it lacks something or time."""
    if step.missing and not options.rehearse:
        status = f"skipped: {', '.join(step.missing)} is not installed"
    elif (left := deadline - time.monotonic()) < LEAST:
        status = "no time left"
    else:
        limit = min(step.rehearsal if options.rehearse else step.limit, left)
        report.begin(step.name, again=options.again)
        return Running(step, limit, options.rehearse, report, folder, log)
    report.begin(step.name, again=False)
    report.end(step.name, status, 0.0)
    say(log, f"{step.name}: {status}")
    return None


def finish(running: list[Running], report: Report, log: IO[str]) -> None:
    """Wait for steps, and note in the report how they ended."""
    while running:
        each = running[0]
        status = each.wait()
        report.end(each.step.name, status, each.seconds)
        say(log, f"{each.step.name}: {status} after {each.seconds:.0f} s of {each.limit:.0f}")
        running.pop(0)


def say(log: IO[str], text: str) -> None:
    for file in (log, sys.stdout):
        file.write(text + "\n")
        file.flush()


class Running:
    """A step in its process, and what it prints: records for the report, anything else for the log."""

    def __init__(self, step: Step, limit: float, rehearse: bool, report: Report, folder: Path, log: IO[str]) -> None:
        self.step, self.limit, self.seconds = step, limit, 0.0
        self._report, self._log = report, log
        self._started = time.monotonic()
        environment = os.environ | {
            "CONVNETS_GPU_REPORT": str(folder / "report.json"), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1",
            "CONVNETS_GPU_REHEARSAL": "1" if rehearse else "0",
        }  # fmt: skip
        environment.pop("TRITON_INTERPRET", None)
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"experiments.gpu.steps.{step.name}"],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            text, mark, record = line.partition(MARK)  # a test's dot may stand before
            if text.strip():
                self._log.write(f"[{self.step.name}] {text.rstrip()}\n")
            if mark:
                self._report.add(self.step.name, json.loads(record))

    def wait(self) -> str:
        """Return how the step ended, at its limit at the latest."""
        try:
            code = self._process.wait(max(0.0, self._started + self.limit - time.monotonic()))
            status = DONE if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            status = f"stopped at its limit of {self.limit:.0f} s"
        self.kill()  # what it may have left
        self._reader.join(timeout=5)
        self.seconds = time.monotonic() - self._started
        return status

    def kill(self) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
