import io
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from experiments import __main__ as command
from experiments.errors import explain, in_one_line
from lightning_modules.classifier import Classifier
from lightning_modules.data import DigitsDataModule

ROOT = str(Path(__file__).parents[2])
STEP_LR = ["--model.lr_scheduler=torch.optim.lr_scheduler.StepLR"]
MIX_UP = ["--model.mix=torchvision.transforms.v2.MixUp"]
STOP = "lightning.pytorch.callbacks.EarlyStopping"


@pytest.fixture
def nothing_left():
    """No file is written by what fails."""
    before = {path for path in Path().rglob("*")}
    yield
    assert {path for path in Path().rglob("*")} == before


@pytest.fixture
def checkpoint(digits, tmp_path) -> Path:
    """One that fits the recipe, with the run's directory removed."""
    assert digits("fit", "--trainer.max_epochs=1").code == 0
    path = tmp_path / "it.ckpt"
    shutil.move("logs/digits/version_0/checkpoints/last.ckpt", path)
    shutil.rmtree("logs")
    return path


@pytest.mark.parametrize(
    ("args", "says"),
    [
        pytest.param(["--trainer.max_epoch=3"], "--trainer.max_epoch=3 (did you mean trainer.max_epochs", id="option"),
        pytest.param(["--data.batchsize=3"], "'batchsize' is not accepted", id="data option"),
        pytest.param(["--trainer.max_epochs=x"], 'key "trainer.max_epochs"', id="value"),
        pytest.param(["--backend=cuda"], "['auto', 'triton', 'torch']. Got value: cuda", id="backend"),
        pytest.param(["--layers=tensorflow"], "['kernels', 'torch']. Got value: tensorflow", id="layers"),
        pytest.param(["--data.batch_size=0"], "must be positive", id="batch size"),
        pytest.param(["--data.split_seed=-1"], "split_seed must be from 0 to 2^32 - 1, got -1", id="seed of a split"),
        pytest.param(["--config=no.yaml"], "--config no.yaml: No such file", id="no config"),
        pytest.param(["--ckpt_path=last"], "no last.ckpt among the runs in logs/digits", id="no last checkpoint"),
        pytest.param(["--ckpt_path=no.ckpt"], "--ckpt_path no.ckpt: no such file", id="no checkpoint"),
        pytest.param(["--trainer.callbacks.every_n_epochs=0"], "must be at least 1, got 0\n", id="callback"),
        pytest.param(["--model.optimizer.lr=x"], "\"lr\": Expected a <class 'float'> Given value: x\n", id="type"),
        pytest.param(["--ckpt_path=."], "--ckpt_path .: a directory", id="directory as checkpoint"),
        pytest.param(["--model.network.classes=3"], "the data have 10 classes, but the network only 3", id="classes"),
        pytest.param(["--data.image_size=1000000"], "not enough memory (7188000000000000 bytes at once)", id="memory"),
        pytest.param(["--data.image_size=1000000000000"], "not enough memory", id="more than can be counted"),
        pytest.param(
            ["--data=Nothing"], "Expected the class path of a lightning.pytorch.core.datamodule.Light", id="data"
        ),
        pytest.param(
            ["--trainer.logger.save_dir=/dev/null"], "/dev/null/digits/version_0 cannot be written: Not a", id="logs"
        ),
        pytest.param(["--compile=nothing"], "--compile must be one of true, false, eager", id="compiler"),
        pytest.param(
            ["--cuda_graph=true"], "--cuda_graph true needs a GPU, got --trainer.accelerator cpu\n", id="graph"
        ),
        pytest.param(["--model.optimizer.lr=1e30"], "network.conv2 (Conv2d) is the first layer with such", id="NaN"),
        pytest.param(
            ["--trainer.accumulate_grad_batches=0"], "accumulate_grad_batches must be at least 1", id="number"
        ),
        pytest.param(
            ["--trainer.precision=transformer-engine"], "--trainer.precision (Transformer", id="not installed"
        ),
        pytest.param(
            ["--model.optimizer.lr=-1"], "--model.optimizer (AdamW): Invalid learning rate: -1", id="optimizer"
        ),
        pytest.param(
            [*STEP_LR, "--model.lr_scheduler.step_size=0"], "--model.lr_scheduler (StepLR): Zero", id="schedule"
        ),
        pytest.param(
            [*MIX_UP, "--model.mix.num_classes=5"], "--model (MixUp): RuntimeError: Class values", id="mixing"
        ),
        pytest.param(
            ["--trainer.callbacks=" + STOP, "--trainer.callbacks.monitor=val/acc"],
            "--trainer.callbacks (EarlyStopping): Early stopping conditioned on metric `val/acc`",
            id="metric",
        ),
        pytest.param(
            ["--trainer.callbacks+=lightning.pytorch.callbacks.LearningRateFinder"],
            "must be without LearningRateFinder: compare values of --model.optimizer.lr",
            id="rate finder",
        ),
        pytest.param(
            ["--trainer.callbacks+=lightning.pytorch.callbacks.BatchSizeFinder"],
            "must be without BatchSizeFinder: compare values of --data.batch_size",
            id="size finder",
        ),
        pytest.param(
            ["--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.01"],
            "must be without StochasticWeightAveraging: its averages reach no checkpoint",
            id="averages that are lost",
        ),
        pytest.param(["--model.network=torch.nn.Identity"], "must have the attribute input_shape", id="other network"),
        pytest.param(["--resume=weights"], "--resume weights needs --ckpt_path", id="no weights"),
        pytest.param(["--model.network.hidden=100000000000"], "not enough memory (1152", id="memory of a network"),
        pytest.param(["--data.image_size=8"], "images must be [N, 1, 12, 12], got [56, 1, 8, 8]", id="image size"),
    ],  # fmt: skip
)
def test_one_line_and_nothing_written(digits, nothing_left, args, says):
    assert says in digits("fit", *args).error + "\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(digits, nothing_left):
    assert "gpu" in digits("fit", "--trainer.accelerator=gpu").error


