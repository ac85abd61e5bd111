"""`convnets tune`: resumed, interrupted, refused; a choice with stand-ins for compiler and clock, and for real."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

pytest.importorskip("kernels.conv", reason="triton is not installed")

from experiments.tune import compiling, recording, run, search, timing  # noqa: E402
from experiments.tune.compiling import Outcome, ranked  # noqa: E402
from experiments.tune.source import is_current  # noqa: E402
from experiments.tune.timing import Case, fastest  # noqa: E402
from kernels import backend, heuristics, table  # noqa: E402
from kernels.checks import make_window  # noqa: E402
from kernels.problem import Problem  # noqa: E402
from kernels.tile import Product, Tile  # noqa: E402

LAYER = (
    "--channels",
    "32",
    "--outputs",
    "16",
    "--size",
    "8",
    "8",
    "--kernel_size",
    "3",
    "--padding",
    "1",
    "--batch",
    "2",
)
A, B, C, D = (Tile(16 * 2**i, 16, 16) for i in range(4))


class StandIn:
    """Instead of compilers: a tile takes as long as its m is far from 64, and those with n = 48 spill."""

    jobs: list[compiling.Job] = []
    interrupt_at = None

    def __init__(self, processes):
        assert processes is None or processes >= 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    @staticmethod
    def interrupted(*_):
        raise KeyboardInterrupt

    def outcomes(self, jobs):
        self.jobs.extend(jobs)
        if self.interrupt_at is not None and len(self.jobs) > self.interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)
        return [
            Outcome(job.tile, fault="spills registers") if job.tile.n == 48
            else Outcome(job.tile, 1 + abs(job.tile.m - 64), 1.0, 0.5, "tensor")
            for job in jobs
        ]  # fmt: skip


@pytest.fixture
def tune(convnets, monkeypatch, tmp_path):
    """The command for sm_80 with stand-ins, a table in the current directory."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # and back afterwards
    monkeypatch.setattr(run, "Compilers", StandIn)
    monkeypatch.setattr(StandIn, "jobs", [])
    return lambda *args: convnets("tune", "--target", "sm_80", "--table", "t.json", *args)


def records() -> list[dict]:
    return json.loads(Path("t.json").read_text())["records"]


def test_the_best_that_does_not_spill_is_recorded_with_its_source(tune):
    outcome = tune(*LAYER, "--candidates", "40")
    assert outcome.code == 0 and "sm_80: 3 of 3 done; t.json holds 3" in outcome.out
    for record in records():
        tile = record["tile"]
        assert tile["m"] == (64 if record["operation"] != "weight_gradient" else 32) and tile["n"] != 48
        source = record["source"]
        assert source["kind"] == "estimate" and source["device"] == "A100-SXM4-80GB" and source["percent of peak"] == 50
        assert {"torch", "triton", "kernels", "date", "heuristic microseconds"} <= source.keys()
    assert [record["problem"].partition(":")[0] for record in records()] == [
        "forward",
        "input_gradient",
        "weight_gradient",
    ]
    assert any(job.fused for job in StandIn.jobs)


def test_the_heuristic_is_kept_where_an_estimate_is_no_clear_gain(tune, monkeypatch):
    def outcomes(self, jobs):
        return [Outcome(job.tile, 1.0 if job is jobs[0] else 0.985, 1.0, 0.5) for job in jobs]

    monkeypatch.setattr(StandIn, "outcomes", outcomes)
    tune(*LAYER, "--operation", "forward")
    (record,) = table.read(Path("t.json"), "sm_80").records.values()
    assert record.tile == heuristics.choose("sm_80", record.product)


def test_what_is_recorded_is_not_tuned_again_unless_asked(tune):
    assert tune(*LAYER, "--limit", "2").code == 0
    before, StandIn.jobs[:] = records(), []
    outcome = tune(*LAYER)
    assert "1 to tune, 2 recorded already" in outcome.out
    assert {job.task.operation for job in StandIn.jobs} == {"weight_gradient"}
    assert [record for record in records() if record in before] == before
    StandIn.jobs.clear()
    assert "3 to tune, 0 recorded already" in tune(*LAYER, "--again").out and StandIn.jobs


