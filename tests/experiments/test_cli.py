import csv
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments import __main__ as command
from experiments import cli
from lightning_modules.captured_step import CaptureSteps
from tests.experiments.conftest import DIGITS
from tests.full_disk import full_disk
from tests.lightning_modules.captured import Rerun

RUN = Path("logs/digits/version_0")


def accuracy_in(output: str) -> float:
    """The test accuracy that was printed last."""
    return float(re.findall(r"test/accuracy\D+([\d.]+)", output)[-1])


def test_help_imports_nothing_heavy():
    code = "import sys; from experiments.__main__ import main; main(); sys.exit('torch' in sys.modules)"
    for argument in ("--help", "fit"):
        subprocess.run([sys.executable, "-c", code, argument, "-h"], check=True, capture_output=True)


def test_help_names_what_there_is(convnets):
    page = convnets("--help").out
    assert convnets().out == convnets("fit", "--help").out == page
    assert all(
        word in page
        for word in (*command.COMMANDS, *command.TOOLS, "--backend", "--layers", "--ckpt_path", "--print_config")
    )
    assert convnets("--version").out.startswith("convnets 0.")


def test_complete_help(convnets, capfd):
    with pytest.raises(SystemExit) as stop:
        convnets("fit", "--help=full")
    assert stop.value.code == 0
    out = capfd.readouterr().out
    assert "--trainer.max_epochs" in out and "--backend" in out and "--weights_only" not in out