@pytest.mark.parametrize(("command", "split"), [("validate", "val"), ("test", "test"), ("predict", "predict")])
def test_nothing_to_evaluate(digits, command, split):
    limit = f"--trainer.limit_{split}_batches"
    assert digits(command, f"{limit}=0").error == f"{command} was given no batches: raise {limit}"


class Stream(IterableDataset):
    """No samples, which only shows when they are asked for."""

    def __iter__(self):
        return iter(())


NO_SAMPLES = TensorDataset(torch.zeros(0, 1, 12, 12), torch.zeros(0, dtype=torch.long))


@pytest.mark.parametrize("samples", [NO_SAMPLES, Stream()], ids=["none", "none to come"])
def test_nothing_to_train_on(digits, monkeypatch, nothing_left, samples):
    """With a loader of torch's."""
    empty = DataLoader(samples)
    monkeypatch.setattr(DigitsDataModule, "train_dataloader", lambda _: empty)
    assert digits("fit").error == "--data has no batches to train on"


class Broken:
    """Samples, the second of which cannot be had."""

    def __init__(self, fail):
        self.fail = fail

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return (torch.zeros(1, 12, 12), 0) if index != 1 else self.fail()


def fail():
    raise RuntimeError("no second")


@pytest.mark.parametrize(
    ("second", "workers", "says"),
    [
        (fail, 0, "RuntimeError: no second"),
        (fail, 1, "RuntimeError: no second"),
        (lambda: (torch.zeros(1, 11, 12), 0), 0, "RuntimeError: stack expects each tensor to be equal size"),
        (lambda: os._exit(1), 1, ""),  # how its end shows depends on when
    ],
    ids=["sample", "sample of a worker", "batch", "worker"],
)
def test_data_of_ones_own_that_fail(digits, monkeypatch, nothing_left, second, workers, says):
    context = "fork" if workers else None  # what a test defines cannot be sent to a new process
    broken = DataLoader(Broken(second), batch_size=2, num_workers=workers, multiprocessing_context=context)
    monkeypatch.setattr(DigitsDataModule, "train_dataloader", lambda _: broken)
    assert digits("fit").error.startswith(f"--data (Broken): {says}")


def test_an_error_of_a_library_names_the_option(digits, monkeypatch, nothing_left):
    """Also where the code between them is ours."""
    monkeypatch.setattr("lightning_modules.data.digits.EVALUATED", 1700)
    assert digits("fit").error.startswith("--data (DigitsDataModule): test_size=1700 should be")