def test_other_versions_are_tuned_again_and_measurements_kept_from_estimates():
    now = {"kind": "estimate", "triton": "3", "kernels": "a", "date": "2"}
    assert is_current(now | {"date": "1", "microseconds": 4}, now)
    assert not is_current(now | {"kernels": "b"}, now) and not is_current({"kind": "estimate"}, now)
    assert is_current({"kind": "measured", "triton": "2"}, now)
    assert not is_current(now, now | {"kind": "measured"})


def test_an_interruption_keeps_what_is_done_and_says_how_to_go_on(tune, monkeypatch):
    monkeypatch.setattr(StandIn, "interrupt_at", 8)
    outcome = tune(*LAYER, "--candidates", "4")
    assert outcome.code == 130 and len(records()) == 1
    assert (
        "convnets: interrupted: 1 of 3 were done, t.json holds 1; to go on: convnets tune --target sm_80" in outcome.err
    )
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.setattr(StandIn, "interrupt_at", None)
    assert "2 to tune, 1 recorded already" in tune(*LAYER, "--candidates", "4").out and len(records()) == 3


def test_what_others_record_meanwhile_stays(tune, monkeypatch):
    other = table.Record(
        "other", Product("forward", "float16", 4096, 64, 64, 9), Tile(128, 64, 32), {"kind": "estimate"}
    )

    def outcomes(self, jobs):
        recording.add(Path("t.json"), "sm_80", other)
        return StandIn.outcomes(self, jobs)

    monkeypatch.setattr("experiments.tune.run.Compilers", type("Meanwhile", (StandIn,), {"outcomes": outcomes}))
    outcome = tune(*LAYER)
    assert outcome.code == 0 and "t.json holds 4" in outcome.out
    assert [record["problem"] for record in records()].count("other") == 1 and len(records()) == 4


ADDING = """
import sys
from pathlib import Path
from experiments.tune import recording
from kernels import table
from kernels.tile import Product, Tile

def read(*args, read=table.read):
    found = read(*args)
    print("read", flush=True)
    sys.stdin.readline()
    return found

table.read = read
product = Product("forward", "float16", 4096, 64, 64, 9)
recording.add(Path("t.json"), "sm_80", table.Record("theirs", product, Tile(128, 64, 32), {"kind": "estimate"}))
"""


