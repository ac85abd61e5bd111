"""`convnets gpu`: steps in processes of their own, their records, the report, and what is carried to a machine."""

import csv
import io
import json
import math
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from experiments.convolutions import convolutions_in
from experiments.gpu import bundle, clocks, run
from experiments.gpu.markdown import markdown, rank_correlation
from experiments.gpu.plan import STEPS, Step

problems = pytest.importorskip("experiments.gpu.problems", reason="triton is not installed")
from experiments.gpu.steps import profiler, sanitizer  # noqa: E402

ROOT = Path(__file__).parents[2]
MACHINE = {"device": "a GPU", "torch": "2", "triton": "3"}
STEP_MODULES = {
    "good": 'print(\'words\'); print(\'.RECORD {"value": 1, "fault": ""}\')',
    "wrong": 'print(\'RECORD {"value": 2, "fault": "off by one"}\')',
    "broken": "print('RECORD {\"value\": 3}', flush=True); raise SystemExit(7)",
    "endless": """
        import subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print('RECORD {"child": %d}' % child.pid, flush=True)
        time.sleep(600)
    """,
    "behind": "import time; time.sleep(1.5); print('RECORD {\"done\": true}')",
    "waiting": """
        import json, os
        behind = json.load(open(os.environ["CONVNETS_GPU_REPORT"]))["steps"]["behind"]
        print('RECORD', json.dumps({"behind": behind["status"], "records": behind["records"]}))
    """,
}


@pytest.fixture
def gpu(convnets, monkeypatch, tmp_path):
    """Run `convnets gpu` with steps of STEP_MODULES, as if on MACHINE."""
    folder = tmp_path / "modules" / "fake_steps"
    folder.mkdir(parents=True)
    for name, code in STEP_MODULES.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(code))
    monkeypatch.setenv("PYTHONPATH", str(folder.parent))
    monkeypatch.setattr(Step, "module", property(lambda step: f"fake_steps.{step.name}"))
    monkeypatch.setattr(run, "describe_machine", lambda rehearse: MACHINE)

    def gpu(steps: list[Step], *options: str):
        monkeypatch.setattr(run, "STEPS", steps)
        return convnets("gpu", *options)

    return gpu


def reported() -> dict:
    return json.loads(Path("gpu-report/report.json").read_text())["steps"]


def ends(pid: int) -> bool:
    """Return True if a process that was killed ends, for which a busy machine may take a minute."""
    status, until = Path(f"/proc/{pid}/status"), time.monotonic() + 60
    while status.exists() and "zombie" not in status.read_text():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def test_records_are_kept_and_a_failure_does_not_stop_the_rest(gpu):
    outcome = gpu([Step(name, "", 20) for name in ("broken", "wrong", "good")])
    steps = reported()
    assert outcome.code == 1 and "at fault: broken, wrong" in outcome.out
    assert [step["status"] for step in steps.values()] == ["failed with exit code 7", "done", "done"]
    assert steps["broken"]["records"] == [{"value": 3}]
    assert steps["good"]["records"] == [{"value": 1, "fault": ""}]
    assert "[good] words" in Path("gpu-report/log.txt").read_text()


def test_a_step_ends_at_its_limit_with_all_that_it_started(gpu):
    outcome = gpu([Step("endless", "", 2), Step("good", "", 20)])
    steps = reported()
    assert outcome.code == 0  # to run out of time is no fault
    assert steps["endless"]["status"] == "stopped at its limit of 2 s" and steps["good"]["status"] == "done"
    assert ends(steps["endless"]["records"][0]["child"])


def test_a_step_in_the_background_is_waited_for(gpu):
    gpu([Step("behind", "", 20, background=True), Step("waiting", "", 20, waits=True)])
    assert reported()["waiting"]["records"] == [{"behind": "done", "records": [{"done": True}]}]


def test_nothing_begins_without_time_left(gpu):
    outcome = gpu([Step("good", "", 20)], "--minutes", "0.1")
    assert outcome.code == 0 and reported()["good"]["status"] == "no time left"


def test_what_is_missing_is_said(gpu):
    gpu([Step("good", "", 20, packages=("torch", "no_such_package"), programs=("no-such-program",))])
    assert reported()["good"]["status"] == "skipped: no_such_package, no-such-program is not installed"


def test_done_steps_are_not_repeated_and_stopped_ones_go_on(gpu):
    steps = [Step("endless", "", 1, resumes=True), Step("good", "", 20)]
    gpu(steps)
    first = reported()
    outcome = gpu(steps)
    second = reported()
    assert "good: done before" in outcome.out and second["good"] == first["good"]
    assert len(second["endless"]["records"]) == 2  # those of the first time, which a step may build on, and its own
    gpu(steps[1:], "--again")
    assert list(reported()) == ["good"] and len(reported()["good"]["records"]) == 1


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("{", "is no report of this command: name another --output"),
        ('{"steps": {}}', "is no report of this command: name another --output"),
        ('{"format": 1, "rehearsal": true, "machine": {}, "steps": {}}', "has rehearsal True, not False"),
        ('{"format": 1, "rehearsal": false, "machine": {"device": "B"}, "steps": {}}', "has machine {'device': 'B'}"),
    ],
)
def test_a_foreign_report_is_refused_and_kept(gpu, content, error):
    path = Path("gpu-report/report.json")
    path.parent.mkdir()
    path.write_text(content)
    assert error in gpu([Step("good", "", 20)]).error
    assert path.read_text() == content