def test_a_cluster_that_is_described_wrong(digits, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert "You set `--ntasks=2` in your SLURM bash script" in digits("fit").error


def test_unknown_command(convnets):
    known = ", ".join((*command.COMMANDS, *command.TOOLS))
    assert convnets("fitt").error == f"the first argument must be one of {known}, got 'fitt'"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("trainer: {max_epoch: 3}", "'trainer.max_epoch' (did you mean trainer.max_epochs", id="misspelt"),
        pytest.param("trainer: [3", "bad.yaml is not YAML", id="broken"),
        pytest.param("3", "bad.yaml must hold a mapping", id="no mapping"),
        pytest.param("trainer: 3", "trainer must be a mapping of keys to values, got 3", id="no mapping in it"),
        pytest.param("trainer: {max_epochs: 3, max_epochs: 4}", "the key max_epochs twice", id="twice"),
        pytest.param("data: &it {more: *it}", "alias within what it stands for, which begins in line 1", id="endless"),
        pytest.param("data: " + "[" * 2000 + "]" * 2000, "bad.yaml is nested too deeply", id="deep"),
    ],
)
def test_config_files(digits, tmp_path, text, says):
    (tmp_path / "bad.yaml").write_text(text)
    assert says in digits("fit", "--config", "bad.yaml").error


def test_triton_not_installed(digits, monkeypatch):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert "triton is not installed" in digits("fit", "--backend=triton").error


class Printing:
    """Pickled as a call of print, as malicious checkpoints hide calls of worse."""

    def __reduce__(self):
        return print, ("it runs",)


