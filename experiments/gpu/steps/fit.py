"""Train the recipe `digits` on the Triton backend by the command line, as a user does, without and with CUDA graphs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from experiments.gpu.step import REHEARSAL, record

COMMAND = (sys.executable, "-m", "experiments", "fit", "--config", "experiments/digits.yaml", "--backend", "triton")
TINY = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1",
        "--trainer.limit_test_batches", "1")  # fmt: skip


def train(folder: str, *options: str) -> dict[str, object]:
    """Return how long a run took and how good it was; its logs are the next version in a folder."""
    command = [*COMMAND, *(TINY if REHEARSAL else ()), "--trainer.logger.init_args.save_dir", folder, *options]
    started = time.perf_counter()
    environment = os.environ | {"COLUMNS": "120", "TERM": "dumb"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
    )
    assert process.stdout is not None
    output = ""
    for line in process.stdout:  # as it comes: the log has it where the step runs out of time
        print(line, end="", flush=True)
        output += line
    code = process.wait()
    seconds = time.perf_counter() - started
    accuracy = re.findall(r"test/accuracy\W+([01]\.\d+)", output)
    fault = "" if code == 0 and accuracy else f"exit code {code}"
    return {"seconds": seconds, "test_accuracy": float(accuracy[-1]) if accuracy else None, "fault": fault}


def same_weights(folder: str) -> bool:
    """Return True if all runs in a folder ended with the same weights, bit by bit."""
    import torch

    from lightning_modules.cuda_graph import difference

    paths = sorted(Path(folder).glob("digits/version_*/checkpoints/last.ckpt"))
    first, *others = (torch.load(path, "cpu", weights_only=True)["state_dict"] for path in paths)
    return all(difference(first, other) is None for other in others)


def main() -> int:
    with TemporaryDirectory() as folder:
        record(graph=False, **train(folder))
        graphed = train(folder, *(() if REHEARSAL else ("--cuda_graph", "true")))
        record(graph=not REHEARSAL, **graphed, same_bits=None if graphed["fault"] else same_weights(folder))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