def test_without_a_gpu_it_says_how_to_rehearse(convnets, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert convnets("gpu").error == (
        "there is no GPU here that PyTorch can use: --rehearse runs the same steps without one"
    )
    assert not Path("gpu-report").exists()


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
def test_minutes_are_a_number_above_0(convnets, value):
    assert "--minutes: must be a number of minutes above 0" in convnets("gpu", f"--minutes={value}").error


def test_layers_are_those_of_the_networks_that_they_name():
    """Found by running torchvision's networks on tensors without memory."""
    models = pytest.importorskip("torchvision.models")
    found = {}
    for layer in problems.LAYERS:
        if layer.network not in found:
            with torch.device("meta"):
                network = models.get_model(layer.network, weights=None)
            found[layer.network] = {each.problem for each in convolutions_in(network, (32, 3, 224, 224), torch.float16)}
        assert layer.problem(32, torch.float16) in found[layer.network], layer
    assert len(set(problems.LAYERS)) == len(problems.LAYERS)


def estimate(key: str, seconds: float) -> dict:
    launch = {
        "kernel": "forward_kernel", "block": [128, 64, 32], "spills": 0, "estimated_seconds": seconds,
        "cycles": {"tensor": 30.0, "L2": 10.0},
    }  # fmt: skip
    operation = {"what": "estimate", "key": key, "operation": "forward", "target": "sm_90", "limit": "tensor"}
    return operation | {"estimated_seconds": seconds, "launches": [launch]}


def measured(key: str, seconds: float, fault: str = "") -> dict:
    if fault:
        return {"key": key, "network": "n", "operation": "forward", "fault": fault}
    times = {"triton_seconds": seconds, "torch_seconds": 2 * seconds, "triton_host_seconds": 5e-5}
    return {"key": key, "network": "n", "operation": "forward", "fault": "", "flops": 10**9, "bytes": 1, **times}


def report_of(**records: list[dict]) -> dict:
    steps = {name: {"status": "done", "seconds": 1.0, "records": found} for name, found in records.items()}
    return {"format": 1, "rehearsal": False, "machine": MACHINE, "steps": steps}


def test_the_report_sets_estimates_beside_times():
    estimates = [estimate("a", 10e-6), estimate("b", 20e-6), estimate("c", 30e-6)]
    times = [measured("a", 20e-6), measured("b", 30e-6), measured("c", 300e-6), measured("d", 0, "wrong: error 1")]
    text = markdown(report_of(ahead=estimates, layers=times), plotted=False)
    assert "3 operations: rank correlation of estimate and time 1.000; median of measured / estimated 2.00" in text
    assert "median error 100 %; geometric mean of ours / cuDNN 0.50." in text
    assert "| c | forward | 10 | forward_kernel | 128x64x32 | tensor 75 %, L2 25 % |" in text  # the worst stands first
    assert text.index("| c | forward | 10 |") < text.index("| a | forward | 2 |")
    assert "| a | forward | 10 | 20 | 2 | 40 | 0.5 | 50 | 50 | tensor |  |" in text
    assert "| d | forward | - | - | - | - | - | - | - | - | wrong: error 1 |" in text
    assert "Measured on a GPU" in text and "No GPU took part" not in text


def test_the_report_counts_the_tests_of_all_shares_and_names_failures():
    records = [
        {"what": "collected", "share": 0, "tests": 5}, {"what": "collected", "share": 1, "tests": 4},
        {"what": "counts", "share": 0, "passed": 1}, {"what": "counts", "share": 0, "passed": 4, "failed": 1},
        {"what": "failure", "test": "test_a", "when": "call", "message": "it | broke"},
        {"what": "counts", "share": 1, "passed": 3, "skipped": 1},
    ]  # fmt: skip
    text = markdown(report_of(tests=records), plotted=False)
    assert "7 passed, 1 failed, 0 errors, 1 skipped, of 9 tests." in text
    assert "| test_a | call | it \\| broke |" in text


@pytest.mark.parametrize("content", [{}, {name: [] for name in (step.name for step in STEPS)}], ids=["none", "empty"])
def test_a_report_can_be_written_at_any_time(content):
    assert markdown(report_of(**content), plotted=False).startswith("# Measured on a GPU")


def test_ranks_of_equal_values_are_shared():
    assert rank_correlation([1.0, 2.0, 2.0, 3.0], [10.0, 20.0, 20.0, 40.0]) == pytest.approx(1)
    assert rank_correlation([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == pytest.approx(-1)
    assert rank_correlation([1.0, 2.0, 2.0, 3.0], [1.0, 3.0, 2.0, 4.0]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert math.isnan(rank_correlation([1.0, 1.0], [1.0, 2.0]))


def test_clocks_are_summed_up_without_lines_that_are_cut_off(tmp_path):
    path = tmp_path / "clocks.csv"
    path.write_text("t, 1980, 2619, 300.5, 40\nt, 1200, 2619, 690.0, 60\nt, 1500, [N/A], 1, 1\nt, 19")
    assert clocks.summary(path)["SM clock, MHz"] == (1200, 1590, 1980)
    assert clocks.summary(path)["power, W"] == (300.5, 495.25, 690.0)
    assert clocks.summary(tmp_path / "none.csv") == {}


def test_errors_of_the_sanitizer_are_counted():
    assert sanitizer.errors_in("========= COMPUTE-SANITIZER\nlaunched\n========= ERROR SUMMARY: 0 errors\n") == 0
    assert sanitizer.errors_in("========= ERROR SUMMARY: 1 error\n") == 1
    assert sanitizer.errors_in("========= RACECHECK SUMMARY: 12 hazards displayed (2 errors, 10 warnings)\n") == 12
    assert sanitizer.errors_in("Error: no CUDA-capable device is detected") is None


def test_metrics_of_the_profiler_are_read():
    table = io.StringIO()
    writer = csv.writer(table, quoting=csv.QUOTE_ALL)
    writer.writerow(["ID", "Kernel Name", "Metric Name", "Metric Unit", "Metric Value"])
    duration, tensor, *_ = profiler.METRICS
    tensor = next(name for name, short in profiler.METRICS.items() if short == "tensor")
    writer.writerow(["0", "_forward_kernel", duration, "ns", "12,345"])
    writer.writerow(["0", "_forward_kernel", tensor, "%", "61.5"])
    writer.writerow(["1", "_pool_kernel", tensor, "%", "n/a"])
    output = f"==PROF== Connected to process 1\nlaunched\n{table.getvalue()}==PROF== Disconnected"
    assert profiler.rows_of(output) == [
        {"kernel": "forward_kernel", "nanoseconds": 12345.0, "tensor": 61.5},
        {"kernel": "pool_kernel", "tensor": None},
    ]


def test_a_cache_that_was_moved_is_found_again(tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    entry = tmp_path / bundle.FOLDER / "triton-cache" / "KEY"
    entry.mkdir(parents=True)
    group = entry / "__grp__kernel.json"
    group.write_text(json.dumps({"child_paths": {"kernel.cubin": "/elsewhere/triton-cache/KEY/kernel.cubin"}}))
    (entry / "kernel.cubin").touch()
    environment = bundle.unpacked(tmp_path)
    assert environment == {"TRITON_CACHE_DIR": str(entry.parent)}
    assert json.loads(group.read_text()) == {"child_paths": {"kernel.cubin": str(entry / "kernel.cubin")}}
    assert bundle.unpacked(tmp_path / "nothing") == {}


AHEAD = """
    from torch import nn
    from kernels import layers, use_backend
    from experiments.gpu.steps import ahead, training
    from experiments.gpu.stub import stubbed

    class Network(nn.Sequential):
        def __init__(self):
            super().__init__(
                layers.Conv2d(3, 16, 3), layers.BatchNorm2d(16), layers.MaxPool2d(2), nn.Flatten(),
                layers.Linear(3600, 10),
            )

    training.network = Network
"""
COMPILE = (
    AHEAD
    + """
    outcome = ahead.compile_training("sm_90")
    print(outcome.compiled)
"""
)
LAUNCH = (
    AHEAD
    + """
    with stubbed("sm_90") as cuda, use_backend("triton"):
        training.step_of(training.prepared(Network(), "cpu"), 2, "cpu")()
    print(cuda.stub_launches())
"""
)


def test_what_is_compiled_ahead_is_found_by_the_launch(tmp_path):
    """Triton's cache holds every kernel of a training step before it runs: the stub driver's launches compile none."""

    def python(code: str) -> int:
        environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "CONVNETS_GPU_REHEARSAL": "1"}
        environment.pop("TRITON_INTERPRET", None)
        result = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        return int(result.stdout)

    kernels = python(COMPILE)
    compiled = set(tmp_path.glob("*/*.cubin"))
    launches = python(LAUNCH)
    assert kernels == len(compiled) > 10 and launches >= kernels
    assert set(tmp_path.glob("*/*.cubin")) == compiled


REFUSED = """
    import ctypes
    from experiments.gpu.stub import build
    cuda = build()
    def encode(address, rows):
        map, one = (ctypes.c_char * 256)(), ctypes.c_uint32(1)
        extents, strides = (ctypes.c_uint64 * 2)(64, 8), (ctypes.c_uint64 * 1)(128)
        box, steps = (ctypes.c_uint32 * 2)(64, rows), (ctypes.c_uint32 * 2)(1, 1)
        return cuda.cuTensorMapEncodeTiled(
            map, 6, 2, ctypes.c_void_p(address), extents, strides, box, steps, 0, 3, 0, 0
        )
    print(encode(256, 8) == 0, encode(264, 8) != 0, encode(256, 257) != 0, cuda.stub_refused())
"""


def test_the_stub_driver_refuses_descriptors_that_cuda_does():
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(REFUSED)], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.split() == ["True", "True", "True", "2"], result.stderr
