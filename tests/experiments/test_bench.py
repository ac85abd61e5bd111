import csv
import inspect
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from rich.console import Console

from experiments.bench import OPERATIONS, measure, report, results, revisions
from experiments.closeness import Closeness
from experiments.convolutions import Layer
from kernels import problem
from kernels.shape import Window
from tests.full_disk import full_disk

conv = pytest.importorskip("kernels.conv", reason="triton is not installed")

OURS = "triton" if torch.cuda.is_available() else "interpreted"
on_device = pytest.mark.usefixtures("device")  # the command takes the GPU where there is one

SMALL = ("--architecture", "lenet", "--layer", "fc2", "--repeats", "2")


def rows_of(path: str | Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_help_is_quick_and_imports_nothing_heavy():
    code = "import sys; from experiments.__main__ import main; sys.argv[1:] = ['bench', '-h']\ntry: main()"
    code += "\nexcept SystemExit as stop: sys.exit(stop.code or 'torch' in sys.modules)"
    page = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert all(name in page for name in ("resnet50", "weight_gradient", "--against", "float16"))


def test_measures_a_layer_as_a_user_starts_it(tmp_path):
    """Without TRITON_INTERPRET in the environment, from another directory."""
    run = subprocess.run(
        [sys.executable, "-m", "experiments", "bench", *SMALL, "--csv", "it.csv"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        | {"PYTHONPATH": str(revisions.ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    rows = rows_of(tmp_path / "it.csv")
    assert [(row["operation"], row["implementation"]) for row in rows if row["implementation"] != "compile"] == [
        (operation, name) for operation in OPERATIONS for name in (OURS, "torch")
    ]
    for row in rows:
        times = [float(row[f"{name}_ms"]) for name in ("lower_quartile", "median", "upper_quartile")]
        assert 0 < times[0] <= times[1] <= times[2]
        assert float(row["error"]) <= float(row["allowed_error"]) and row["fault"] == ""
        assert row["torch"] == torch.__version__ and row["device"] and row["date"] and row["revision"]
        assert (row["ratio_to"] == "torch") is (float(row["ratio"] or 0) > 0) is (row["implementation"] != "torch")
    assert f"{OURS} / torch" in run.stdout and re.search(r"lenet +│ step +│ +1 │", run.stdout)


@on_device
def test_a_full_disk_costs_the_file_only(convnets):
    run = convnets("bench", *SMALL, "--implementation", "torch", "--operation", "forward", "--csv", "/dev/full")
    assert run.error == "--csv /dev/full lacks rows: No space left on device"
    assert re.search(r"lenet +│ forward", run.out)


def test_a_full_disk_leaves_whole_rows(tmp_path):
    path = tmp_path / "it.csv"
    path.write_text("earlier\n")
    file = results.CsvFile(path, {})
    assert path.read_text() == "earlier\n"
    file._write(b"first\n")
    with full_disk(10):
        file._write(b"second\n")
    assert path.read_text() == "first\n"
    with pytest.raises(ValueError, match="it.csv lacks rows: File too large"):
        file.close()


@on_device
def test_what_is_wrong_gets_no_time(convnets, monkeypatch):
    right = conv.forward
    monkeypatch.setattr(conv, "forward", lambda *args: right(*args) + 1)
    run = convnets("bench", *SMALL, "--operation", "forward", "input_gradient", "--csv", "it.csv")
    assert run.code == 1
    assert re.search(rf"lenet fc2 forward: {OURS} is wrong: error 1\.\d+e\+00, allowed \d\.\d+e-\d\d", run.out)
    wrong, *others = (row for row in rows_of("it.csv") if row["implementation"] != "compile")
    assert wrong["fault"].startswith("wrong") and wrong["median_ms"] == wrong["ratio"] == ""
    assert all(row["median_ms"] and not row["fault"] for row in others)


@on_device
def test_what_fails_does_not_stop_the_others(convnets, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of resource: shared memory\nand more")

    monkeypatch.setattr(conv, "forward", fail)
    run = convnets("bench", *SMALL, "--operation", "forward", "--implementation", "triton", "torch", "--csv", "it.csv")
    assert run.code == 1
    assert [row["fault"] for row in rows_of("it.csv")] == ["failed: out of resource: shared memory", ""]


@on_device
def test_interrupted_it_keeps_what_was_measured(convnets, monkeypatch):
    usual = measure.Contender.prepare

    def interrupted(contender, problem, operation):
        if operation == "weight_gradient":
            os.kill(os.getpid(), signal.SIGTERM)
        return usual(contender, problem, operation)

    monkeypatch.setattr(measure.Contender, "prepare", interrupted)
    run = convnets("bench", *SMALL, "--implementation", "triton", "torch", "--csv", "it.csv", "--plot", "it.png")
    assert run.code == 130
    assert run.err.endswith("convnets: interrupted: 2 of 4 operations were measured, kept in it.csv\n")
    assert {row["operation"] for row in rows_of("it.csv")} == {"forward", "input_gradient"}
    assert "input_gradient" in run.out and Path("it.png").read_bytes().startswith(b"\x89PNG")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_on_a_gpu_a_round_is_the_median_of_do_bench(monkeypatch):
    """As far as can be seen without one: the call suits the installed triton, and milliseconds become seconds."""
    testing = pytest.importorskip("triton.testing")
    signature = inspect.signature(testing.do_bench)

    def do_bench(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        (y,) = given["fn"]()
        assert y.shape == (1, 3) and given["return_mode"] == "median"
        return 2.0

    monkeypatch.setattr(testing, "do_bench", do_bench)
    contender = measure.Contender("torch", "cpu")
    assert contender.prepare(PROBLEM, "forward").close
    contender._device = "cuda"
    assert contender.seconds() == 2e-3


@pytest.mark.skipif(revisions.described() == "unknown", reason="not in a clone of the repository")
@on_device
def test_two_revisions(convnets, monkeypatch, tmp_path):
    room = tmp_path / "room"
    room.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(room))
    run = convnets("bench", *SMALL, "--operation", "forward", "step", "--against", "HEAD", "--csv", "it.csv")
    assert run.code == 0, run.err
    here, there = rows_of("it.csv")[:2]
    assert (here["implementation"], there["implementation"]) == ("here", "HEAD") and here["ratio_to"] == "HEAD"
    assert here["revision"].removesuffix("-dirty") == there["revision"]
    assert here["error"] == there["error"] or here["revision"].endswith("-dirty")
    assert "here / HEAD" in run.out
    assert not list(room.iterdir())


@on_device
@pytest.mark.parametrize(
    ("args", "says"),
    [
        pytest.param(["--architecture=vgg"], "--architecture: invalid choice: 'vgg' (choose from", id="architecture"),
        pytest.param(["--operation", "backward"], "--operation: invalid choice: 'backward'", id="operation"),
        pytest.param(["--batch=0"], "--batch: must be a whole number of at least 1, got '0'", id="batch"),
        pytest.param(["--limits=1"], "unrecognized arguments: --limits=1", id="option"),
        pytest.param([*SMALL, "--layer=conv7"], "'conv7' matches no layer of lenet; one is 'conv1'", id="layer"),
        pytest.param([*SMALL, "--csv=no/it.csv"], "file in an existing directory, got no/it.csv", id="csv"),
        pytest.param(
            [*SMALL, "--csv=."],
            "got ., which is a directory",
            id="csv directory",
        ),
        pytest.param([*SMALL, "--plot=no/it.png"], "--plot must be a .png", id="plot"),
        pytest.param([*SMALL, "--plot=it.jpeg"], "file in an existing directory, got it.jpeg", id="plot format"),
        pytest.param([*SMALL, "--against=nosuch"], "--against nosuch: no such revision", id="revision"),
        pytest.param([*SMALL, "--against=--help"], "--against --help: no such revision", id="option as revision"),
        pytest.param(["--against=HEAD", "--implementation=torch"], "leave out --implementation", id="both"),
    ],
)
def test_errors_are_one_line(convnets, args, says):
    assert says in convnets("bench", *args).error
    assert not list(Path().iterdir())


PROBLEM = problem.Problem(1, 2, 3, (), Window((), (), (), ()), torch.float32)


def result(seconds: tuple[float, ...], implementation: str = "ours", count: int = 1, fault: str = "") -> results.Result:
    layer = Layer(PROBLEM, ("fc",) * count)
    return results.Result(results.Task("net", layer, "forward"), implementation, seconds, Closeness(0, 0), fault)


def test_ratios_are_of_the_same_round():
    ours, torchs = result((2.0, 30.0, 4.0)), result((1.0, 10.0, 4.0), "torch")
    assert ours.ratio(torchs) == (1.5, 2.0, 2.5)
    assert ours.time == (3.0, 4.0, 17.0) and result((3.0,)).time == (3.0, 3.0, 3.0)
    assert ours.ratio(result((), "torch", fault="wrong")) is None


def test_totals_count_each_layer_as_often_as_it_occurs():
    rows = [
        [result((2.0,), count=3), result((1.0,), "torch", count=3)],
        [result((1.0,)), result((16.0,), "torch")],
        [result((), fault="wrong"), result((9.0,), "torch")],  # in neither sum
    ]
    assert results.total(rows) == (4, {"ours": 7.0, "torch": 19.0}, {"ours": pytest.approx(0.5**0.25), "torch": 1.0})
    assert results.total(rows[2:]) is None


def test_rates_are_of_three_operations_in_a_step():
    forward = result((1e-9,))
    step = results.Result(results.Task("net", forward.task.layer, "step"), "ours", (1e-9,), None)
    assert forward.teraflops == pytest.approx(12 * 1e-3) and step.teraflops == pytest.approx(36 * 1e-3)
    assert forward.gigabytes == pytest.approx(4 * (2 + 6 + 3)) and step.gigabytes == pytest.approx(12 * (2 + 6 + 3))
    assert OPERATIONS[:3] == problem.OPERATIONS


def test_tables_have_rates_on_a_gpu():
    console = Console(width=report.WIDTH, record=True)
    rows = [[result((2e-9, 4e-9, 3e-9)), result((1e-9,) * 3, "torch")], [result((), fault="wrong: 1"), result((1.0,))]]
    report.print_tables(console, rows, ["ours", "torch"], rates=True)
    text = console.export_text()
    assert "TFLOP/s" in text and "GB/s, compulsory" in text and "3 (2.5-3.5)" in text
    assert re.search(r"│ +wrong │ +1000 \(1000-1000\) │ +- │ +- │ +- │", text)
    assert "net fc forward: ours is wrong: 1" in text


@pytest.mark.skipif(revisions.described() == "unknown", reason="not in a clone of the repository")
def test_a_worker_that_ends_is_at_fault(tmp_path):
    worker = revisions.Worker(tmp_path, "nonsense")  # no package named kernels there but the one beside this test
    worker._process.kill()
    with pytest.raises(RuntimeError, match="its process ended with exit code -9"):
        worker.prepare(PROBLEM, "forward")
    worker.close()
