import copy
import csv
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.cli import ConvnetsCLI
from lightning_modules.classifier import Classifier

RUN = Path("logs/digits/version_0")
CSV = ("--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir=logs")
TWO = """
trainer:
  logger:
    - class_path: lightning_modules.loggers.TolerantTensorBoardLogger
      init_args: {save_dir: logs, name: digits}
    - class_path: lightning.pytorch.loggers.CSVLogger
      init_args: {save_dir: logs, name: tables}
"""
AVERAGING = "lightning.pytorch.callbacks.EMAWeightAveraging"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Any]:
    """Files of a run of one epoch; each test has a copy."""
    return {"home": tmp_path_factory.mktemp("trained")}


@pytest.fixture
def run(trained, digits, tmp_path) -> Path:
    """A run of one epoch in the working directory."""
    if "logs" not in trained:
        assert digits("fit", "--trainer.max_epochs=1").code == 0
        trained["logs"] = shutil.copytree("logs", trained["home"] / "logs")
    else:
        shutil.copytree(trained["logs"], "logs")
    return RUN


def contents() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def figures(output: str) -> list[str]:
    return re.findall(r"test/\w+: [\d.]+", output)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param(
            ["--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.1"],
            "--model.optimizer.class_path is torch.optim.sgd.SGD here and torch.optim.adamw.AdamW in the checkpoint",
            id="optimizer",
        ),
        pytest.param(
            ["--model.optimizer.lr=0.1"], "--model.optimizer.lr is 0.1 here and 0.015 in the checkpoint", id="rate"
        ),
        pytest.param(
            ["--model.lr_scheduler.gamma=0.5"], "--model.lr_scheduler.gamma is 0.5 here and 0.8", id="schedule"
        ),
        pytest.param(["--seed_everything=1"], "--seed_everything is 1 here and 0 in the checkpoint", id="seed"),
        pytest.param(["--trainer.max_epochs=0"], "--trainer.max_epochs must be at least 1, the epochs of", id="epochs"),
        pytest.param(["--trainer.max_steps=1"], "--trainer.max_steps must be at least 2, the steps of", id="steps"),
        pytest.param(["--model.network.hidden=32"], "last.ckpt is of another architecture", id="network"),
        pytest.param(["--data.image_size=8"], "images must be [N, 1, 12, 12], got [56, 1, 8, 8]", id="first step"),
    ],
)
def test_a_resume_that_fails_changes_nothing(digits, run, options, says):
    before = contents()
    assert says in digits("fit", "--ckpt_path=last", "--trainer.max_epochs=2", *options).error
    assert contents() == before


def test_a_resume_that_fails_later_leaves_what_it_has_trained(digits, run, monkeypatch):
    usual = Classifier.training_step

    def fail(module, batch, batch_idx):
        if module.global_step == 3:
            raise ValueError("only now")
        return usual(module, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", fail)
    before = contents()
    assert digits("fit", "--ckpt_path=last", "--trainer.max_epochs=2").error == "only now"
    after = contents()
    assert set(before) < set(after) and "max_epochs: 2" in (RUN / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param({"loops": {}}, "no loops.fit_loop;", id="no loops"),
        pytest.param({"loops": 3}, "it has no loops;", id="other loops"),
        pytest.param({"loops.fit_loop.epoch_progress.current.processed": "x"}, "current.processed;", id="a word"),
        pytest.param({"loops.fit_loop.epoch_progress.current.processed": -3}, "current.processed;", id="negative"),
        pytest.param({"callbacks": "x"}, "it has no callbacks;", id="other callbacks"),
        pytest.param({"callbacks": {"KernelRecorder(1, True, None, 'kernel')": 3}}, "cannot be resumed", id="callback"),
        pytest.param({"optimizer_states": []}, "it has no optimizer or schedule;", id="no optimizer"),
        pytest.param({"lr_schedulers": []}, "it has lost the state of its schedule", id="no schedule"),
        pytest.param({"lr_schedulers": [{}]}, "it has no optimizer or schedule;", id="empty schedule"),
        pytest.param({"global_step": None}, "it has no global_step;", id="no step"),
        pytest.param({"global_step": -5}, "is damaged: no global_step;", id="negative step"),
        pytest.param({"processes": [{}]}, "is damaged: no processes.0.random;", id="no random state"),
        pytest.param(
            {"processes": [{"random": {}, "logged": {}}]}, "is damaged: no processes.0.random.torch;", id="no generator"
        ),
        pytest.param(
            {"hyper_parameters_of_training": 3},
            "is damaged: no hyper_parameters_of_training;",
            id="no values",
        ),
    ],
)
def test_a_damaged_checkpoint_changes_nothing(digits, run, damage, says):
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    ((keys, value),) = damage.items()
    *path, last = keys.split(".")
    part = checkpoint = copy.deepcopy(checkpoint)
    for key in path:
        part = part[key]
    part[last] = value
    torch.save(checkpoint, run / "checkpoints" / "last.ckpt")
    before = contents()
    assert says in digits("fit", "--ckpt_path=last", "--trainer.max_epochs=2").error
    assert contents() == before


def test_the_recipe_of_a_resumed_run_starts_another_one(digits, run):
    """It does not name the directory that the run has gone on in, nor where its curves were cut."""
    assert digits("fit", "--ckpt_path=last", "--trainer.max_epochs=2").code == 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 2 and config["ckpt_path"] == str(run / "checkpoints" / "last.ckpt")
    logger = config["trainer"]["logger"]["init_args"]
    assert logger["version"] is None and logger.get("purge_step") is None


