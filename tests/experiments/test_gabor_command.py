import errno
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor
from torchvision.models import AlexNet

from experiments.gabor import comparison, learners
from experiments.results import training
from experiments.results.records import Job
from lightning_modules.gabor import Gabor
from lightning_modules.gabor_score import likeness, scores
from tests.experiments.conftest import DIGITS

AUTOENCODER = Path(DIGITS).with_name("autoencoder.yaml")
WHITE_NULL = "white noise already fits with an R2 of 0.84 in 3x3 and 0.48 in 5x5 windows"


def gabors(count: int, window: int = 11) -> Tensor:
    """Kernels [count, window, window] of one frequency, whose orientations are spread evenly."""
    one = torch.ones(count)
    tau = torch.arange(count) * (math.pi / count)
    beta = one / (2 * 2.0**2)
    return Gabor(one, beta, beta, 1.2 * one, 0.5 * one, 0 * one, 0 * one, tau).kernels((window, window)).float()


def coloured(kernels: Tensor) -> Tensor:
    """The same kernel [O, kh, kw] in three channels of different strength: [O, 3, kh, kw]."""
    return kernels[:, None] * torch.tensor([0.2, -1.0, 0.5])[:, None, None]


def strictly(path: Path) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"[│|]", line)[1:-1]]


def row_of(layer: str, out: str) -> list[str]:
    return next(row for row in map(cells, out.splitlines()) if row and row[0] == layer)


