"""Compile a representative set of every kernel with each Triton that users have, without a GPU, and interpret a few.

    python -m tests.matrix [version ...]

Without versions it takes the oldest that pyproject.toml claims, that of PyTorch 2.10 and 2.11, the installed one and
the newest there is. Each is installed beside the others, into .venv-matrix/VERSION. The problems are the named ones of
tests/compiled.py, with all that can be fused into them: all in float16 for sm_90, a few in the other dtypes and for
other GPUs. It fails where a kernel does not compile, for the reasons of tests/compiled.py, and where a test that
interprets kernels fails. Spills are only shown: each Triton allocates registers its own way, and the tiles are chosen
with the installed one.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from experiments.gpu.bundle import install_triton
from experiments.gpu.step import reason

OLDEST = "3.5.0"  # of the range in pyproject.toml
COMMON = "3.6.0"  # comes with PyTorch 2.10 and 2.11
FOLDER = Path(".venv-matrix")

JOBS = (
    *(("sm_90", arithmetic) for arithmetic in ("float16", "bfloat16", "tf32", "float32", "float64")),
    *((target, "float16") for target in ("sm_80", "sm_100", "gfx942")),
)
COMPLETE = ("sm_90", "float16")  # the other jobs take the problems that follow
FEW = ("3x3 stride 2", "stem", "grouped", "depthwise", "tiled", "linear", "normal", "boxes, 3x3")
KERNELS = {
    "forward": "forward", "transpose": "transpose", "weight_gradient": "weight gradient", "sum": "weight gradient",
    "pool": "pool", "pool_gradient": "pool", "statistics": "batch norm", "moments": "batch norm",
    "normalise": "batch norm", "gradient_sums": "batch norm", "gradient": "batch norm",
}  # fmt: skip


TESTS = ("boxes", "pool", "norm")  # files of tests/kernels, and which of their cases are interpreted
CASES = "no-power-of-two or 3-d or halving"


class Found(NamedTuple):
    """The results of one Triton: kernels and spilling kernels by family, tests that passed, faults, seconds."""

    compiled: Counter[str]
    spilling: Counter[str]
    passed: int
    faults: list[str]
    seconds: float


def newest() -> str:
    """Return the newest Triton that pip finds for this Python."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--dry-run", "--ignore-installed", "--report", "-", "triton"]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return str(json.loads(report)["install"][0]["metadata"]["version"])


def compile_with(release: str, jobs: Sequence[tuple[str, str]]) -> Found:
    """Compile jobs with a Triton, in a process of its own."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "tests.matrix", "--compile", json.dumps(jobs)]
    result = subprocess.run(command, env=environment_of(release), capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        return Found(Counter(), Counter(), 0, [f"the process ended with {result.returncode}: {reason}"], seconds)
    used, compiled, spilling, faults = json.loads(result.stdout)
    if used != release:
        faults.append(f"Triton {used} was imported in its place")
    return Found(Counter(compiled), Counter(spilling), 0, faults, seconds)


def interpret_with(release: str) -> Found:
    """Run a few tests of the kernels interpreted by a Triton."""
    started = time.perf_counter()
    files = [f"tests/kernels/test_{name}.py" for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider", *files, "-k", CASES]
    result = subprocess.run(command, env=environment_of(release), capture_output=True, text=True)
    passed = re.search(r"(\d+) passed", result.stdout)
    faults = [line for line in result.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if result.returncode and not faults:
        faults = [f"pytest ended with {result.returncode}: {result.stderr.strip()[-200:]}"]
    return Found(Counter(), Counter(), int(passed[1]) if passed else 0, faults, time.perf_counter() - started)


def environment_of(release: str) -> dict[str, str]:
    """Return the environment of a process that imports this Triton."""
    paths = filter(None, (install_triton(release, FOLDER), Path.cwd()))
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}


def compile_here(jobs: Sequence[tuple[str, str]]) -> tuple[str, Counter[str], Counter[str], list[str]]:
    """Compile jobs with the Triton of this process: its version, kernels and spilling kernels by family, faults."""
    import torch
    import triton

    from tests import compiled as suite

    torch.set_num_threads(1)
    warnings.filterwarnings("error", category=UserWarning, module=r"triton(\..*)?")  # which users would see, too
    compiled: Counter[str] = Counter()
    spilling: Counter[str] = Counter()
    faults = []
    for target, name in jobs:
        with suite.arithmetic(name) as dtype:
            for problem, run in suite.named_runs(target, dtype):
                if (target, name) != COMPLETE and problem not in FEW:
                    continue
                where = f"{target} {name}, {problem}"
                try:
                    with suite.compiling_for(target) as kernels:
                        run()
                except Exception as error:  # the compiler raises many kinds; the other problems can go on
                    faults.append(f"{where}, {run.args[0]}: {reason(error)}")
                    continue
                for kernel in kernels:
                    family = KERNELS[kernel.name.strip("_").removesuffix("_kernel")]
                    compiled[family] += 1
                    spilling[family] += kernel.spills > 0
                    wrong = suite.faults(target, name, problem, kernel)
                    faults += [f"{where}, {kernel.name}: {fault}" for fault in wrong if not fault.startswith("spills")]
    return triton.__version__, compiled, spilling, faults


def main(releases: list[str]) -> int:
    from rich.console import Console
    from rich.table import Table

    if not releases:
        releases = list(dict.fromkeys([OLDEST, COMMON, version("triton"), newest()]))
    cores = os.cpu_count() or 1
    parts = -(-cores // len(releases))  # processes for each Triton
    work = [partial(compile_with, release, JOBS[part::parts]) for release in releases for part in range(parts)]
    work += [partial(interpret_with, release) for release in releases]
    for release in releases:
        install_triton(release, FOLDER)
    with ThreadPoolExecutor(cores) as executor:
        found = list(zip(work, executor.map(lambda task: task(), work), strict=True))
    families = list(dict.fromkeys(KERNELS.values()))
    table = Table("Triton", *families, "spilling", "tests interpreted", "faults", "seconds")
    wrong = []
    for release in releases:
        own = [each for task, each in found if task.args[0] == release]
        faults = [f"Triton {release}: {fault}" for each in own for fault in each.faults]
        faults += [
            f"Triton {release}: no {f} kernel was compiled" for f in families if not any(e.compiled[f] for e in own)
        ]
        passed = sum(each.passed for each in own)
        if not passed:
            faults.append(f"Triton {release}: no test passed interpreted")
        counts = [str(sum(each.compiled[family] for each in own)) for family in families]
        spilling = sum(each.spilling.total() for each in own)
        seconds = sum(each.seconds for each in own)
        table.add_row(release, *counts, str(spilling), str(passed), str(len(faults)), f"{seconds:.0f}")
        wrong += faults
    Console(width=120).print(table)
    print("\n".join(wrong) or "every kernel compiles with each of them, and the tests pass interpreted")
    return bool(wrong)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--compile"]:
        print(json.dumps(compile_here(json.loads(sys.argv[2]))))
    else:
        sys.exit(main(sys.argv[1:]))
