"""The command in processes of its own: killed, and several at once."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch

from tests.experiments.conftest import DIGITS

ROOT = str(Path(__file__).parents[2])
RUN = Path("logs/digits/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"
DROPOUT = """
model:
  init_args:
    network:
      class_path: lightning_modules.architectures.AllCNN
      init_args: {input_shape: [1, 12, 12], filters: [8, 8], classes: 10}
"""
RESIDUAL = """
model:
  init_args:
    network:
      class_path: lightning_modules.architectures.CifarResNet
      init_args: {input_shape: [1, 12, 12], blocks: 1, filters: [4, 8, 8], classes: 10}
"""


class Kill(pl.Callback):
    """The process ends without another word before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class FailElsewhere(pl.Callback):
    """The second process fails in the second epoch, as where a label is wrong in its share of a batch."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_) -> None:
        if trainer.current_epoch == 1 and trainer.global_rank == 1:
            raise ValueError("only here")


def command(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "experiments", "fit", "--config", DIGITS, "--trainer.accelerator=cpu", *args],
        env={**os.environ, "CONVNETS_BACKEND": "torch", "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_killed_in_mid_epoch_and_resumed_is_as_without_interruption(convnets, tmp_path):
    """Bitwise, with dropout and shifted images, which workers or the process itself have loaded."""
    (tmp_path / "dropout.yaml").write_text(DROPOUT)
    options = ["--config=dropout.yaml", "--data.batch_size=100", "--trainer.max_epochs=2"]

    def fit(*args: str) -> dict:
        assert convnets("fit", "--config", DIGITS, "--trainer.accelerator=cpu", *options, *args).code == 0
        return torch.load(LAST, weights_only=True)

    kill = [f"--trainer.callbacks+={__name__}.Kill", "--trainer.callbacks.step=25"]
    killed = command(*options, "--data.num_workers=2", *kill)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert torch.load(LAST, weights_only=True)["global_step"] == 23, "10 after the 13 of the first epoch"
    shutil.copytree("logs", "killed")

    ends = []
    for workers in ("0", "2"):
        shutil.rmtree("logs")
        shutil.copytree("killed", "logs")
        ends.append(fit("--ckpt_path=last", f"--data.num_workers={workers}"))
    shutil.rmtree("logs")
    whole = fit()
    assert whole["global_step"] == 26
    for end in ends:
        assert all(torch.equal(end["state_dict"][name], weight) for name, weight in whole["state_dict"].items())
        assert torch.equal(end["processes"][0]["random"]["torch"], whole["processes"][0]["random"]["torch"])


def test_two_processes_are_one_with_the_batch_of_both(convnets):
    """Also in the last step of an epoch, 28 and 29 digits here. What fails is told of once."""
    options = ["--trainer.precision=64-true", "--data.max_shift=0", "--trainer.max_epochs=2"]
    both = command(
        *options, "--data.batch_size=150", "--trainer.strategy=ddp", "--trainer.devices=2",
        f"--trainer.callbacks+={__name__}.FailElsewhere",
    )  # fmt: skip
    assert both.returncode == 2, both.stderr
    assert [line for line in both.stderr.splitlines() if "rror" in line] == ["convnets: error: only here"]
    checkpoint = torch.load(LAST, weights_only=True)
    assert checkpoint["global_step"] == 5 and len(checkpoint["processes"]) == 2

    shutil.rmtree("logs")
    one = ["--data.batch_size=300", "--trainer.accelerator=cpu", *options, "--trainer.max_epochs=1"]
    assert convnets("fit", "--config", DIGITS, *one).code == 0
    torch.testing.assert_close(checkpoint["state_dict"], torch.load(LAST, weights_only=True)["state_dict"])


def test_synchronised_batch_norm_is_that_of_one_process_with_the_batch_of_both(convnets, tmp_path):
    """With residuals and ReLUs that are fused into it."""
    (tmp_path / "residual.yaml").write_text(RESIDUAL)
    options = ["--config=residual.yaml", "--trainer.precision=64-true", "--data.max_shift=0", "--trainer.max_epochs=1"]
    options += [f"--trainer.limit_{stage}_batches=2" for stage in ("train", "val", "test")]
    both = command(
        *options, "--data.batch_size=150", "--trainer.strategy=ddp", "--trainer.devices=2",
        "--trainer.sync_batchnorm=true",
    )  # fmt: skip
    assert both.returncode == 0, both.stderr
    weights = torch.load(LAST, weights_only=True)["state_dict"]
    assert any("running_var" in name for name in weights)

    shutil.rmtree("logs")
    one = ["--data.batch_size=300", "--trainer.accelerator=cpu", *options]
    assert convnets("fit", "--config", DIGITS, *one).code == 0
    torch.testing.assert_close(weights, torch.load(LAST, weights_only=True)["state_dict"])
