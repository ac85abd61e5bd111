"""`convnets precompile`: what it compiles is all that is launched, in processes of their own and by the stub driver."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset

from lightning_modules.data.loading import loader

compiling = pytest.importorskip("experiments.precompile.compiling", reason="triton is not installed")
from experiments.precompile import callback, data  # noqa: E402
from experiments.precompile.collect import Kernel  # noqa: E402
from experiments.precompile.step import Batch  # noqa: E402

ROOT = Path(__file__).parents[2]
LENET = ("--architecture", "lenet5", "--target", "sm_90", "--batch", "2")

COUNTED = """
    import collections
    from triton import knobs
    from experiments.gpu.stub import stubbed
    from kernels import use_backend

    found = collections.Counter()
    knobs.compilation.listener = lambda cache_hit, **_: found.update(["cached" if cache_hit else "compiled"])
"""
STEP = (
    COUNTED
    + """
    import torch
    from lightning_modules.architectures import LeNet5

    network = LeNet5().half()  # its weights not channels-last, its loss another
    with stubbed("sm_90") as cuda, use_backend("triton"):
        images = torch.empty(2, 1, 32, 32, dtype=torch.float16)
        network(images).square().mean().backward()
        with torch.inference_mode():
            network.eval()(images)
    print(cuda.stub_launches(), found["cached"], found["compiled"])
"""
)
FIT = (
    COUNTED
    + """
    import lightning.pytorch as pl
    import torch
    from experiments.precompile.callback import CompileAhead
    from lightning_modules.architectures import LeNet
    from lightning_modules.classifier import Classifier
    from lightning_modules.data import DigitsDataModule

    class Seen(pl.Callback):
        def on_fit_start(self, trainer, module):
            print(torch.rand(()).item(), module.network.training)

    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    def fit(*callbacks):
        pl.seed_everything(0)
        module = Classifier(LeNet(input_shape=(1, 8, 8)), lambda parameters: torch.optim.SGD(parameters, 1e-3))
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=1, precision=PRECISION, callbacks=[*callbacks, Seen()], **quiet
        )
        trainer.fit(module, data)
        print(found["cached"], found["compiled"])
        trainer.test(module, data, verbose=False)
        print(found["cached"], found["compiled"])

    data = DigitsDataModule(batch_size=300)  # four of them and one of 57; 270 for validation, 270 for the test
    with stubbed("sm_90"), use_backend("triton"):
        fit(CompileAhead())
        fit()
"""
)
BENCH = (
    COUNTED
    + """
    from experiments.bench import parser
    from experiments.bench.run import compile_tasks, tasks_of
    from experiments.bench.measure import call_of

    options = parser().parse_args(["--architecture", "lenet", "--batch", "2", "--dtype", "float16", "--limit", "2"])
    tasks = tasks_of(options)
    compile_tasks(tasks, "sm_90")
    with stubbed("sm_90"):
        for task in tasks:
            problem = task.layer.problem
            call_of("triton", problem, task.operation, *problem.tensors("cpu"))()
    print(found["cached"], found["compiled"])
"""
)


def python(cache: Path, *arguments: str) -> list[str]:
    """Run Python with an own cache and without the interpreter; return the lines that it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, *arguments], env=environment, cwd=cache, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def code(text: str) -> tuple[str, str]:
    return "-c", textwrap.dedent(text)