def test_checkpoints(digits, checkpoint):
    content = checkpoint.read_bytes()
    for name, damaged in (("short", content[: len(content) // 2]), ("empty", b""), ("text", b"hello world\n")):
        Path(f"{name}.ckpt").write_bytes(damaged)
        assert "truncated or damaged" in digits("fit", f"--ckpt_path={name}.ckpt").error

    torch.save({"state_dict": {}, "extra": Printing()}, "unsafe.ckpt")
    refused = digits("test", "--ckpt_path=unsafe.ckpt")
    assert "builtins.print" in refused.error and "weights_only=True" in refused.error and "it runs" not in refused.out

    weights = torch.load(checkpoint, weights_only=True)
    torch.save({key: weights[key] for key in ("state_dict", "pytorch-lightning_version")}, "weights.ckpt")
    assert "holds weights only: it can be evaluated" in digits("fit", "--ckpt_path=weights.ckpt").error
    weights["state_dict"]["network.conv1.weight"][0, 0, 1, 2] = torch.nan
    weights["state_dict"]["network.fc2.bias"][1] = torch.inf
    torch.save(weights, "nan.ckpt")
    for name in ("fit", "test"):
        error = digits(name, "--ckpt_path=nan.ckpt").error
        assert "holds weights that are not finite: network.conv1.weight and 1 more" in error

    torch.save({"network.fc2.bias": torch.zeros(10)}, "weights.pt")
    assert "was not written by Lightning" in digits("test", "--ckpt_path=weights.pt").error

    assert (
        "network.fc1.weight is [64, 288] there and [32, 288] here, and 2 more differ"
        in digits("test", f"--ckpt_path={checkpoint}", "--model.init_args.network.init_args.hidden=32").error
    )
    assert not Path("logs").exists()


def test_a_label_outside_the_classes(digits, monkeypatch, nothing_left):
    monkeypatch.setattr(DigitsDataModule, "classes", 7)
    error = digits("fit", "--model.network.classes=7").error
    assert re.fullmatch(r"labels must be 0 to 6, for a network with 7 scores, got [789]", error)


def test_a_fast_run_leaves_nothing(digits, nothing_left):
    assert digits("fit", "--trainer.fast_dev_run=true").code == 0
    save_last = [
        "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint",
        "--trainer.callbacks.save_last=true",
    ]
    assert digits("fit", "--trainer.fast_dev_run=true", *save_last).code == 0


def test_nan_keeps_the_last_good_checkpoint(digits, monkeypatch):
    usual = Classifier.training_step

    def overflowing(module, batch, batch_idx):
        if module.current_epoch == 1:
            module.network.fc1.weight.data[0, 0] = torch.inf
        return usual(module, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", overflowing)
    error = digits("fit").error
    assert "in epoch 1, step 2: network.fc1 (Linear) is the first" in error
    assert error.endswith("not finite among the weights: network.fc1.weight")
    assert torch.load("logs/digits/version_0/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


def test_the_error_of_a_worker_is_one_line():
    message = (
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback:\n  File 1\nValueError: no\nsuch file"
    )
    assert in_one_line(message) == "no such file"


def test_a_terminal_without_the_characters(convnets, monkeypatch, tmp_path):
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stderr", output)
    assert convnets("fit", "--config", "große.yaml").code == 2
    output.flush()
    assert b"--config gro\\xdfe.yaml: No such file" in output.buffer.getvalue()


def test_a_locale_without_utf8():
    """Files and names are in UTF-8, whatever the locale says: else the name would be shown by numbers."""
    run = subprocess.run(
        [sys.executable, "-m", "experiments", "fit", "--config", "größer.yaml"],
        env={**os.environ, "PYTHONPATH": ROOT, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        capture_output=True,
    )
    assert run.returncode == 2
    assert run.stderr.decode() == "convnets: error: --config größer.yaml: No such file or directory\n"


def test_where_processes_meet():
    error = torch.distributed.DistNetworkError("port: 80, code: -98, message: address already in use")
    with pytest.raises(torch.distributed.DistNetworkError) as raised:
        raise error
    line, code = explain(raised.value)
    assert line.startswith("convnets: error: the processes cannot meet at MASTER_ADDR and MASTER_PORT: port: 80")
    assert code == 2


@pytest.mark.parametrize(("variable", "told"), [("LOCAL_RANK", ""), ("RANK", ""), ("SLURM_PROCID", ""), ("OTHER", "x")])
def test_one_of_several_processes_tells_of_an_error(convnets, monkeypatch, variable, told):
    """That of the others is the same, before they are connected; see test_interruption.py for those that are."""
    monkeypatch.setenv(variable, "1")
    outcome = convnets("fitt")
    assert outcome.code == 2 and bool(outcome.err) == bool(told)


def test_an_error_after_a_checkpoint_keeps_the_run(digits, monkeypatch):
    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(Classifier, "test_step", fail)
    assert digits("fit", "--trainer.max_epochs=1").error == "no space left on device"
    assert Path("logs/digits/version_0/checkpoints/last.ckpt").is_file()


def test_a_fault_of_ours_is_one_line_that_says_so(digits, monkeypatch, nothing_left):
    def fail(*_):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(Classifier, "training_step", fail)
    outcome = digits("fit")
    assert outcome.code == 1 and "Traceback" not in outcome.err
    *_, last = outcome.err.splitlines()
    assert last == "convnets: unexpected error: ZeroDivisionError: division by zero (CONVNETS_DEBUG=1 shows where)"


def test_debug_shows_the_traceback(digits, monkeypatch):
    monkeypatch.setenv("CONVNETS_DEBUG", "1")
    with pytest.raises(ValueError, match="no such file"):
        digits("fit", "--ckpt_path=no.ckpt")


def interrupting(usual):
    def step(module, batch, batch_idx):
        os.kill(os.getpid(), signal.SIGINT)
        return usual(module, batch, batch_idx)

    return step


def test_interrupted_in_the_test(digits, monkeypatch):
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Classifier, "test_step", interrupting(Classifier.test_step))
    try:
        outcome = digits("fit", "--trainer.max_epochs=1")
        signal.signal(signal.SIGINT, handler)  # Lightning ignores further ones
        alone = digits("test")
    finally:
        signal.signal(signal.SIGINT, handler)
    best = Path("logs/digits/version_0/checkpoints/best.ckpt")
    assert outcome.code == alone.code == 130
    assert outcome.err.endswith(f"interrupted: training is complete: test with --ckpt_path {best}\n") and best.is_file()
    assert alone.err.endswith("convnets: interrupted\n")


@pytest.mark.parametrize("epoch", [0, 1])
def test_interrupted(digits, monkeypatch, epoch):
    """Before the first checkpoint nothing is left; after it, it is said how to resume."""
    usual = Classifier.training_step
    handler = signal.getsignal(signal.SIGINT)

    def interrupted(module, batch, batch_idx):
        if module.current_epoch == epoch:
            os.kill(os.getpid(), signal.SIGINT)
        return usual(module, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", interrupted)
    try:
        outcome = digits("fit")
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores further ones
    assert outcome.code == 130
    last = Path("logs/digits/version_0/checkpoints/last.ckpt")
    assert last.is_file() if epoch else not Path("logs").exists()
    assert outcome.err.endswith(f"--ckpt_path {last}\n" if epoch else "interrupted: no checkpoint was written\n")
