"""Nsight Compute on five kernels: how busy each pipe was, for the report to set beside the estimate."""

from __future__ import annotations

import csv
import io
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


def rows_of(output: str) -> list[dict[str, object]]:
    """Return one record for each kernel in the CSV that ncu prints, its metrics by their short names."""
    lines = [line for line in output.splitlines() if line.startswith('"')]
    kernels: dict[str, dict[str, object]] = {}
    for row in csv.DictReader(io.StringIO("\n".join(lines))):
        known = METRICS.get(row.get("Metric Name", ""))
        if known is not None:
            kernel = kernels.setdefault(row["ID"], {"kernel": row["Kernel Name"].split("(")[0].strip("_ ")})
            value = row["Metric Value"].replace(",", "")
            kernel[known] = float(value) if value.replace(".", "", 1).isdigit() else None
    return list(kernels.values())


def main() -> int:
    program = shutil.which("ncu")
    if program is None and REHEARSAL:
        launched = subprocess.run([sys.executable, *LAUNCHES], capture_output=True, text=True)
        fault = "" if launched.returncode == 0 else launched.stderr.strip().splitlines()[-1]
        record(kernel="launches", fault=fault, note="launches only: there is no ncu here")
        return 0
    command = [str(program), "--csv", "--metrics", ",".join(METRICS), "--kernel-name", "regex:_kernel$"]
    result = subprocess.run([*command, sys.executable, *LAUNCHES], capture_output=True, text=True)
    output = result.stdout + result.stderr
    if FORBIDDEN in output:
        record(kernel="", fault="", note=f"not allowed here: {FORBIDDEN}")
        return 0
    found = rows_of(output)
    if not found:
        print(output, flush=True)
        record(kernel="", fault=f"ncu gave no metrics, exit code {result.returncode}")
    for each in found:
        record(**each, fault="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