@pytest.fixture
def alexnet(convnets) -> Path:
    """A file as torchvision's, but for the widest layers."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in AlexNet().state_dict().items()}
    torch.save(
        {name: torch.randn(shape) for name, shape in shapes.items() if shape.numel() < 1e6}
        | {"classifier.6.weight": torch.zeros(1000, 8), "table": torch.zeros(2, 2, 9, 9)},
        "alexnet.pth",
    )
    return Path("alexnet.pth")


def test_help_is_quick_and_imports_nothing_heavy():
    code = "import sys; from experiments.__main__ import main; sys.argv[1:] = ['gabor', '-h']\ntry: main()"
    code += "\nexcept SystemExit as stop: sys.exit(stop.code or 'torch' in sys.modules)"
    page = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert all(name in page for name in ("--checkpoint", "--layer", "--compare", "--seeds", "3 4 5", "--output"))


def test_a_checkpoint_of_ours(digits, convnets):
    assert digits("fit", "--trainer.max_epochs=1").code == 0
    path = "logs/digits/version_0/checkpoints/last.ckpt"
    run = convnets("gabor", "--checkpoint", path)
    assert run.code == 0, run.err
    assert run.out.endswith("figures and gabor.json: gabor-last\n")
    assert {file.name for file in Path("gabor-last").iterdir()} == {"conv1.png", "gabor.json"}
    assert Image.open("gabor-last/conv1.png").width == 1300

    found = likeness(torch.load(path, weights_only=True)["state_dict"]["network.conv1.weight"])
    layer = strictly(Path("gabor-last/gabor.json"))["layers"]["conv1"]
    assert layer["window"] == [7, 7] and layer["figure"] == "conv1.png" and layer["scores"]["null"] == found.null
    assert layer["kernels"]["r2"] == found.fit.r2.tolist() and len(layer["kernels"]["share"]) == 16
    mean = float(scores(found.table())["mean_r2"])
    assert layer["scores"]["mean_r2"] == mean
    assert row_of("conv1", run.out)[:4] == ["conv1", "16", "7x7", f"{mean:.2f}"]
    assert row_of("conv2", run.out)[1:5] == ["64", "3x3", "too small", "-"]


def test_a_state_dict_of_torchvision(convnets, alexnet):
    run = convnets("gabor", "--checkpoint", "alexnet.pth", "--output", "a/b")
    assert run.code == 0, run.err
    noise = row_of("features.0", run.out)
    assert noise[1:3] == ["64", "11x11"] and noise[6] == "0%" and float(noise[3]) < 0.2
    assert row_of("features.6 and 2 more", run.out)[1:4] == ["896", "3x3", "too small"]
    assert "table" not in run.out
    report = strictly(Path("a/b/gabor.json"))
    assert WHITE_NULL in report["not_measured"]["features.3"] and list(report["layers"]) == ["features.0"]

    state = torch.load(alexnet, weights_only=True)
    torch.save(state | {"features.0.weight": coloured(gabors(8)).half()}, alexnet)
    run = convnets("gabor", "--checkpoint", "alexnet.pth", "--layer", "features.0")
    assert run.code == 0, run.err
    learned = row_of("features.0", run.out)
    assert learned[3:8] == ["1.00", "1.00", "100%", "100%", "1.00"] and learned[-1] == "100%"
    assert "features.3" not in run.out and Path("gabor-alexnet/features.0.png").is_file()


def test_what_has_no_value_is_null(convnets):
    torch.save({"dead.weight": torch.zeros(3, 1, 7, 9), "point.weight": torch.ones(5, 3, 1, 1)}, "dead.pth")
    for _ in range(2):  # the second replaces what the first has written
        run = convnets("gabor", "--checkpoint", "dead.pth")
        assert run.code == 0, run.err
    assert {path.name for path in Path("gabor-dead").iterdir()} == {"dead.png", "gabor.json"}
    assert row_of("dead", run.out)[7:12] == ["-", "-", "-", "-", "3"]
    assert row_of("point", run.out)[1:4] == ["5", "1x1", "no window"]
    layer = strictly(Path("gabor-dead/gabor.json"))["layers"]["dead"]
    assert layer["scores"]["orientation_entropy"] is None and layer["scores"]["dead"] == 3


def test_names_from_a_foreign_file_stay_names(convnets):
    """Neither is a file written elsewhere, nor read as markup what they hold."""
    torch.save({"../../it[/red].weight": coloured(gabors(2))}, "it.pth")
    run = convnets("gabor", "--checkpoint", "it.pth", "--output", "a/b/c")
    assert run.code == 0 and row_of("../../it[/red]", run.out)[1] == "2"
    assert {path.name for path in Path().rglob("*.*")} == {"it.pth", ".._.._it__red_.png", "gabor.json"}


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        pytest.param("features.1", "no such layer; those with a window are features.0, features.3, ", id="unknown"),
        pytest.param("classifier.6", "its weight [1000, 8] has no spatial window; those with one are ", id="linear"),
        pytest.param("features.3", f" has a 5x5 window, but Gabor-likeness needs 7x7 or more: {WHITE_NULL}", id="5x5"),
    ],
)
def test_layers_that_cannot_be_scored(convnets, alexnet, layer, says):
    assert says in convnets("gabor", "--checkpoint", "alexnet.pth", "--layer", "features.0", "--layer", layer).error
    assert list(Path().iterdir()) == [alexnet]


class Printing:
    """Pickled as a call of print, as malicious checkpoints hide calls of worse."""

    def __reduce__(self):
        return print, ("it runs",)


def test_files_that_cannot_be_read(convnets):
    noise = torch.randn(4, 3, 7, 7)
    torch.save({"conv.weight": noise}, "good.pth")
    content = Path("good.pth").read_bytes()
    nan = noise.clone()
    nan[1, 0, 2, 3] = torch.nan
    bad = {
        "empty.pth": (b"", "truncated or damaged"),
        "text.pth": (b"hello world\n", "truncated or damaged"),
        "short.pth": (content[: len(content) // 2], "truncated or damaged"),
        "unsafe.pth": ({"conv.weight": noise, "extra": Printing()}, "builtins.print could run any code"),
        "list.pth": ([noise], "must hold a state_dict, a tensor for each name"),
        "numbers.pth": ({0: noise}, "must hold a state_dict, a tensor for each name"),
        "none.pth": ({}, "has no convolution: no weight [outputs, channels, height, width]"),
        "linear.pth": ({"state_dict": {"network.fc.weight": torch.ones(2, 3)}}, "has no convolution"),
        "small.pth": (
            {"a.weight": noise[..., :1, :1], "b.weight": noise[..., :3]},
            "that can be scored: b has a 7x3 window",
        ),
        "nan.pth": ({"conv.weight": nan}, "holds weights that are not finite: conv.weight"),
    }
    for name, (what, says) in bad.items():
        if isinstance(what, bytes):
            Path(name).write_bytes(what)
        else:
            torch.save(what, name)
        run = convnets("gabor", "--checkpoint", name)
        assert f"checkpoint {name}" in run.error and says in run.error and "it runs" not in run.out
    assert {path.name for path in Path().iterdir()} == {"good.pth", *bad}
    assert convnets("gabor", "--checkpoint", "no.pth").error == "--checkpoint no.pth: no such file"
    assert convnets("gabor", "--checkpoint", ".").error == "--checkpoint .: a directory"


def test_an_output_that_cannot_be_written(convnets, monkeypatch):
    torch.save({"conv.weight": gabors(4)[:, None]}, "it.pth")
    for output in ("it.pth", "it.pth/below"):
        error = convnets("gabor", "--checkpoint", "it.pth", "--output", output).error
        assert error.startswith("--output must be a directory, got it.pth") and error.endswith("it.pth is a file")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        error = convnets("gabor", "--checkpoint", "it.pth", "--output", "new").error
    assert error == "new cannot be written: No space left on device" and not list(Path("new").iterdir())


def test_a_wrong_command_line_is_one_line(convnets):
    for arguments, message in (
        ((), "give one of --checkpoint and --compare, got none"),
        (("--checkpoint", "it.pth", "--compare"), "give one of --checkpoint and --compare, got both"),
        (("--compare", "--layer", "conv"), "--layer is for --checkpoint"),
        (("--checkpoint", "it.pth", "--seeds", "1"), "--seeds is for --compare"),
        (("--compare", "--seeds", "x"), "argument --seeds: must be a whole number of at least 0, got 'x'"),
    ):
        assert message in convnets("gabor", *arguments).error


def test_the_comparison(convnets, monkeypatch):
    """Learners stand in for the trained ones; `ideal` has all orientations, `single` pixels."""
    pixels = torch.zeros(10, 1, 11, 11)
    pixels[range(10), 0, range(10), range(10)] = 1
    makers = {
        "ideal": lambda seed: coloured(gabors(16 + seed)),
        "single": lambda seed: pixels,
        "noise": lambda seed: torch.randn(12, 1, 11, 11, generator=torch.Generator().manual_seed(seed)),
    }
    monkeypatch.setattr(comparison, "learners", lambda: makers)
    run = convnets("gabor", "--compare", "--seeds", "0", "8", "0")
    assert run.code == 0, run.err
    assert cells(run.out.splitlines()[0]) == [
        "learner", "mean R2", "above the null", "strictly Gabor-like", "orientation entropy",
    ]  # fmt: skip
    assert row_of("ideal", run.out)[1:4] == ["1.0000 (1.0000 to 1.0000)"] * 3
    single, noise = row_of("single", run.out), row_of("noise", run.out)
    assert single[2:4] == ["1.0000 (1.0000 to 1.0000)", "0.0000 (0.0000 to 0.0000)"]
    assert noise[2:] == ["0.0000 (0.0000 to 0.0000)"] * 2 + ["-"]
    assert run.out.endswith("comparison.png and comparison.json: gabor-comparison\n")
    ideal = strictly(Path("gabor-comparison/comparison.json"))["learners"]["ideal"]
    assert [(each["seed"], len(each["kernels"]["r2"])) for each in ideal] == [(0, 16), (8, 24)]
    assert Image.open("gabor-comparison/comparison.png").width == 3 * 320


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (ValueError("no such layers"), 2)])
def test_a_comparison_that_ends_early_writes_nothing(convnets, monkeypatch, error, code):
    def fail(seed: int) -> Tensor:
        raise error

    monkeypatch.setattr(comparison, "learners", lambda: {"ideal": lambda seed: gabors(4)[:, None], "failing": fail})
    assert convnets("gabor", "--compare").code == code and not list(Path().iterdir())


def small_recipe(path: Path) -> Path:
    """The autoencoder's, with few small kernels and crops, and a rate at which nothing is learned."""
    recipe = yaml.safe_load(AUTOENCODER.read_text())
    recipe["model"]["init_args"]["network"]["init_args"] |= {"input_shape": [1, 9, 9], "filters": 5, "kernel_size": 7}
    recipe["model"]["init_args"]["optimizer"]["init_args"]["lr"] = 0.0
    recipe["data"]["init_args"] |= {"size": 9, "whitening": "none", "train_samples": 64, "eval_samples": 16}
    recipe["trainer"] |= {"max_epochs": 1, "accelerator": "cpu"}
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_training_starts_from_what_is_called_untrained(convnets, monkeypatch, tmp_path):
    """One true run, in this process, in which nothing is learned."""

    def trained(job: Job, directory: Path) -> None:
        arguments = training.command(job, directory)
        assert convnets(*arguments[arguments.index("fit") :]).code == 0

    monkeypatch.setattr(learners, "trained", trained)
    recipe = small_recipe(tmp_path / "small.yaml")
    weight = learners.after_training(recipe, 6)
    assert weight.shape == (5, 1, 7, 7) and torch.equal(weight, learners.before_training(recipe, 6))
    assert not torch.equal(weight, learners.before_training(recipe, 7))


