"""Nsight Compute on five kernels: how busy each pipe was, for the report to set beside the estimate."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
import sys

from experiments.gpu.step import REHEARSAL, record

METRICS = {
    "gpu__time_duration.sum": "nanoseconds",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "SM",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active": "tensor",
    "sm__inst_issued.avg.pct_of_peak_sustained_active": "issue",
    "sm__inst_executed_pipe_alu.avg.pct_of_peak_sustained_active": "alu",
    "sm__inst_executed_pipe_fma.avg.pct_of_peak_sustained_active": "fma",
    "l1tex__data_pipe_lsu_wavefronts_mem_shared.avg.pct_of_peak_sustained_elapsed": "shared",
    "l1tex__throughput.avg.pct_of_peak_sustained_active": "L1",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed": "L2",
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed": "DRAM",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps",
}
LAUNCHES = ("-m", "experiments.gpu.launches", "large")
FORBIDDEN = "ERR_NVGPUCTRPERM"
# Clocks stay as they are, so that times compare with those of the layers; torch's kernels do not start with "_".
OPTIONS = ("--csv", "--print-units", "base", "--clock-control", "none", "--kernel-name", r"regex:^_\w+_kernel$")
UNKNOWN = re.compile(r"[Ff]ailed to find metric (?:regex:\^?)?([\w.]+)")


def rows_of(output: str) -> list[dict[str, object]]:
    """Return one record for each kernel in the CSV that ncu prints, its metrics by their short names."""
    lines = [line for line in output.splitlines() if line.startswith('"')]
    kernels: dict[str, dict[str, object]] = {}
    for row in csv.DictReader(io.StringIO("\n".join(lines))):
        known = METRICS.get(row.get("Metric Name", ""))
        if known is not None:
            kernel = kernels.setdefault(row["ID"], {"kernel": row["Kernel Name"].split("(")[0].strip("_ ")})
            kernel[known] = number_in(row.get("Metric Value") or "")
    return list(kernels.values())


def number_in(text: str) -> float | None:
    """Return the number in a cell; None where ncu has none, "n/a"."""
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def main() -> int:
    program = shutil.which("ncu")
    if program is None and REHEARSAL:
        launched = subprocess.run([sys.executable, *LAUNCHES], capture_output=True, text=True)
        fault = "" if launched.returncode == 0 else launched.stderr.strip().splitlines()[-1]
        record(kernel="launches", fault=fault, note="launches only: there is no ncu here")
        return 0
    metrics = list(METRICS)
    code, output = profiled(str(program), metrics)
    if unknown := set(UNKNOWN.findall(output)):  # to this ncu, or on this GPU: the others can still be had
        metrics = [name for name in metrics if name not in unknown]
        code, output = profiled(str(program), metrics)
    if FORBIDDEN in output:
        record(kernel="", fault="", note=f"not allowed here: {FORBIDDEN}")
        return 0
    found = rows_of(output)
    if not found:
        record(kernel="", fault=f"ncu gave no metrics, exit code {code}")
    for each in found:
        record(**each, fault="", note=f"unknown here: {', '.join(sorted(unknown))}" if unknown else "")
    return 0


def profiled(program: str, metrics: list[str]) -> tuple[int, str]:
    """Run ncu; return its exit code, and what it printed."""
    command = [program, *OPTIONS, "--metrics", ",".join(metrics), sys.executable, *LAUNCHES]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    print(result.stdout, flush=True)
    return result.returncode, result.stdout


if __name__ == "__main__":
    raise SystemExit(main())
