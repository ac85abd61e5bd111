import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml

from experiments.expectation import Expectation
from experiments.recipe import data_of_recipe
from experiments.results import baseline, run, training
from experiments.results.records import Job, Record, Records
from experiments.results.report import Result, markdown, spread
from lightning_modules.epoch_time import EpochTime
from tests.experiments.conftest import DIGITS

DIGITS_PATH = Path(DIGITS)
SHORT = ("--trainer.max_epochs=2", "--trainer.limit_train_batches=2", "--trainer.accelerator=cpu")


def test_help_is_quick_and_imports_nothing_heavy():
    code = "import sys; from experiments.__main__ import main; sys.argv[1:] = ['results', '-h']\ntry: main()"
    code += "\nexcept SystemExit as stop: sys.exit(stop.code or 'torch' in sys.modules)"
    page = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert all(name in page for name in ("--seeds", "--json", "--markdown", "--again", "ablation"))


def test_what_another_process_keeps_in_the_same_file_stays(tmp_path):
    recipe, path = Path(DIGITS), tmp_path / "kept.json"
    ours, theirs = Records(path), Records(path)
    for records, seed in ((ours, 0), (theirs, 1), (ours, 2)):
        records.add(Job(recipe, "ours", seed), Record({"test/accuracy": seed / 10}))
    kept = Records(path)
    assert [kept.get(Job(recipe, "ours", seed)).metrics["test/accuracy"] for seed in range(3)] == [0.0, 0.1, 0.2]


def test_a_run_is_kept_and_not_repeated(convnets, monkeypatch, tmp_path):
    """One true run of the command; what else there is to compare it with was found before."""
    shutil.copy(DIGITS, "it.yaml")
    recipe = Path("it.yaml").resolve()
    known = Records(Path("kept.json"))
    known.add(Job(recipe, "torch", 7, SHORT), Record({"test/accuracy": 0.5}, {"train/loss": [2.0, 1.0]}, [1.0, 3.0]))
    known.add(Job(recipe, "linear", 0), Record({"test/accuracy": 0.99}))

    arguments = ("results", "it.yaml", "--seeds", "7", "--json", "kept.json", "--markdown", "it.md", "--", *SHORT)
    first = convnets(*arguments)
    assert first.code == 1, first.err
    assert re.search(r"it: test/accuracy is 0\.\d+, expected is >= 0\.975", first.err)
    assert "it: test/accuracy is better than a linear classifier's 0.9900 by -0." in first.err
    record = Records(Path("kept.json")).get(Job(recipe, "ours", 7, SHORT))
    assert set(record.metrics) == {"test/accuracy", "test/top5_accuracy", "test/loss"} and set(record.curves) == {
        "train/loss",
        "val/loss",
    }
    assert len(record.epochs) == len(record.curves["train/loss"]) == 2 and 0 < record.epoch < record.seconds
    assert {"device", "torch", "date"} <= record.conditions.keys()
    distance = max(abs(a - b) for a, b in zip(record.curves["train/loss"], [2.0, 1.0], strict=True))
    assert f"| {distance:.1e} |" in re.sub(" +", " ", Path("it.md").read_text())
    assert "29,226" in first.out and {path.name for path in Path().glob("[!.]*")} == {"it.yaml", "it.md", "kept.json"}

    monkeypatch.setattr(run, "trained", lambda *_: pytest.fail("it was run already"))
    stated = yaml.safe_load(recipe.read_text())
    stated["expect"] = {"metric": "test/accuracy", "at_least": 0.0}
    recipe.write_text(yaml.safe_dump(stated))  # the runs are the same ones
    again = convnets(*arguments)
    assert (again.code, again.err.strip()) == (0, "") and "| it " in again.out


