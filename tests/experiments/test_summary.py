import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from experiments.recipe import ARCHITECTURES
from experiments.summary.receptive import SELF, transposed, windowed
from experiments.summary.table import of_prediction, totals, volume
from experiments.summary.trace import Row, layers_of
from kernels import conv, functional, layers, use_backend
from kernels.shape import Window
from lightning_modules import architectures
from tests.experiments.conftest import DIGITS


def rows_by_name(network: nn.Module, *shape: int) -> dict[str, Row]:
    return {row.name: row for row in layers_of(network, shape)}


def test_help_is_quick_and_imports_nothing_heavy():
    code = "import sys; from experiments.__main__ import main; sys.argv[1:] = ['summary', '-h']\ntry: main()"
    code += "\nexcept SystemExit as stop: sys.exit(stop.code or 'torch' in sys.modules)"
    page = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert all(name in page for name in ("--config", "--architecture", "--input_shape", "connections", "field"))


def test_the_volumes_of_the_lecture():
    """INPUT 32x32x3 - CONV 32x32x12 - POOL 16x16x12 - FC 1x1x10; 5x5x3 = 75 weights and a bias a kernel."""
    rows = rows_by_name(architectures.ConvNet(), 3, 32, 32)
    assert [volume(row.output, 2) for row in rows.values()] == [
        "32 x 32 x 3", "32 x 32 x 12", "16 x 16 x 12", "1 x 1 x 10",
    ]  # fmt: skip
    first = rows["conv"]
    assert (first.fan_in, first.weights, first.biases) == ((75, 75), 12 * 75, 12)
    assert first.connections == 75 * 12 * 32 * 32 and first.flops == 2 * first.connections
    assert rows["pool"].connections == 0 and rows["fc"].weights == 16 * 16 * 12 * 10
    assert rows["conv"].activations == 4 * 12 * 32 * 32


def test_local_connections_of_the_lecture():
    """3x3x20 = 180 connections of a neuron, no parameter shared; the receptive field is the window."""
    local = rows_by_name(nn.Sequential(layers.LocalConv2d(20, 6, 3, input_size=16)), 20, 16, 16)["0"]
    shared = rows_by_name(nn.Sequential(layers.Conv2d(20, 6, 3)), 20, 16, 16)["0"]
    assert local.fan_in == shared.fan_in == (180, 180) and local.field == shared.field == (3, 3)
    assert local.connections == shared.connections == 180 * 6 * 14 * 14
    assert local.weights == 180 * 6 * 14 * 14 and local.biases == 6 * 14 * 14
    assert shared.weights == 180 * 6 and shared.biases == 6


def test_pooling_of_the_lecture():
    pooled = rows_by_name(nn.Sequential(layers.MaxPool2d(2)), 64, 224, 224)["0"]
    assert (volume(pooled.input, 2), volume(pooled.output, 2)) == ("224 x 224 x 64", "112 x 112 x 64")
    assert (pooled.weights, pooled.biases, pooled.fan_in) == (0, 0, None) and pooled.field == (2, 2)


def test_other_connectivity():
    """Tiled kernels take turns; a table connects LeNet-5's C3 (LeCun et al. 1998, table I: 1,516 parameters)."""
    tiled = rows_by_name(nn.Sequential(layers.TiledConv2d(3, 4, 3, tile=(2, 3), padding=1)), 3, 9, 9)["0"]
    assert tiled.weights == 6 * 4 * 27 and tiled.connections == 27 * 4 * 81 and tiled.fan_in == (27, 27)
    starts = [list(range(i, i + n)) for n in (3, 4) for i in range(6)]
    table = torch.zeros(16, 6, dtype=torch.bool)
    for output, channels in enumerate((*starts, (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5), range(6))):
        table[output, [channel % 6 for channel in channels]] = True
    c3 = rows_by_name(nn.Sequential(layers.TableConv2d(table, 5)), 6, 14, 14)["0"]
    assert (c3.weights, c3.biases) == (1500, 16) and c3.connections == 1500 * 100
    assert c3.fan_in == (75, 150) and c3.flops == 2 * 16 * 6 * 25 * 100  # run as a dense convolution
    grouped = rows_by_name(nn.Sequential(layers.Conv2d(8, 12, 3, groups=4)), 8, 5, 5)["0"]
    assert grouped.fan_in == (18, 18) and grouped.connections == 18 * 12 * 9