def test_what_was_trained_is_read_from_the_last_checkpoint(monkeypatch):
    places = []

    def trained(job: Job, directory: Path) -> None:
        assert (job.kind, job.seed, job.options) == ("ours", 4, ())
        places.append(directory)
        kept = directory / "run" / "checkpoints" / "last.ckpt"
        kept.parent.mkdir(parents=True)
        torch.save({"state_dict": {"network.conv.weight": gabors(3)[:, None]}}, kept)

    monkeypatch.setattr(learners, "trained", trained)
    assert torch.equal(learners.after_training(AUTOENCODER, 4), gabors(3)[:, None])
    assert not places[0].exists()


def test_principal_components(tmp_path, monkeypatch):
    """They are orthonormal, of largest variance, and other patches have slightly others."""
    monkeypatch.setattr(learners, "PATCHES", 2000)
    recipe = small_recipe(tmp_path / "small.yaml")
    first, again, other = (learners.principal_components(recipe, seed) for seed in (1, 1, 2))
    assert first.shape == (5, 1, 7, 7) and torch.equal(first, again) and not torch.equal(first, other)
    torch.testing.assert_close(first.flatten(1) @ first.flatten(1).T, torch.eye(5))
    overlap = (first.flatten(1) @ other.flatten(1).T).square()
    assert overlap[0, 0] > 0.99 and overlap.sum() > 0.9 * 5