def test_what_fails_is_reported_and_the_rest_goes_on(convnets, monkeypatch):
    def trained(job: Job, directory: Path) -> Record:
        if job.kind == "torch":
            raise ValueError("no such layers")
        return Record({"test/accuracy": 0.99}, seconds=600.0)

    monkeypatch.setattr(run, "trained", trained)
    monkeypatch.setattr(run, "linear", lambda data: {"test/accuracy": 0.5})
    outcome = convnets("results", "digits", "--seeds", "0", "1", "--json", "kept.json")
    assert outcome.code == 1 and len(json.loads(Path("kept.json").read_text())) == 3
    failed, slow = outcome.err.strip().splitlines()
    assert failed == "digits: digits, torch, seed 0 failed: no such layers"
    assert slow == "digits: training took 10.0 minutes, expected are 1"


def test_interrupted_runs_are_kept(convnets, monkeypatch):
    def trained(job: Job, directory: Path) -> Record:
        if job.seed == 1:
            raise KeyboardInterrupt
        return Record({"test/accuracy": 0.99})

    monkeypatch.setattr(run, "trained", trained)
    outcome = convnets("results", "digits", "--json", "kept.json")
    assert outcome.code == 130 and len(json.loads(Path("kept.json").read_text())) == 1
    assert outcome.err.endswith("interrupted: 1 of 5 results are kept in kept.json; go on with the same command\n")


def test_a_run_that_fails_says_its_last_line(tmp_path):
    with pytest.raises(
        ValueError, match=r"^--config .*no.yaml: No such file or directory \(all of it: .*output.txt\)$"
    ):
        training.trained(Job(tmp_path / "no.yaml", "ablation", 0), tmp_path)


def test_jobs():
    """Seeds for the network and its ablation; torch.nn's layers and the linear classifier once."""
    plain = Expectation("test/accuracy", at_least=0.9)
    assert [(job.kind, job.seed) for job in run.jobs_of(DIGITS_PATH, plain, [4, 5, 4], ())] == [
        ("ours", 4), ("ours", 5), ("torch", 4),
    ]  # fmt: skip
    full = Expectation("test/accuracy", at_least=0.9, margin=0.1, ablation=["--data.max_shift=0"])
    jobs = run.jobs_of(DIGITS_PATH, full, [4], ("--trainer.max_epochs=1",))
    assert [job.kind for job in jobs] == ["ours", "torch", "linear", "ablation"]
    commands = {job.kind: " ".join(training.command(job, Path("at"))) for job in jobs}
    assert commands["torch"].endswith("--layers torch --trainer.max_epochs=1")
    assert commands["ablation"].endswith("--trainer.max_epochs=1 --data.max_shift=0")
    assert "--seed_everything 4" in commands["ours"] and len({job.key for job in jobs}) == 4


def test_expectations():
    more = Expectation("test/accuracy", at_least=0.9, margin=0.1, minutes=1, ablation=["--x=1"], gain=0.05)
    assert more.unmet(0.96, [59.0], 0.85, 0.9) == [] and more.bound == ">= 0.9"
    assert more.unmet(0.89, [61.0], 0.8, 0.85) == [
        "test/accuracy is 0.8900, expected is >= 0.9",
        "test/accuracy is better than a linear classifier's 0.8000 by 0.0900, expected is 0.1",
        "test/accuracy is better than the ablation's 0.8500 by 0.0400, expected is 0.05",
        "training took 1.0 minutes, expected are 1",
    ]
    less = Expectation("test/loss", at_most=0.2, margin=0.1)
    assert less.unmet(0.2, [], 0.35, None) == [] and less.bound == "<= 0.2"
    assert len(less.unmet(0.25, [], 0.3, None)) == 2
    assert less.unmet(math.nan, [], None, None) == ["test/loss is nan, expected is <= 0.2"]
    for bounds in ({}, {"at_least": 1, "at_most": 2}):
        with pytest.raises(ValueError, match="give one of at_least and at_most"):
            Expectation("test/loss", **bounds)