def test_fit_evaluate_resume(digits):
    """The life of a run: trained, tested, evaluated again from its checkpoints, and trained on."""
    fitted = digits("fit", "--trainer.max_epochs=2")
    assert fitted.code == 0, fitted.err
    assert fitted.out.count("backend: torch") == 1
    assert "4 steps, 0 launches" in fitted.out
    assert re.search(r"look at it: .*tensorboard --logdir logs/digits", fitted.out)
    files = {path.name for path in RUN.rglob("*") if path.is_file() and not path.name.startswith("events")}
    pictures = {"kernels.png", "fits.png", "shapes.png", "growth.gif"}
    assert files == {"best.ckpt", "last.ckpt", "config.yaml", "hparams.yaml"} | pictures

    config = yaml.safe_load((RUN / "config.yaml").read_text())
    assert config["backend"] == "torch" and config["trainer"]["max_epochs"] == 2
    events = EventAccumulator(str(RUN))
    events.Reload()
    tags = events.Tags()
    scalars = {f"{split}/{name}" for split in ("train", "val", "test") for name in ("loss", "accuracy")}
    assert scalars | {"gabor/conv1/mean_r2", "gabor/conv1/fraction"} <= set(tags["scalars"])
    assert {"kernels/conv1", "kernels/conv2", "gabor/conv1/fits", "gabor/conv1/shapes"} == set(tags["images"])
    assert tags["graph"] and "_hparams_/session_start_info" in events.summary_metadata

    before = set(Path().rglob("*"))
    for name in ("best", "last", str(RUN / "checkpoints" / "best.ckpt")):
        assert digits("test", "--ckpt_path", name).code == 0
    accuracy = accuracy_in(fitted.out)
    assert accuracy_in(digits("test", "--ckpt_path", "best").out) == pytest.approx(accuracy, abs=1e-4)  # 4 digits
    assert "no --ckpt_path is given" in digits("validate").out
    assert set(Path().rglob("*")) == before

    assert digits("predict", "--ckpt_path", "best").code == 0
    with (RUN / "checkpoints" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 270
    assert sum(row["label"] == row["prediction"] for row in rows) / 270 == pytest.approx(accuracy, abs=1e-4)

    def best_score() -> float:
        states = torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"].items()
        return float(next(state for name, state in states if name.startswith("ModelCheckpoint"))["best_model_score"])

    score = best_score()
    resumed = digits("fit", "--ckpt_path", "last", "--trainer.max_epochs=3")
    assert resumed.code == 0 and " 6 steps" in resumed.out
    assert torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6
    assert best_score() >= score, "a resumed run keeps what was best before"
    again = digits("fit", "--ckpt_path", "last", "--trainer.max_epochs=3")
    assert again.code == 0 and accuracy_in(again.out) == accuracy_in(resumed.out)
    assert [path.name for path in RUN.parent.iterdir()] == ["version_0"]


def test_layers_of_torch_train_alike_and_load_the_same_checkpoints(digits):
    """Also with a backend that would run the kernels."""
    ours, theirs = (
        digits("fit", "--trainer.max_epochs=1", *options) for options in ((), ("--layers=torch", "--backend=triton"))
    )
    assert ours.code == theirs.code == 0, theirs.err
    assert "layers: torch.nn" in theirs.out and "backend:" not in theirs.out and ", 0 launches" in theirs.out
    weights, others = (
        torch.load(RUN.with_name(f"version_{run}") / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in (0, 1)
    )
    torch.testing.assert_close(others, weights)
    accuracy = accuracy_in(theirs.out)
    theirs_on_ours = digits("test", "--ckpt_path", "best")  # the newest, of layers=torch
    assert "backend: torch" in theirs_on_ours.out
    assert accuracy_in(theirs_on_ours.out) == pytest.approx(accuracy, abs=1e-4)
    ours_on_theirs = digits("test", "--ckpt_path", str(RUN / "checkpoints" / "best.ckpt"), "--layers=torch")
    assert accuracy_in(ours_on_theirs.out) == pytest.approx(accuracy_in(ours.out), abs=1e-4)


def test_compiled_it_has_the_same_checkpoints(digits):
    compiled = digits("fit", "--trainer.max_epochs=1", "--compile=eager", "--data.max_shift=0")
    assert compiled.code == 0 and "no graph" not in compiled.err
    plain = digits("fit", "--trainer.max_epochs=1", "--data.max_shift=0")
    states = [torch.load(f"logs/digits/version_{run}/checkpoints/last.ckpt", weights_only=True) for run in (0, 1)]
    torch.testing.assert_close(states[0]["state_dict"], states[1]["state_dict"])
    assert accuracy_in(compiled.out) == accuracy_in(plain.out)
    assert digits("test", "--ckpt_path=best", "--compile=eager").code == 0


def test_trained_by_graphs_it_has_the_same_checkpoints(digits, monkeypatch):
    """Only fit captures; the configuration that it saves can be evaluated, too."""
    monkeypatch.setattr(cli, "CaptureSteps", partial(CaptureSteps, Rerun))
    options = (
        "--trainer.max_epochs=2",
        "--model.optimizer=torch.optim.SGD",
        "--model.optimizer.lr=0.1",
        "--model.lr_scheduler=null",
    )
    captured = digits("fit", "--cuda_graph=true", *options)
    assert "4 batches and 2 updates replayed" in captured.out, captured.err
    plain = digits("fit", *options)
    assert "replayed" not in plain.out
    configs = [yaml.safe_load(Path(f"logs/digits/version_{run}/config.yaml").read_text()) for run in (0, 1)]
    assert [config["cuda_graph"] for config in configs] == [True, False]
    states = [torch.load(f"logs/digits/version_{run}/checkpoints/last.ckpt", weights_only=True) for run in (0, 1)]
    torch.testing.assert_close(states[0]["state_dict"], states[1]["state_dict"], rtol=0, atol=0)
    assert accuracy_in(captured.out) == accuracy_in(plain.out)
    assert digits("test", "--ckpt_path=best", "--cuda_graph=true").code == 0


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precisions(digits, precision):
    assert digits("fit", "--trainer.max_epochs=1", f"--trainer.precision={precision}").code == 0


def test_mixing_and_smoothing_from_a_recipe(digits):
    mix = ["--model.mix=torchvision.transforms.v2.MixUp", "--model.mix.alpha=0.3", "--model.mix.num_classes=10"]
    options = ["--model.label_smoothing=0.1", "--model.lr_scheduler_interval=step", "--trainer.max_epochs=1"]
    assert digits("fit", *mix, *options).code == 0
    (schedule,) = torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)["lr_schedulers"]
    assert schedule["last_epoch"] == 2


def test_a_resumed_run_logs_each_step_once(digits):
    """What the interrupted run logged after the checkpoint is not shown."""
    assert digits("fit", "--trainer.max_epochs=2").code == 0
    assert digits("fit", "--trainer.max_epochs=3", "--ckpt_path=last").code == 0
    assert digits("fit", "--trainer.max_epochs=3", f"--ckpt_path={RUN / 'checkpoints' / 'best.ckpt'}").code == 0
    events = EventAccumulator(str(RUN))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 3, 5]
    assert [event.step for event in events.Scalars("test/loss")] == [6]
    assert [image.step for image in events.Images("kernels/conv1")] == [0, 1, 3, 5]