def test_between_reading_and_writing_nobody_else_can_record(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(Path(run.__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", ADDING], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "read\n"
        (lock,) = tmp_path.glob(".*.lock")
        with pytest.raises(TimeoutError):
            FileLock(lock).acquire(timeout=0)
        process.communicate("go on\n")
    assert process.returncode == 0
    product = Product("forward", "float16", 512, 64, 64, 9)
    ours = table.Record("ours", product, Tile(128, 64, 32), {"kind": "estimate"})
    assert recording.add(Path("t.json"), "sm_80", ours) == 2
    assert {record["problem"] for record in records()} == {"ours", "theirs"}


def test_an_interruption_while_writing_leaves_the_old_table(tune, monkeypatch):
    tune(*LAYER, "--limit", "1")
    before = Path("t.json").read_text()
    monkeypatch.setattr(os, "replace", StandIn.interrupted)
    assert tune(*LAYER).code == 130 and Path("t.json").read_text() == before
    assert sorted(path.name for path in Path().iterdir()) == [".t.json.lock", "t.json"]


def test_the_number_of_processes_does_not_change_the_choice(tune):
    tune(*LAYER, "--jobs", "1")
    first = records()
    tune(*LAYER, "--jobs", "7", "--again")
    assert [(record["tile"], record["source"]) for record in records()] == [(r["tile"], r["source"]) for r in first]


def test_a_damaged_table_is_kept_beside_and_its_rest_used(tune):
    assert tune(*LAYER).code == 0
    damaged = Path("t.json").read_text().replace('"taps": 9', '"taps": "nine"', 1)
    Path("t.json").write_text(damaged)
    outcome = tune(*LAYER)
    assert outcome.code == 0 and "record 1 (forward, " in outcome.out and "kept in t.json.bad" in outcome.out
    assert "1 to tune, 2 recorded already" in outcome.out and len(records()) == 3
    assert Path("t.json.bad").read_text() == damaged


def test_a_problem_without_a_legal_tile_does_not_stop_the_rest(tune, monkeypatch):
    monkeypatch.setattr(StandIn, "outcomes", lambda self, jobs: [
        Outcome(job.tile, fault="spills registers") if job.task.operation == "forward" else Outcome(job.tile, 1.0, 1.0)
        for job in jobs
    ])  # fmt: skip
    outcome = tune(*LAYER, "--candidates", "4")
    assert outcome.code == 1 and len(records()) == 2
    assert "forward of 3x3 32 -> 16 at 8x8, N 2, float16: not tuned, 5 of 5 tiles: spills registers" in outcome.out


def test_compare_shows_the_heuristic_beside_the_table(tune):
    assert "holds none of these problems" in tune(*LAYER, "--compare").error
    tune(*LAYER, "--limit", "1", "--candidates", "40")
    outcome = tune(*LAYER, "--compare")
    assert outcome.code == 0 and "1 compared, 2 not in t.json; heuristic / tuned: geometric mean" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target", "sm_1"), "--target must be one of sm_80, .*, interpreter, got 'sm_1'"),
        (("--target", "gfx942"), "nothing is estimated for gfx942, whose rates are not known"),
        (("--target", "sm_80", "interpreter"), "the interpreter is tuned by itself"),
        (("--target", "sm_80", "sm_90", "--table", "t.json"), "--table t.json holds one target: got sm_80, sm_90"),
        (("--table", "none/t.json"), "--table must be a file in an existing directory, got none/t.json"),
        (("--channels", "3"), "a layer needs --channels and --outputs, got only --channels"),
        (("--channels", "3", "--outputs", "4", "--size", "5"), "a layer with a --size needs a --kernel_size"),
        (("--channels", "3", "--architecture", "lenet"), "give either --architecture or a layer, not both"),
        (("--channels", "3", "--outputs", "4", "--groups", "2"), "--groups 2 must divide --channels 3, --outputs 4"),
        (("--channels", "3", "--outputs", "4", "--size", "2", "--kernel_size", "5"), "does not fit on its grid"),
        (("--channels", "3", "--outputs", "4", "--size", "2", "2", "--kernel_size", "1", "1", "1"),
         "--kernel_size must be one number, or 2 for as many axes of --size, got 3"),
        (("--channels", "3", "--outputs", "4", "--kernel_size", "5"), "--kernel_size needs a --size"),
        (("--channels", "3", "--outputs", "4", "--size", "2", "2", "2", "2", "--kernel_size", "1"),
         "--size takes up to 3 extents, got 4"),
        (("--channels", "3", "--outputs", "4", "--stride", "2147483648"), "--stride: must be a whole number of"),
        (("--limit", "0"), "must be a whole number of at least 1, got '0'"),
        (("--dtype", "int8"), "invalid choice: 'int8'"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_in_one_line(convnets, monkeypatch, arguments, message):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    given = () if "--target" in arguments else ("--target", "sm_80")
    outcome = convnets("tune", *given, *arguments)
    with pytest.raises(ValueError, match=message):
        raise ValueError(outcome.error)


def test_help_is_quick_and_imports_nothing_heavy():
    code = "import sys; from experiments.__main__ import main; sys.argv[1:] = ['tune', '-h']\ntry: main()"
    code += "\nexcept SystemExit as stop: sys.exit(stop.code or 'torch' in sys.modules)"
    page = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert all(name in page for name in ("resnet50", "weight_gradient", "--compare", "interpreter"))


def clock(times: dict[Tile, float]):
    """A stand-in for the clock, and the tiles that were timed, in order."""
    asked: list[Tile] = []
    return asked, lambda tile: asked.append(tile) or times[tile]


def test_a_wrong_tile_never_wins_and_is_reported():
    asked, seconds = clock({A: 4.0, B: 1.0, C: 3.0})
    found = fastest([A, B, C], lambda tile: "wrong: error 1" if tile == B else "", seconds)
    assert found.winner == C and found.wrong == {B: "wrong: error 1"}
    assert B not in asked and B not in found.seconds
    assert fastest([A, B], lambda tile: "wrong", seconds) is None


def test_a_wrong_heuristic_loses():
    _, seconds = clock({A: 1.0, B: 4.0, C: 3.0})
    assert fastest([A, B, C], lambda tile: "wrong" if tile == A else "", seconds).winner == C


def test_the_heuristic_stays_unless_clearly_beaten():
    _, seconds = clock({A: 1.0, B: 0.99, C: 2.0})
    assert fastest([A, B, C], lambda tile: "", seconds).winner == A
    _, seconds = clock({A: 1.0, B: 0.9, C: 2.0})
    found = fastest([A, B, C], lambda tile: "", seconds)
    assert found.winner == B and found.seconds[A] == 1.0


def test_rounds_alternate_and_the_slowest_fall_out():
    tiles = [Tile(16, 16, 16, stages=stage) for stage in range(1, 8)]
    asked, seconds = clock({tile: 8.0 - tile.stages for tile in tiles})
    found = fastest(tiles, lambda tile: "", seconds, rounds=3)
    left = [tiles[0], *tiles[-timing.PRUNED :]]
    assert asked == [*tiles, *left[::-1], *left] and found.winner == tiles[-1]


def test_equals_are_told_apart_by_what_they_need():
    product = Product("forward", "float16", 4096, 64, 64, 9)
    large, short, long = Tile(64, 64, 64, stages=4), Tile(64, 64, 32, stages=2), Tile(64, 64, 32, stages=4)
    outcomes = [Outcome(tile, 1.0, 1.0) for tile in (large, short, long)]
    outcomes += [Outcome(A, 1.0, 0.5), Outcome(B, fault="spills")]
    assert [o.tile for o in ranked(product, outcomes)] == [A, long, short, large]
    assert ranked(product, outcomes) == ranked(product, outcomes[::-1])


def test_tensors_that_do_not_fit_into_memory_are_said_in_a_line(tune, monkeypatch):
    monkeypatch.setattr(timing.Problem, "tensors", lambda *_: run.torch.empty(2**60))
    task = run.Task("interpreter", Problem(1, 4, 4, (), make_window("linear", (), (), (), (), 1)), "forward", None)
    monkeypatch.setattr(search, "candidates", lambda *_: [A])
    with pytest.raises(search.NotTuned, match="^its tensors cannot be made: RuntimeError: "):
        search.measured_choice(task, StandIn(1), 1)


@pytest.mark.skipif(not backend.INTERPRETING, reason="needs the interpreter")
def test_a_tile_is_held_to_float64(monkeypatch):
    problem = Problem(2, 4, 4, (6, 6), make_window("conv2d", (3, 3), 1, 1, 1, 1, ()), run.torch.float32)
    for operation in ("forward", "input_gradient", "weight_gradient"):
        case = Case(run.Task.of("interpreter", problem, operation), "cpu")
        tile = Tile(64, 16, 16)
        assert case.check(tile) == "" and case.seconds(tile) > 0
        with monkeypatch.context() as patch:
            patch.setattr(
                Problem,
                "run",
                lambda self, operation, *tensors, right=Problem.run: right(self, operation, *tensors) * 1.001,
            )
            assert case.check(tile).startswith("wrong: error")
        assert case.check(Tile(100, 16, 16)).startswith("failed: ")


def tune_for_real(tmp_path: Path, *arguments: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(run.__file__).parents[2])
    command = [sys.executable, "-m", "experiments", "tune", "--table", str(tmp_path / "t.json"), *arguments]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_compiles_and_estimates_for_a_gpu_that_is_not_there(tmp_path):
    out = tune_for_real(
        tmp_path, "--target", "sm_80", *LAYER, "--candidates", "2", "--operation", "forward", "--jobs", "1"
    )
    (record,) = table.read(tmp_path / "t.json", "sm_80").records.values()
    assert record.source["kind"] == "estimate" and 0 < record.source["percent of peak"] < 100
    assert record.source["microseconds"] <= record.source["heuristic microseconds"]
    assert "nothing is timed; 1 to tune" in out


def test_times_what_is_interpreted(tmp_path):
    tune_for_real(tmp_path, "--target", "interpreter", *LAYER, "--candidates", "3", "--operation", "weight_gradient")
    (record,) = table.read(tmp_path / "t.json", "interpreter").records.values()
    assert record.source["kind"] == "measured" and record.source["microseconds"] > 0
    assert record.product == Product("weight_gradient", "float32", 16, 32, 128, 9)
    assert record.tile in [
        heuristics.choose("interpreter", record.product),
        *search.candidates("interpreter", record.product, 3),
    ]