def test_what_an_archive_brings_is_all_that_a_step_launches(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    path = tmp_path / "cache.tar.xz"
    first, *_ = python(here, "-m", "experiments", "precompile", *LENET, "--archive", str(path), "--jobs", "2")
    compiled = len(list(here.glob("*/*.cubin")))
    assert compiled > 10 and f"{compiled} kernels, {compiled} compiled, 0 found in the cache" in first
    brought, again, _ = python(there, "-m", "experiments", "precompile", "--from", str(path), *LENET)
    assert brought == f"{path}: {compiled} kernels for sm_90, now in {there}"
    assert f"{compiled} kernels, 0 compiled, {compiled} found in the cache" in again
    assert {file.suffix for file in there.rglob("*") if file.is_file()} == {".cubin", ".json"}
    (output,) = python(there, *code(STEP))
    launches, cached, missing = map(int, output.split())
    assert launches >= cached == compiled and missing == 0
    next(there.glob("*/_pool_kernel.cubin")).unlink()
    (output,) = python(there, *code(STEP))
    assert output == f"{launches} {compiled - 1} 1"


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_fit_finds_all_kernels_compiled_and_is_not_changed_by_that(tmp_path, precision):
    lines = python(tmp_path, *code(f"PRECISION = {precision!r}\n" + textwrap.dedent(FIT)))
    ahead = next(line for line in lines if line.startswith("compiled ahead: "))
    compiled = len(list(tmp_path.glob("*/*.cubin")))
    assert f"{compiled} kernels, {compiled} compiled" in ahead
    lines = [line for line in lines if line[0].isdecimal()]
    first, plain = lines[:3], lines[3:]
    assert first[0] == plain[0]  # random numbers, and the mode of the network
    assert first[1:] == plain[1:] == [f"{compiled} 0"] * 2  # each kernel is loaded once by the process


def test_bench_finds_all_kernels_compiled(tmp_path):
    ahead, counts = python(tmp_path, *code(BENCH))
    compiled = len(list(tmp_path.glob("*/*.cubin")))
    assert ahead.startswith(f"compiled ahead: {compiled} kernels, {compiled} compiled") and counts == f"{compiled} 0"


def test_a_gpu_that_there_is_not_takes_a_few_lines(tmp_path):
    """Triton prints the machine code of a kernel that ptxas refuses."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "experiments", "precompile", *LENET[:2], "--target", "sm_12", "--batch", "2"]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1 and "sm_12" in result.stdout and not result.stderr
    assert "ptxas fatal" in result.stdout and len(result.stdout.splitlines()) == 6


FAKE = """
    import os, sys

    class Fake:
        def __init__(self, key):
            self.metadata_group = {"fake.json": f"/{key}/fake.json"}

        def warmup(self, grid, **constants):
            assert not hasattr(sys.modules["__main__"], "RUNS")
            if constants.get("crash"):
                os._exit(3)
            if constants.get("wrong"):
                raise ValueError("at line 1:\\n  it is wrong")
            return self

    sound, misplaced = Fake("KEY"), Fake("ELSEWHERE")
"""


def test_a_kernel_that_fails_or_crashes_does_not_stop_the_others(tmp_path, monkeypatch):
    (tmp_path / "fake_kernels.py").write_text(textwrap.dedent(FAKE))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys.modules["__main__"], "RUNS", True, raising=False)
    sound = [Kernel("KEY", False, "fake_kernels", "sound", (), {"number": number}) for number in range(3)]
    work = [
        Kernel("KEY", False, "fake_kernels", "sound", (), {}),
        Kernel("CRASH", False, "fake_kernels", "sound", (), {"crash": True, "BM": 99}),
        Kernel("WRONG", False, "fake_kernels", "sound", (), {"wrong": True}),
        Kernel("OTHER", False, "fake_kernels", "misplaced", (), {}),
    ]
    assert sorted(compiling.compile_each("sm_90", work, 2)) == [
        "",
        "misplaced: its launch would not find it in the cache",
        "sound: ValueError: it is wrong",
        "sound: crashes the compiler",
    ]
    assert list(compiling.compile_each("sm_90", sound[:1], 2)) == [""]


def test_a_failure_to_compile_ahead_is_a_warning(monkeypatch):
    monkeypatch.setattr(compiling, "compile_ahead", lambda target, compute: compute())
    with pytest.warns(UserWarning, match="compiled as they are launched, not ahead: .* by zero"):
        compiling.compile_or_warn("sm_90", lambda: 1 // 0)


@pytest.mark.parametrize(
    ("rank", "runs_triton", "interpreting", "compiles"),
    [(0, True, False, True), (1, True, False, False), (0, False, False, False), (0, True, True, False)],
    ids=["first", "second process", "torch", "interpreted"],
)
def test_the_first_process_compiles_where_compiled_kernels_run(monkeypatch, rank, runs_triton, interpreting, compiles):
    asked = []
    monkeypatch.setattr(compiling, "compile_or_warn", lambda target, compute: asked.append(target))
    monkeypatch.setattr(callback.backend, "uses_triton", lambda x: runs_triton)
    monkeypatch.setattr(callback.backend, "INTERPRETING", interpreting)
    monkeypatch.setattr(callback.tuning, "target", lambda device: "sm_90")
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    trainer = SimpleNamespace(strategy=strategy, local_rank=rank, datamodule=object(), precision="32-true")
    callback.CompileAhead().setup(trainer, SimpleNamespace(network=torch.nn.Linear(1, 1)), "fit")
    assert asked == ["sm_90"] * compiles


@pytest.mark.parametrize(
    ("options", "stages"), [((), ["fit"]), (("--compile_ahead", "false"), []), (("--layers", "torch"), [])]
)
def test_fit_compiles_ahead_unless_told_not_to(digits, monkeypatch, options, stages):
    asked = []
    monkeypatch.setattr(callback.CompileAhead, "setup", lambda self, trainer, module, stage: asked.append(stage))
    assert digits("fit", "--trainer.fast_dev_run=true", *options).code == 0
    assert asked == stages


def test_batches_are_those_of_the_loaders():
    images = TensorDataset(torch.zeros(10, 3, 4, 5), torch.zeros(10))
    assert data.sizes_of(loader(images, 4))[0] == {4, 2}
    assert data.sizes_of(loader(images, 16))[0] == {10}
    assert data.sizes_of(DataLoader(images, 4))[0] == {4, 2}
    assert data.sizes_of(DataLoader(images, 4, drop_last=True))[0] == {4}
    assert data.sizes_of(DataLoader(images, 16))[0] == {10}
    assert data.sizes_of(DataLoader(images, 16, drop_last=True))[0] == set()
    assert data.sizes_of(DataLoader(images, 4, sampler=SubsetRandomSampler(range(7))))[0] == {4, 3}
    assert data.shapes_of(images) == {(1, 3, 4, 5)}

    class Module(data.pl.LightningDataModule):
        def train_dataloader(self):
            return [loader(images, 4)]

    assert set(data.batches_of(Module(), "fit")) == {Batch((4, 3, 4, 5), True), Batch((2, 3, 4, 5), True)}
    assert data.batches_of(Module(), "test") == []


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(4))


@pytest.mark.parametrize(
    ("loader", "got"),
    [
        (lambda: DataLoader(Stream(), 2), "one over the IterableDataset Stream"),
        (lambda: DataLoader(range(4), batch_sampler=[[0, 1], [2]]), "one without a batch_size, over range"),
        (lambda: DataLoader(range(4), batch_size=None), "one without a batch_size, over range"),
        (lambda: [1, 2], "list"),
    ],
)
def test_batches_of_unknown_sizes_are_refused(loader, got):
    with pytest.raises(ValueError, match=f"compiled ahead for a DataLoader with a batch_size .*, got {got}"):
        data.sizes_of(loader())


def test_sizes_of_batches_are_those_of_all_processes():
    batches = loader(range(11), 4).dataset
    batches.batch_size, batches.processes = 8, 2  # of two processes, as connected ones have it
    seen = set()
    for batches.rank in range(2):
        seen |= {len(batches.indices(number)) for number in range(len(batches))}
    assert batches.sizes() == seen == {4, 2, 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --architecture NAME or --config RECIPE to compile for, or --from FILE to unpack"),
        (("--architecture", "LeNet", "--config", "r.yaml"), "give either --architecture or --config, not both"),
        (("--architecture", "LeNet", "--target", "sm_80", "--dtype", ""), "the precision must be one of float16, "),
        (("--from", "f", "--batch", "2"), "--batch needs an --architecture or a --config"),
        (("--architecture", "none", "--target", "sm_90"), "--architecture must be one of AlexNet, "),
        (("--architecture", "LeNet", "--target", "sm90"), "--target must be a GPU's architecture, as sm_90 (NVIDIA)"),
        (("--architecture", "LeNet", "--target", "sm_90", "--dtype", "int8"), "the precision must be one of float16, "),
        (
            ("--architecture", "LeNet5", "--target", "sm_90", "--size", "8"),
            "--size takes 2 extents for LeNet5, got [8]",
        ),
        (
            ("--architecture", "LeNet", "--archive", "a.zip"),
            "--archive must be a .tar.xz file in an existing directory",
        ),
        (("--architecture", "LeNet", "--archive", "/proc/a.tar.xz"), "--archive /proc/a.tar.xz cannot be written: "),
        (("--config", "none.yaml", "--target", "sm_90"), "--config none.yaml: No such file or directory"),
        (("--from", "none.tar.xz"), "--from none.tar.xz: No such file or directory"),
    ],
)
def test_errors_name_what_is_wrong(convnets, monkeypatch, tmp_path, arguments, message):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    assert message in convnets("precompile", *arguments).error


def test_without_a_gpu_a_target_is_asked_for(convnets, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert convnets("precompile", "--architecture", "LeNet").error.startswith("there is no GPU here: name a --target")
