"""Faults in a GPU run: no step, and no record, is lost by another's fault."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from experiments.gpu import bundle, plan, run, step
from experiments.gpu.markdown import markdown, write_markdown
from experiments.gpu.plan import STEPS, Step
from experiments.gpu.report import Report
from experiments.gpu.steps import profiler
from tests.experiments.test_gpu import MACHINE, report_of

ODD = [{}, {"what": "estimate"}, {"what": "machine"}, {"key": 1}, {"what": "counts"}, {"fault": None, "key": "k"}]


@pytest.fixture
def running(tmp_path, monkeypatch):
    """Returns a function that runs Python code as a step, and the report, the log and the status that come of it."""
    report = Report(tmp_path, True, MACHINE, afresh=False)

    def go(code, limit=30.0):
        steps = tmp_path / "experiments" / "gpu" / "steps"
        steps.mkdir(parents=True)
        for package in (steps.parents[1], steps.parent, steps):
            (package / "__init__.py").touch()
        (steps / "mine.py").write_text(textwrap.dedent(code))
        monkeypatch.chdir(tmp_path)
        report.begin("mine", keep=False)
        with (tmp_path / "log.txt").open("w") as log:
            started = run.Running(Step("mine", "Mine", 9), limit, {}, report, log)
            status = started.wait()
        records = list(report.records("mine"))
        return status, records, (tmp_path / "log.txt").read_text(), started

    return go


def test_lines_that_only_look_like_records_do_not_stop_the_reader(running):
    code = """
        import sys
        for line in (b"RECORD {half\\n", b"RECORD 3\\n", b"a RECORD of sorts\\n", b"\\xff\\n", b"RECORD \\n"):
            sys.stdout.buffer.write(line)
        for _ in range(3000):  # more than a pipe holds
            print("x" * 100)
        print('.RECORD {"a": 1}', flush=True)
    """
    status, records, log, _ = running(code)
    assert status == "done" and records == [{"a": 1}]
    assert "{half" in log and "of sorts" in log


def test_a_process_that_outlives_its_step_costs_no_more_than_the_grace(running, monkeypatch):
    monkeypatch.setattr(run, "GRACE", 1.0)
    code = """
        import subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        print(f'RECORD {{"child": {child.pid}}}', flush=True)
    """
    status, (record,), _, _ = running(code)
    os.kill(record["child"], signal.SIGKILL)  # it has outlived the step
    assert status == "done"


def test_the_seconds_of_a_step_in_the_background_end_when_it_ends(running):
    _, _, _, ended = running("pass")
    ended._reader.join()
    assert ended.seconds == ended.seconds < time.monotonic() - ended._started


def test_several_threads_may_record_at_the_same_time(tmp_path):
    report = Report(tmp_path, True, MACHINE, afresh=False)
    faults = []

    def work(name):
        try:
            report.begin(name, keep=False)
            for number in range(200):
                report.add(name, {"number": number})
                report._written = 0.0  # so that each is written
            report.end(name, "done", 1.0)
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(f"step {number}",)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not faults
    assert all(
        len(each["records"]) == 200 for each in json.loads((tmp_path / "report.json").read_text())["steps"].values()
    )


def test_a_full_disk_does_not_stop_a_step(tmp_path, monkeypatch):
    report = Report(tmp_path, True, MACHINE, afresh=False)

    def full(path, text):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("experiments.gpu.report.replace", full)
        report.begin("host", keep=False)
        report.add("host", {"a": 1})
        report.end("host", "done", 1.0)
    report.write()
    assert json.loads((tmp_path / "report.json").read_text())["steps"]["host"]["records"] == [{"a": 1}]


def test_a_step_that_goes_on_keeps_only_what_has_no_fault(tmp_path):
    report = Report(tmp_path, True, MACHINE, afresh=False)
    report.begin("layers", keep=True)
    for fault in ("", "wrong"):
        report.add("layers", {"fault": fault})
    report.begin("layers", keep=True)
    assert list(report.records("layers")) == [{"fault": ""}]
    report.begin("layers", keep=False)
    assert list(report.records("layers")) == []


@pytest.mark.parametrize("name", [each.name for each in STEPS])
def test_odd_records_of_a_step_leave_the_other_sections(name, tmp_path):
    other = "fit" if name != "fit" else "sanitizer"
    sound = {
        "fit": {"seconds": 1.0, "test_accuracy": 0.5, "fault": ""},
        "sanitizer": {"tool": "memcheck", "errors": 0, "fault": ""},
    }
    for odd in ODD:
        write_markdown(report_of(**{name: [odd], other: [sound[other]]}), tmp_path)
        text = (tmp_path / "report.md").read_text()
        assert "memcheck" in text or "0.5" in text


def test_an_operation_without_a_time_of_cudnn_has_a_row():
    launch = {
        "kernel": "forward_kernel", "block": [1, 2, 3], "programs": 1, "warps": 4, "registers": 1, "spills": 0,
        "shared_memory": 0, "resident": 1, "estimated_seconds": 1e-6, "limit": "mma", "cycles": {"mma": 1.0},
    }  # fmt: skip
    estimates = [
        {"what": "estimate", "key": key, "operation": "forward", "target": "sm_90", "estimated_seconds": 1e-6,
         "limit": "mma", "launches": [launch]}
        for key in "ab"
    ]  # fmt: skip
    measured = [{"key": key, "operation": "forward", "fault": "", "flops": 1, "triton_seconds": 2e-6} for key in "ab"]
    text = markdown(report_of(ahead=estimates, layers=measured), plotted=False)
    assert "rank correlation" in text and "do not make a table" not in text


def test_a_bundles_packages_are_known_to_the_plan(tmp_path, monkeypatch):
    site = tmp_path / bundle.FOLDER / "site" / "only_in_the_bundle"
    site.mkdir(parents=True)
    (site / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", sys.path.copy())
    needs = plan.Step("mine", "Mine", 1, packages=("only_in_the_bundle",))
    assert needs.missing == ["only_in_the_bundle"]
    environment = bundle.unpacked(tmp_path)
    assert needs.missing == [] and str(site.parent) in environment["PYTHONPATH"]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("CUDA error: illegal access\nCompile with `TORCH_USE_CUDA_DSA` to debug.\n", "CUDA error: illegal access"),
        ("at 3:4:\n  x = y\n      ^\nno such name: y", "no such name: y"),
        ("", ""),
    ],
)  # fmt: skip
def test_the_reason_of_an_error(message, said):
    assert step.reason(RuntimeError(message)) == f"RuntimeError: {said}".rstrip(": ")


def test_a_quota_limits_the_number_of_processes(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(200)))
    monkeypatch.setattr(Path, "read_text", lambda _: "400000 100000\n")
    assert step.cores() == 4
    monkeypatch.setattr(Path, "read_text", lambda _: "max 100000\n")
    assert step.cores() == step.MOST_CORES


NCU = f"""#!{sys.executable}
import sys
names = sys.argv[sys.argv.index("--metrics") + 1].split(",")
if "REFUSED" == "permission":
    sys.exit("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission")