@pytest.mark.parametrize(
    ("layer", "shape", "window", "padding", "volumes"),
    [
        pytest.param(layers.Conv1d(2, 5, 4, stride=2, padding=1), (2, 20), (4,), ((1, 1),), ("20 x 2", "10 x 5"),
                     id="1-D"),
        pytest.param(layers.Conv3d(1, 2, (1, 3, 3)), (1, 4, 6, 8), (1, 3, 3), ((0, 0),) * 3,
                     ("4 x 6 x 8 x 1", "4 x 4 x 6 x 2"), id="3-D"),
        pytest.param(layers.Conv2d(1, 1, (4, 3), padding="same"), (1, 8, 8), (4, 3), ((1, 2), (1, 1)),
                     ("8 x 8 x 1", "8 x 8 x 1"), id="same, even"),
        pytest.param(layers.Conv2d(1, 1, 3, padding="full", dilation=2), (1, 8, 8), (3, 3), ((4, 4),) * 2,
                     ("8 x 8 x 1", "12 x 12 x 1"), id="full"),
        pytest.param(layers.AvgPool1d(3, 2, 1), (2, 9), (3,), ((1, 1),), ("9 x 2", "5 x 2"), id="1-D pool"),
    ],
)  # fmt: skip
def test_volumes_and_windows(layer, shape, window, padding, volumes):
    row = rows_by_name(nn.Sequential(layer), *shape)["0"]
    axes = len(shape) - 1
    assert (volume(row.input, axes), volume(row.output, axes)) == volumes
    assert row.window.kernel == window and row.window.padding == padding


class Tied(nn.Module):
    """Convolution and its transpose with the same kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = layers.Conv2d(1, 4, 5, stride=2, activation="relu")
        self.offset = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        code = self.conv(images)
        return functional.conv_transpose2d(code, self.conv.weight, self.offset, stride=2, activation="relu")


def test_tied_kernels_are_counted_once():
    conv_row, back = layers_of(Tied(), (1, 9, 9))[1:]
    assert (conv_row.weights, back.weights) == (100, 1) and back.kind.startswith("transposed convolution")
    assert back.output == (1, 9, 9) and back.connections == conv_row.connections == 100 * 9
    assert (
        back.fan_in == (100, 100) and back.field == (9, 9) and back.jump == (1, 1)
    )  # three windows of 5 in steps of 2


class Branches(nn.Module):
    """Windows of different extent over the same positions, joined; then a shortcut around a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3, stride=2, padding=1)
        self.point, self.wide = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 5, padding=2)
        self.pool = nn.AvgPool2d(3, 1, 1)
        self.last = layers.Conv2d(6, 6, 3, padding=1)
        self.reduce = nn.Conv2d(6, 1, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([self.point(x), self.wide(x), self.pool(x)], 1)
        return self.reduce(self.last(x, x))


class Chain(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 2, 3, dilation=2), nn.AvgPool2d(3, 2), nn.Conv2d(2, 2, (4, 2)), nn.AdaptiveAvgPool2d((6, 4))
        )