def test_from_the_weights_of_a_checkpoint_a_run_starts_anew(digits, run):
    """With another learning rate, in a directory of its own; the first steps are those from these weights."""
    before = contents()
    options = ["--resume=weights", "--ckpt_path=last", "--trainer.max_epochs=1", "--model.optimizer.lr=0.003"]
    outcome = digits("fit", *options)
    assert outcome.code == 0 and f"weights: those of {run / 'checkpoints' / 'last.ckpt'}" in outcome.out
    after = contents()
    assert all(after[path] == content for path, content in before.items())
    old, new = (
        torch.load(f"logs/digits/version_{version}/checkpoints/last.ckpt", weights_only=True) for version in (0, 1)
    )
    assert new["global_step"] == 2
    assert new["optimizer_states"][0]["param_groups"][0]["initial_lr"] == 0.003
    distances = [(new["state_dict"][name] - value).abs().max() for name, value in old["state_dict"].items()]
    assert 0 < max(distances) < 2 * 2 * 0.003, "two steps of Adam"
    config = yaml.safe_load(Path("logs/digits/version_1/config.yaml").read_text())
    assert config["resume"] == "weights" and config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.003
    assert digits("fit", "--ckpt_path=last", "--trainer.max_epochs=2", "--model.optimizer.lr=0.003").code == 0


@pytest.mark.parametrize("resume", ["all", "weights"])
def test_a_fast_run_from_a_checkpoint_trains_and_changes_nothing(digits, run, resume):
    before = contents()
    outcome = digits("fit", "--ckpt_path=last", f"--resume={resume}", "--trainer.fast_dev_run=2")
    assert outcome.code == 0 and f" {4 if resume == 'all' else 2} steps, " in outcome.out
    assert contents() == before


def test_a_module_without_a_test_is_only_trained(digits, monkeypatch):
    monkeypatch.delattr(Classifier, "test_step")
    outcome = digits("fit", "--trainer.max_epochs=1")
    assert outcome.code == 0 and not figures(outcome.out)


def test_a_table_of_metrics_goes_on(digits):
    """Without what came after the checkpoint or was cut by a kill, and what a failing resume would have taken."""
    assert digits("fit", *CSV, "--trainer.max_epochs=1").code == 0
    with (RUN / "metrics.csv").open("a") as file:
        file.write("1")
    before = contents()
    assert "images must be" in digits("fit", *CSV, "--ckpt_path=last", "--data.image_size=8").error
    assert contents() == before
    assert digits("fit", *CSV, "--ckpt_path=last", "--trainer.max_epochs=2").code == 0
    assert [path.name for path in RUN.parent.iterdir()] == [RUN.name]
    with (RUN / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["train/loss"]] == ["1", "3"]
    assert [row["step"] for row in rows if row["test/loss"]] == ["4"]


def test_two_loggers_go_on(digits, tmp_path):
    (tmp_path / "two.yaml").write_text(TWO)
    for options in (["--trainer.max_epochs=1"], ["--trainer.max_epochs=2", "--ckpt_path=last"]):
        assert digits("fit", "--config=two.yaml", *options).code == 0
    assert [path.name for path in Path("logs/digits").iterdir()] == ["version_0"]
    events = EventAccumulator(str(RUN))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 3]
    with Path("logs/tables/version_0/metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file) if row["train/loss"]] == ["1", "3"]


def test_without_a_logger_the_last_checkpoint_is_found_where_it_was_written(digits):
    options = ["--trainer.logger=false", "--ckpt_path=last"]
    assert digits("fit", "--trainer.logger=false", "--trainer.max_epochs=1").code == 0
    assert "no best.ckpt" not in digits("test", "--trainer.logger=false", "--ckpt_path=best").err
    assert digits("fit", *options, "--trainer.max_epochs=2").code == 0
    assert torch.load("checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_figure_of_averaged_weights_is_that_of_the_best_checkpoint(digits, epochs):
    """Which has the averaged ones; those that were not averaged are far better after so few steps."""
    averaging = [f"--trainer.callbacks+={AVERAGING}", "--trainer.callbacks.decay=0.9"]
    fitted = digits("fit", *averaging, f"--trainer.max_epochs={epochs}", "--trainer.limit_train_batches=10")
    assert fitted.code == 0, fitted.err
    tested = digits("test", *averaging, "--ckpt_path=best")
    accuracy = float(re.findall(r"test/accuracy\D+([\d.]+)", tested.out)[-1])
    assert f"test/accuracy: {accuracy:.4f}" in figures(fitted.out)
    resumed = digits("fit", "--ckpt_path=last", "--trainer.max_epochs=4")
    assert "--trainer.callbacks must average weights as the run of logs/digits" in resumed.error


def test_processes_that_wait_for_one_that_has_failed_are_ended(monkeypatch):
    """As where the port that they are to meet at is taken."""
    killed: list[int] = []
    launcher = _SubprocessScriptLauncher.__new__(_SubprocessScriptLauncher)
    monkeypatch.setattr(launcher, "kill", killed.append)
    command = ConvnetsCLI.__new__(ConvnetsCLI)
    command.trainer = SimpleNamespace(strategy=SimpleNamespace(launcher=launcher))

    def fail(error: type[Exception]) -> None:
        with pytest.raises(error), command._running():
            raise error("address already in use")

    fail(RuntimeError)
    assert len(killed) == 1
    monkeypatch.setattr("experiments.cli.connected", lambda: torch.distributed)
    fail(RuntimeError)
    assert len(killed) == 1, "those that are connected end by themselves, and one of them says why"