def test_without_a_logger_no_file_of_the_users_is_touched(digits, tmp_path):
    (tmp_path / "config.yaml").write_text("trainer: {max_epochs: 1}  # mine\n")
    options = ("--config=config.yaml", "--trainer.logger=false", "--trainer.enable_checkpointing=false")
    assert digits("fit", *options, "--trainer.callbacks=[]").code == 0
    assert (tmp_path / "config.yaml").read_text() == "trainer: {max_epochs: 1}  # mine\n"


def test_configs_are_merged(digits, tmp_path, capfd):
    (tmp_path / "more.yaml").write_text("data: {init_args: {batch_size: 7}}\nbackend: auto\n")
    with pytest.raises(SystemExit):
        digits("fit", "--config", "more.yaml", "--print_config")
    config = yaml.safe_load(capfd.readouterr().out)
    assert config["data"]["init_args"] == {
        "batch_size": 7, "image_size": 12, "max_shift": 1, "num_workers": 0, "split_seed": 0
    }  # fmt: skip
    assert config["backend"] == "auto"


@pytest.mark.parametrize(
    ("args", "variable", "cuda", "interprets"),
    [
        pytest.param(["--backend", "triton"], None, False, True, id="asked for"),
        pytest.param([], "triton", False, True, id="by the environment"),
        pytest.param(["--backend=torch"], "triton", False, False, id="option over environment"),
        pytest.param([], None, False, False, id="auto"),
        pytest.param(["--backend=triton"], None, True, False, id="on a GPU"),
        pytest.param(["--backend=triton", "--trainer.accelerator=cpu"], None, True, True, id="GPU not used"),
    ],
)
def test_interprets_where_triton_cannot_compile(monkeypatch, args, variable, cuda, interprets):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("CONVNETS_BACKEND", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    if variable:
        monkeypatch.setenv("CONVNETS_BACKEND", variable)
    command.prepare_backend(["fit", *args])
    assert (os.environ.pop("TRITON_INTERPRET", None) == "1") is interprets


def test_triton_trains_through_its_kernels(tmp_path):
    """The command as a user starts it, from another directory."""
    run = subprocess.run(
        [sys.executable, "-m", "experiments", "fit", "--config", DIGITS, "--backend", "triton"]
        + ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"]
        + ["--trainer.limit_test_batches=1", "--data.batch_size=8"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("backend: triton") == 1
    (line,) = (line for line in run.stdout.splitlines() if line.startswith("training:"))
    assert int(line.split()[-5]) > 0, line


def test_predicted_maps_are_files_of_their_own(convnets):
    """Of scenes, whose label and prediction are maps; beside the working directory's table, without a checkpoint."""
    recipe = str(Path(DIGITS).with_name("recurrent_labelling.yaml"))
    assert convnets("predict", "--config", recipe, "--data.eval_samples=3", "--trainer.accelerator=cpu").code == 0
    with Path("predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 and rows[2]["label"] == "predictions/label-00002.npy"
    labels, found, probability = (np.load(rows[0][name]) for name in ("label", "prediction", "probability"))
    assert labels.shape == found.shape == probability.shape and labels.dtype == found.dtype == np.int64
    assert 0 < probability.min() <= probability.max() <= 1
    assert convnets("predict", "--config", recipe, "--data.eval_samples=1", "--trainer.accelerator=cpu").code == 0
    assert len(list(Path("predictions").iterdir())) == 3  # a label, a prediction and a probability


def test_a_full_disk_leaves_what_was_there(digits):
    """A file that cannot be written ends a command with one line, and the files of before are whole."""
    assert digits("fit", "--trainer.max_epochs=1").code == 0
    assert digits("predict", "--ckpt_path=best").code == 0
    directory = RUN / "checkpoints"
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    with full_disk(len(before["last.ckpt"]) // 2):
        resumed = digits("fit", "--ckpt_path=last", "--trainer.max_epochs=2")
    assert ".ckpt cannot be written: File too large" in resumed.error
    with full_disk(3000):
        predicted = digits("predict", "--ckpt_path=best")
    assert "checkpoints cannot be written: File too large" in predicted.error
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