if "REFUSED" in names:
    sys.exit("==ERROR== Failed to find metric REFUSED")
print("launched")
print('"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"')
for name in names:
    print(f'"0","_forward_kernel","{{name}}","ns","1,234.5"')
"""


@pytest.mark.parametrize(
    ("refused", "note", "metrics"),
    [
        ("permission", "not allowed here: ERR_NVGPUCTRPERM", 0),
        ("l1tex__throughput.avg.pct_of_peak_sustained_active", "unknown here: l1tex", len(profiler.METRICS) - 1),
        ("nothing", "", len(profiler.METRICS)),
    ],
)  # fmt: skip
def test_what_ncu_refuses_is_noted_and_the_rest_is_kept(refused, note, metrics, tmp_path, monkeypatch):
    program = tmp_path / "ncu"
    program.write_text(NCU.replace("REFUSED", refused))
    program.chmod(0o755)
    found = []
    monkeypatch.setattr(profiler.shutil, "which", lambda _: str(program))
    monkeypatch.setattr(profiler, "record", lambda **fields: found.append(fields))
    profiler.main()
    (only,) = found
    assert only["fault"] == "" and only["note"].startswith(note)
    assert sum(only.get(name) == 1234.5 for name in profiler.METRICS.values()) == metrics


def test_a_second_signal_does_not_interrupt_the_report(tmp_path):
    command = [sys.executable, "-m", "experiments", "gpu", "--rehearse", "--step", "host", "--output", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not (tmp_path / "report.json").exists() or "running" not in (tmp_path / "report.json").read_text():
        assert process.poll() is None
        time.sleep(0.05)
    for number in (signal.SIGTERM, signal.SIGINT):  # at once: the second may not come after the report
        process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "report:" in output
    assert json.loads((tmp_path / "report.json").read_text())["steps"]["host"]["status"] == "interrupted"
    assert (tmp_path / "report.md").exists()


def test_a_process_without_the_device_hands_over_to_another(monkeypatch, tmp_path):
    """The tests' plugin, as the steps: of three tests the first leaves the process without the device."""
    (tmp_path / "conftest.py").write_text(
        "import os\nfrom experiments.gpu import step\n"
        "step.device_is_lost = lambda: os.environ.get('CONVNETS_GPU_FIRST', '0') == '0'\n"
        "import experiments.gpu.pytest_records as plugin\nplugin.device_is_lost = step.device_is_lost\n"
    )
    (tmp_path / "test_three.py").write_text("def test_a(): assert False\ndef test_b(): pass\ndef test_c(): pass\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "experiments.gpu.pytest_records", "-p", "no:xdist"]
    result = subprocess.run([*command, "--rootdir", str(tmp_path), str(tmp_path)], capture_output=True, text=True)
    lines = [line.partition("RECORD ")[2] for line in result.stdout.splitlines() if "RECORD " in line]
    text = "\n".join(markdown(report_of(tests=[json.loads(line) for line in lines]), plotted=False).splitlines())
    assert "2 passed, 1 failed, 0 errors, 0 skipped, of 3 tests." in text


def test_a_test_that_hangs_is_recorded_and_the_others_run(tmp_path):
    (tmp_path / "conftest.py").write_text("from experiments.gpu import step\nstep.LONGEST = 2.0\n")
    tests = "import time\ndef test_a(): pass\ndef test_b(): time.sleep(60)\ndef test_c(): pass\n"
    (tmp_path / "test_three.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "experiments.gpu.pytest_records", "-p", "no:xdist"]
    result = subprocess.run(
        [*command, "--rootdir", str(tmp_path), str(tmp_path)], capture_output=True, text=True, timeout=50
    )
    lines = [line.partition("RECORD ")[2] for line in result.stdout.splitlines() if "RECORD " in line]
    text = markdown(report_of(tests=[json.loads(line) for line in lines]), plotted=False)
    assert "2 passed, 1 failed, 0 errors, 0 skipped, of 3 tests." in text and "test_b | call | took more than" in text