def test_the_learners(monkeypatch):
    monkeypatch.setattr(learners, "RECIPES", {"sparse autoencoder": "autoencoder"})
    assert list(learners.learners()) == ["sparse autoencoder", "sparse autoencoder, untrained", "principal components"]
    monkeypatch.setattr(learners, "RECIPES", {"supervised": "nothing"})
    with pytest.raises(ValueError, match="RECIPE must be a file or one of alexnet, "):
        learners.learners()


def test_what_cannot_be_computed_with_is_no_layer(convnets, tmp_path):
    weight = torch.randn(2, 1, 7, 7)
    state = {
        "a/b.weight": weight, "a_b.weight": weight, "eighth.weight": weight.to(torch.float8_e4m3fn),
        "shape.weight": weight.to("meta"), "empty.weight": weight[:0], "norm._extra_state": {"version": 2},
    }  # fmt: skip
    torch.save(state, "odd.pt")
    assert convnets("gabor", "--checkpoint", "odd.pt", "--output", "out").code == 0
    layers = json.loads(Path("out/gabor.json").read_text())["layers"]
    assert {name: layer["figure"] for name, layer in layers.items()} == {"a/b": "a_b.png", "a_b": "a_b-2.png"}
    assert {path.name for path in Path("out").iterdir()} == {"a_b.png", "a_b-2.png", "gabor.json"}


def test_a_layer_goes_by_its_name_in_the_file_too(convnets):
    torch.save({"network.conv.weight": torch.randn(2, 1, 7, 7)}, "ours.pt")
    assert convnets("gabor", "--checkpoint", "ours.pt", "--layer", "network.conv").code == 0


def test_nothing_is_written_where_a_figure_cannot_be(convnets):
    torch.save({"conv.weight": torch.randn(2, 1, 7, 7)}, "ours.pt")
    Path("out/conv.png").mkdir(parents=True)
    assert "out/conv.png is a directory" in convnets("gabor", "--checkpoint", "ours.pt", "--output", "out").error
    assert [path.name for path in Path("out").iterdir()] == ["conv.png"]


def test_seeds_are_torchs(convnets):
    assert (
        "--seeds: must be a whole number of at most 4294967295"
        in convnets("gabor", "--compare", "--seeds", str(2**32)).error
    )