def test_the_table():
    expectation = Expectation("test/mean_iou", at_least=0.8, margin=0.3, ablation=["--steps=1"])
    ours = [
        Record({"test/mean_iou": value}, {"val/loss": [1.0, 0.5]}, [9.0, 2.0, 4.0], 20.0, {"device": "a", "date": day})
        for value, day in ((0.81, "2026-01-02T03"), (0.85, "2026-01-04T05"))
    ]
    plain = Record({"test/mean_iou": 0.8}, {"val/loss": [1.0, 0.75]}, [5.0])
    result = Result("scenes", expectation, ours, plain, Record({"test/mean_iou": 0.2}), ours[:1], 12345, 67_800_000, [])
    assert result.faults() == []
    head, _, row, _, where = markdown([result]).splitlines()
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "scenes", "mean_iou", "0.8300 (0.8100 to 0.8500)", ">= 0.8", "0.2000", "0.8100", "3", "5", "2.5e-01",
        "12,345", "67.8",
    ]  # fmt: skip
    assert len(head) == len(row) and where == "a; 2026-01-02 to 2026-01-04"
    assert spread([]) == "-" and spread([0.5]) == "0.5000"
    with pytest.raises(ValueError, match="expect: metric must be one of test/mean_iou, got 'test/iou'"):
        Result("x", Expectation("test/iou", at_least=0), ours, None, None, [], 0, 0, []).faults()


class Quadrants(pl.LightningDataModule):
    """Labels that are linear in images [N, 1, side, side]: the brighter half, or of each pixel whether it is bright."""

    def __init__(self, dense: bool) -> None:
        super().__init__()
        self.dense = dense

    def batches(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        found = []
        for side in (6, 8):
            images = torch.randn(40, 1, side, side)
            halves = images.sum((1, 2)).unflatten(1, (2, -1)).sum(2)
            found.append((images, (images[:, 0] > 0).long() if self.dense else (halves[:, 0] > halves[:, 1]).long()))
        return found

    train_dataloader = val_dataloader = test_dataloader = batches


@pytest.mark.parametrize("dense", [False, True], ids=["images of two sizes", "pixels"])
def test_a_linear_classifier_learns_what_is_linear(dense):
    figures = baseline.linear(Quadrants(dense))
    assert figures["test/accuracy"] > 0.8 and ("test/mean_iou" in figures) == dense
    assert not dense or figures["test/mean_iou"] > 0.9


def test_the_linear_classifier_of_a_recipe():
    data = data_of_recipe(DIGITS_PATH)
    assert data.batch_size == 56
    accuracy = baseline.linear(data)["test/accuracy"]
    assert 0.9 < accuracy < 1 and round(accuracy * 270, 6) == round(accuracy * 270)


def test_epoch_times_are_logged():
    class Logger:
        logged: list[dict[str, float]] = []

        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            self.logged.append(metrics)

    trainer = type("Trainer", (), {"loggers": [Logger()], "global_step": 3})()
    callback = EpochTime()
    callback.on_train_epoch_start(trainer, None)
    callback.on_train_epoch_end(trainer, None)
    (metrics,) = Logger.logged
    assert list(metrics) == ["time/epoch"] and metrics["time/epoch"] >= 0


def test_a_wrong_command_line_is_one_line(convnets):
    Path("bare.yaml").write_text("trainer: {}\n")
    Path("typo.yaml").write_text("expect: {metric: test/accuracy, atleast: 1}\n")
    Path("no.json").write_text("[1]")
    for arguments, message in (
        (("nothing",), "RECIPE must be a file or one of "),
        (("digits", "--seeds", "x"), "argument --seeds: must be a whole number of at least 0, got 'x'"),
        (("digits", "--markdown", "no/it.md"), "--markdown must be a file in an existing directory, got no/it.md"),
        (("bare.yaml",), "bare.yaml must say under the key expect what is expected of it"),
        (("typo.yaml",), "unexpected keyword argument 'atleast'"),
        (("digits", "--json", "no.json"), "--json no.json holds something else than results"),
    ):
        assert message in convnets("results", *arguments).error