class Decoder(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 2, 2, stride=2), nn.ConvTranspose2d(2, 2, 3, stride=2), nn.Conv2d(2, 2, 2),
            nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(2, 1, 3),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("network", "side"),
    [
        pytest.param(Branches(), 64, id="branches"), pytest.param(Chain(), 40, id="chain"),
        pytest.param(Decoder(), 24, id="decoder"), pytest.param(Tied(), 41, id="tied"),
    ],
)  # fmt: skip
def test_receptive_fields_are_what_gradients_reach(network, side):
    """The inputs with a gradient, of the output in the middle with the most, where all weights are positive."""
    for parameter in network.parameters():
        nn.init.ones_(parameter)
    images = torch.ones(1, 1, side, side, requires_grad=True)
    with use_backend("torch"):
        outputs = network(images)
    middle = [range(extent // 2 - min(2, extent // 2 - 1), extent // 2 + 2) for extent in outputs.shape[2:]]
    reached = []
    for row in middle[0]:
        for column in middle[1]:
            (gradient,) = torch.autograd.grad(outputs[0, 0, row, column], images, retain_graph=True)
            place = gradient[0, 0].nonzero()
            reached.append((place.amax(0) - place.amin(0) + 1).tolist())
    assert list(layers_of(network, (1, side, side))[-1].field) == [max(axis) for axis in zip(*reached, strict=True)]


@pytest.fixture
def unwritten(monkeypatch):
    """Large networks are made within no time where nobody draws their weights."""
    for name in ("uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)


def test_known_receptive_fields(unwritten):
    """AlexNet's last pooling 195, ResNet-50's last block 427 (483 with its strides in the first convolutions)."""
    rows = rows_by_name(models.alexnet(), 3, 224, 224)
    assert [rows[f"features.{i}"].field[0] for i in (0, 2, 3, 5, 6, 8, 10, 12)] == [11, 19, 51, 67, 99, 131, 163, 195]
    assert rows["features.12"].jump == (32, 32) and rows["avgpool"].window.kernel == (1, 1)
    assert rows["classifier.1"].field is None
    rows = rows_by_name(models.resnet50(), 3, 224, 224)
    assert rows["layer4.2.conv3"].field == rows["layer4.2"].field == (427, 427)
    assert rows["fc"].output == (1000,) and rows["avgpool"].field is None


def test_a_transpose_reads_what_its_strides_leave():
    window = Window((4,), (2,), ((1, 1),), (1,))
    coarse = SELF.through(windowed(window, (16,), (8,))[0])
    assert (coarse.size, coarse.jump) == (4, 2)
    fine = coarse.through(transposed(window)[0])  # two neighbours of the eight, whose windows are two apart
    assert (fine.size, fine.jump) == (6, 1)
    assert SELF.through(transposed(Window((1,), (2,), ((0, 0),), (1,)))[0]).spans == ((0, 0), None)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name, unwritten):
    """Nothing is left out: parameters, and operations by PyTorch's own count; the costs of convolutions."""
    network = ARCHITECTURES[name]()
    rows = layers_of(network, network.input_shape)
    assert totals(rows).parameters == sum(parameter.numel() for parameter in network.parameters())
    unrolled = any(isinstance(module, layers.TiledConv2d | layers.LocalConv2d) for module in network.modules())
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter, use_backend("torch"):
        network.eval()(torch.empty(1, *network.input_shape))
    assert unrolled or totals(of_prediction(rows)).flops == counter.get_total_flops()
    for row in rows:
        if row.window is not None and row.fan_in is not None and "ranspose" not in row.kind and len(row.input) > 1:
            outputs = row.weights // row.fan_in[0] if row.weights else row.output[0]
            flops = conv.flops(1, row.input[0], outputs, row.input[1:], row.window)
            assert row.flops == flops or "Table" in row.kind or "Local" in row.kind or "Tiled" in row.kind


class Heads(nn.Module):
    """An auxiliary head in training, and what is fused."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = layers.Conv2d(1, 8, 3, activation="relu", pool=layers.MaxPool2d(2))
        self.norm = layers.BatchNorm2d(8)
        self.side = layers.Linear(8 * 9, 4, pool=layers.CrossChannelMaxPool(2))
        self.main = nn.Linear(8 * 9, 2)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.conv(images)
        x = self.norm(x, x, activation="relu")
        x = F.dropout(x, 0.5, self.training)
        scores = self.main(x.flatten(1))
        return (scores, self.side(x.flatten(1))) if self.training else scores


def test_fused_layers_are_one_row_and_training_s_own_are_marked():
    rows = rows_by_name(Heads(), 1, 8, 8)
    assert rows["conv"].kind == "Conv2d + ReLU + max pool 2x2 every 2x2" and rows["conv"].output == (8, 3, 3)
    assert rows["conv"].field == (4, 4) and rows["conv"].window.kernel == (3, 3)
    assert rows["norm"].kind == "BatchNorm2d + residual + ReLU"
    assert rows["side"].kind == "Linear + maxout of 2" and rows["side"].training_only
    assert not rows["main"].training_only
    assert totals(of_prediction(list(rows.values()))).parameters == 8 * 10 + 16 + 72 * 2 + 2


def test_memory_of_training():
    """Two layers with ReLU keep their input and their outputs; one without keeps nothing of its own."""
    chain = nn.Sequential(layers.Linear(10, 20, activation="relu"), nn.ReLU(inplace=True), layers.Linear(20, 5))
    rows = layers_of(chain, (10,))
    assert [row.kept for row in rows] == [40, 80, 0, 0] and [row.activations for row in rows] == [40, 80, 0, 20]


def test_steps_of_a_recurrent_network_see_more_and_share_their_weights():
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = layers.Conv2d(1, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = self.conv(x)
            return x

    _, *steps = layers_of(Recurrent(), (1, 8, 8))
    assert [row.weights for row in steps] == [9, 0, 0] and all(row.bias and row.fan_in == (9, 9) for row in steps)
    assert [row.field for row in steps] == [(3, 3), (5, 5), (7, 7)]
    assert [row.connections for row in steps] == [9 * 64] * 3


def test_the_command(convnets, tmp_path):
    run = convnets("summary", "--config", DIGITS, "--json", "out.json")
    assert run.code == 0, run.err
    assert re.search(r"conv1 +│ Conv2d \+ ReLU +│ +12 x 12 x 1 │ 12 x 12 x 16 │ +7x7 │ .* 49 \+ 1 │", run.out)
    assert re.search(r"total +│ prediction .* 29,226 │", run.out)
    figures = json.loads(Path("out.json").read_text())
    assert figures["totals"]["training"]["parameters"] == 29226
    assert figures["layers"][1]["output"] == [16, 12, 12]
    assert math.prod(figures["layers"][1]["window"]["kernel"]) == 49

    run = convnets("summary", "--architecture", "allcnn", "--input_shape", "3", "20", "24")
    assert run.code == 0 and "AllCNN, for one image of 20 x 24 x 3" in run.out


def test_a_wrong_command_line_is_one_line(convnets, tmp_path):
    recipe = yaml.safe_load(Path(DIGITS).read_text())
    recipe["model"]["init_args"]["network"]["init_args"]["filter"] = 3
    Path("typo.yaml").write_text(yaml.safe_dump(recipe))
    Path("none.yaml").write_text("trainer: {}\n")
    for arguments, message in (
        ((), "give one of --config and --architecture, got none"),
        (("--config", DIGITS, "--architecture", "LeNet"), "got --config and --architecture"),
        (("--architecture", "LNet"), "--architecture must be one of AlexNet"),
        (
            ("--architecture", "ConvNet", "--input_shape", "3", "1", "1"),
            "input_shape must be (channels, height, width)",
        ),
        (("--architecture", "ConvNet", "--input_shape", "x"), "argument --input_shape: must be a whole number"),
        (("--architecture", "LeNet", "--input_shape", "3"), "LeNet takes images of 3 extents, channels first, got [3]"),
        (
            ("--config", DIGITS, "--input_shape", "1", "8"),
            "takes images of 3 extents, channels first, got [1, 8]",
        ),
        (
            ("--architecture", "LeNet", "--input_shape", "3", "1000000", "1000000"),
            "not enough memory (256000000000000 bytes at once): use smaller images",
        ),
        (
            ("--architecture", "CifarResNet", "--input_shape", "3", "2147483647", "2147483647"),
            "not enough memory: use smaller images",
        ),
        (("--config", "no.yaml"), "--config no.yaml: No such file"),
        (("--config", "none.yaml"), "must have a class_path under model.init_args.network"),
        (("--config", "typo.yaml"), "'filter' is not accepted"),
        (("--config", DIGITS, "--json", "no/out.json"), "--json must be a file in an existing directory"),
    ):
        assert message in convnets("summary", *arguments).error
