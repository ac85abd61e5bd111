"""`convnets precompile`: what it compiles is all that is launched, in processes of their own and by the stub driver."""

import io
import json
import os
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_modules.data.loading import loader

archive = pytest.importorskip("experiments.precompile.archive", reason="triton is not installed")
from experiments.precompile import compiling, data  # noqa: E402
from experiments.precompile.collect import Kernel  # noqa: E402
from experiments.precompile.relocation import relocate  # noqa: E402
from experiments.precompile.step import Batch  # noqa: E402

ROOT = Path(__file__).parents[2]
KEYS = tuple(letter * 52 for letter in "ABC")
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
    assert sorted(compiling.compiled("sm_90", work, 2)) == [
        "",
        "misplaced: its launch would not find it in the cache",
        "sound: ValueError: it is wrong",
        "sound: crashes the compiler",
    ]
    assert list(compiling.compiled("sm_90", sound[:1], 2)) == [""]


def test_a_failure_to_compile_ahead_is_a_warning(monkeypatch):
    monkeypatch.setattr(compiling, "compile_ahead", lambda target, compute: compute())
    with pytest.warns(UserWarning, match="compiled as they are launched, not ahead: .* by zero"):
        compiling.compile_or_warn("sm_90", lambda: 1 // 0)


def test_batches_are_those_of_the_loaders():
    images = TensorDataset(torch.zeros(10, 3, 4, 5), torch.zeros(10))
    assert data.sizes_of(loader(images, 4))[0] == {4, 2}
    assert data.sizes_of(loader(images, 16))[0] == {10}
    assert data.sizes_of(DataLoader(images, 4))[0] == {4, 2}
    assert data.sizes_of(DataLoader(images, 4, drop_last=True))[0] == {4}
    assert data.shapes_of(images) == {(1, 3, 4, 5)}

    class Module(data.pl.LightningDataModule):
        def train_dataloader(self):
            return [loader(images, 4)]

    assert set(data.batches_of(Module(), "fit")) == {Batch((4, 3, 4, 5), True), Batch((2, 3, 4, 5), True)}
    assert data.batches_of(Module(), "test") == []


def test_sizes_of_batches_are_those_of_all_processes():
    batches = loader(range(11), 4).dataset
    batches.batch_size, batches.processes = 8, 2  # of two processes, as connected ones have it
    seen = set()
    for batches.rank in range(2):
        seen |= {len(batches.indices(number)) for number in range(len(batches))}
    assert batches.sizes() == seen == {4, 2, 1}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Triton's cache, with three kernels that are none."""
    folder = tmp_path / "cache"
    for key in KEYS:
        (folder / key).mkdir(parents=True)
        names = ["k.cubin", "k.json", "k.ptx"]
        for name in names:
            (folder / key / name).write_text(f"{name} of {key}")
        group = {"child_paths": {name: str(folder / key / name) for name in names}}
        (folder / key / "__grp__k.json").write_text(json.dumps(group))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def packed(cache, tmp_path, monkeypatch):
    """An archive of two of them, and another cache, which is empty."""
    path = tmp_path / "kernels.tar.xz"
    assert archive.pack(path, "sm_90", [*KEYS[:2], "D" * 52]) == 2
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "other"))
    return path


def members_of(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as content:
        return {member.name: content.extractfile(member).read() for member in content}


def rewrite(path: Path, members: dict[str, bytes], *more: tarfile.TarInfo) -> None:
    with tarfile.open(path, "w:xz") as content:
        for name, data_ in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data_)
            content.addfile(info, io.BytesIO(data_))
        for info in more:
            content.addfile(info)


def test_an_archive_holds_what_a_launch_needs_under_the_paths_of_its_new_place(packed, tmp_path):
    other = tmp_path / "other"
    assert archive.unpack(packed, None) == ("sm_90", 2)
    assert sorted(path.name for path in other.iterdir()) == list(KEYS[:2])
    for key in KEYS[:2]:
        assert {path.name for path in (other / key).iterdir()} == {"k.cubin", "k.json", "__grp__k.json"}
        group = json.loads((other / key / "__grp__k.json").read_text())["child_paths"]
        assert group == {name: str(other / key / name) for name in ("k.cubin", "k.json")}
        assert (other / key / "k.cubin").read_text() == f"k.cubin of {key}"
    assert archive.unpack(packed, "sm_90") == ("sm_90", 2)  # over what is there


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"triton": "0.1"}, "Triton 0.1 there, "),
        ({"kernels": "0123"}, "the code of kernels/ (digest) 0123 there, "),
        ({"python": "2.7"}, "Python 2.7 there, "),
        ({"format": 2}, "has archive format 2, not 1"),
        ({"target": "sm_80"}, "target sm_80 there, sm_90 here"),
    ],
)
def test_an_archive_that_does_not_fit_is_refused(packed, convnets, tmp_path, changed, message):
    members = members_of(packed)
    members["manifest.json"] = json.dumps(json.loads(members["manifest.json"]) | changed).encode()
    rewrite(packed, members)
    assert message in convnets("precompile", "--from", str(packed), "--target", "sm_90").error
    assert list((tmp_path / "other").iterdir()) == []


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    "member",
    [
        tarfile.TarInfo("../outside"), tarfile.TarInfo("/tmp/outside"), tarfile.TarInfo(f"{KEYS[0]}/../../outside"),
        tarfile.TarInfo(f"{KEYS[0]}/.hidden"), tarfile.TarInfo(f"{KEYS[0]}/deep/outside"), tarfile.TarInfo("outside"),
        link(f"{KEYS[0]}/link.json", tarfile.SYMTYPE), link(f"{KEYS[0]}/link.json", tarfile.LNKTYPE),
        link(f"{KEYS[0]}/pipe.json", tarfile.FIFOTYPE), link(KEYS[2], tarfile.DIRTYPE),
    ],
    ids=lambda member: f"{member.name.replace(KEYS[0], 'KEY')}-{member.type.decode()}",
)  # fmt: skip
def test_a_malicious_archive_writes_nothing(packed, convnets, tmp_path, member):
    rewrite(packed, members_of(packed), member)
    assert "is no archive of this command, or is damaged: it has a member" in (
        convnets("precompile", "--from", str(packed)).error
    )
    assert list((tmp_path / "other").iterdir()) == [] and not (tmp_path / "outside").exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "no manifest", "no archive"])
def test_a_damaged_archive_writes_nothing(packed, convnets, tmp_path, damage):
    content = packed.read_bytes()
    if damage == "no manifest":
        rewrite(packed, {name: data_ for name, data_ in members_of(packed).items() if name != "manifest.json"})
    else:
        packed.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "no archive": b"words"}[damage])
    assert "is no archive of this command, or is damaged" in convnets("precompile", "--from", str(packed)).error
    assert list((tmp_path / "other").iterdir()) == []


def test_an_archive_that_cannot_be_written_leaves_nothing(cache, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive, "_add_folder", fail)
    with pytest.raises(ValueError, match=r"--archive .*kernels.tar.xz: No space left on device"):
        archive.pack(tmp_path / "kernels.tar.xz", "sm_90", KEYS)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_moved_cache_names_only_files_that_are_there(cache):
    (cache / KEYS[0] / "k.ptx").unlink()
    relocate(cache)
    group = json.loads((cache / KEYS[0] / "__grp__k.json").read_text())["child_paths"]
    assert group == {name: str(cache / KEYS[0] / name) for name in ("k.cubin", "k.json")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --architecture NAME or --config RECIPE to compile for, or --from FILE to unpack"),
        (("--architecture", "LeNet", "--config", "r.yaml"), "give either --architecture or --config, not both"),
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
