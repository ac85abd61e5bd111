"""Train the recipe `digits` on the Triton backend by the command line, as a user does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from tempfile import TemporaryDirectory

from experiments.gpu.step import REHEARSAL, record

COMMAND = (sys.executable, "-m", "experiments", "fit", "--config", "experiments/digits.yaml", "--backend", "triton")
TINY = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1",
        "--trainer.limit_test_batches", "1")  # fmt: skip


def main() -> int:
    with TemporaryDirectory() as folder:
        command = [*COMMAND, *(TINY if REHEARSAL else ()), "--trainer.logger.init_args.save_dir", folder]
        started = time.perf_counter()
        environment = os.environ | {"COLUMNS": "120", "TERM": "dumb"}
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        seconds = time.perf_counter() - started
    print(result.stdout, result.stderr, sep="\n", flush=True)
    accuracy = re.findall(r"test/accuracy\W+([01]\.\d+)", result.stdout)
    fault = "" if result.returncode == 0 and accuracy else f"exit code {result.returncode}"
    record(seconds=seconds, test_accuracy=float(accuracy[-1]) if accuracy else None, fault=fault)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
