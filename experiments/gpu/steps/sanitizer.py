"""One launch of each kernel under compute-sanitizer: accesses out of bounds, and races in shared memory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

from experiments.gpu.step import REHEARSAL, record

TOOLS = ("memcheck", "racecheck")
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)s?")


def errors_in(output: str) -> int | None:
    """Return the number of errors that compute-sanitizer counted; None where it says nothing of them."""
    found = SUMMARY.findall(output)
    return int(found[-1]) if found else None


def main() -> int:
    program = shutil.which("compute-sanitizer")
    launch = [sys.executable, "-m", "experiments.gpu.launches"]
    for tool in TOOLS:
        watched = [] if program is None else [program, "--report-api-errors", "no", "--tool", tool]  # accesses alone
        environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # each tensor has bounds of its own
        result = subprocess.run([*watched, *launch], capture_output=True, text=True, errors="replace", env=environment)
        output = result.stdout + result.stderr
        print(output, flush=True)
        errors = errors_in(output)
        launched = result.returncode == 0 and "launched" in result.stdout
        if program is None and REHEARSAL and launched:
            record(tool=tool, errors=None, fault="", note="launches only: there is no compute-sanitizer here")
            continue
        counted = "no count of errors" if errors is None else f"{errors} errors"
        fault = "" if launched and errors == 0 else f"{counted}, exit code {result.returncode}"
        record(tool=tool, errors=errors, fault=fault)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
