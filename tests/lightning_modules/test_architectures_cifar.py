"""LeNet-5 and the networks for images of 32x32: volumes, parameters as the papers count them, what a block computes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_modules.architectures import CifarResNet, LeNet5, SmallInception
from tests.lightning_modules.test_architectures import volumes


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_volumes_and_parameters_of_lenet5():
    network = LeNet5()
    assert volumes(network, torch.randn(2, 1, 32, 32)) == {
        "c1": (2, 6, 28, 28),
        "s2": (2, 6, 14, 14),
        "c3": (2, 16, 10, 10),
        "s4": (2, 16, 5, 5),
        "c5": (2, 120, 1, 1),
        "f6": (2, 84),
        "output": (2, 10),
    }
    counts = {name: parameters(layer) for name, layer in network.named_children()}
    assert counts == {"c1": 156, "s2": 12, "c3": 1516, "s4": 32, "c5": 48_120, "f6": 10_164, "output": 850}
    assert sum(counts.values()) - counts["output"] == 60_000  # as the paper counts, whose output units learn nothing


def test_c3_sees_the_maps_of_table_1():
    seen = LeNet5().c3.table
    assert seen.sum(1).tolist() == [3] * 6 + [4] * 9 + [6]
    assert seen.sum(0).tolist() == [10] * 6
    assert [row.nonzero().flatten().tolist() for row in seen[[0, 5, 11, 14]]] == [
        [0, 1, 2], [0, 1, 5], [0, 1, 2, 5], [0, 2, 3, 5]
    ]  # fmt: skip


def test_subsampling_is_an_average_with_a_coefficient_and_a_bias():
    layer, maps = LeNet5().s2, torch.randn(2, 6, 28, 28)
    torch.testing.assert_close(layer(maps), F.avg_pool2d(maps, 2))
    with torch.no_grad():
        layer.weight[3], layer.bias[3] = 2, 5
    torch.testing.assert_close(layer(maps)[:, 3], 2 * F.avg_pool2d(maps, 2)[:, 3] + 5)


@pytest.mark.parametrize(
    ("blocks", "millions"), [(3, 0.27), (5, 0.46), (7, 0.66), (9, 0.85), (18, 1.7)], ids=lambda value: f"{value}"
)
def test_cifar_resnets_are_as_large_and_deep_as_the_papers(blocks, millions):
    network = CifarResNet(blocks=blocks)
    assert round(parameters(network) / 1e6, 1 if blocks == 18 else 2) == millions  # table 6
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len(layers) == 6 * blocks + 2
    plain = CifarResNet(blocks=blocks, residual=False)
    assert plain.state_dict().keys() == network.state_dict().keys()  # option A adds no parameter


def test_volumes_of_the_cifar_resnet():
    assert volumes(CifarResNet(), torch.randn(2, 3, 32, 32)) == {
        "conv1": (2, 16, 32, 32),
        "bn1": (2, 16, 32, 32),
        "stage1": (2, 16, 32, 32),
        "stage2": (2, 32, 16, 16),
        "stage3": (2, 64, 8, 8),
        "average": (2, 64, 1, 1),
        "fc": (2, 10),
    }


@pytest.mark.parametrize("residual", [True, False])
def test_a_block_adds_its_input_under_the_last_relu(residual):
    block, x = CifarResNet(residual=residual).eval().stage2[0], torch.randn(2, 16, 9, 7)
    branch = block.conv2(F.batch_norm(block.conv1(x), torch.zeros(32), torch.ones(32)).relu())
    branch = F.batch_norm(branch, torch.zeros(32), torch.ones(32))
    shortcut = torch.cat([x[:, :, ::2, ::2], torch.zeros(2, 16, 5, 4)], 1)
    torch.testing.assert_close(block(x), (branch + shortcut if residual else branch).relu())


def test_volumes_and_parameters_of_the_small_inception():
    network = SmallInception()
    assert volumes(network.trunk, torch.randn(2, 96, 32, 32)) == {
        "inception1": (2, 64, 32, 32),
        "inception2": (2, 80, 32, 32),
        "downsample1": (2, 160, 16, 16),
        "inception3": (2, 160, 16, 16),
        "inception4": (2, 160, 16, 16),
        "inception5": (2, 160, 16, 16),
        "inception6": (2, 144, 16, 16),
        "downsample2": (2, 240, 8, 8),
        "inception7": (2, 336, 8, 8),
        "inception8": (2, 336, 8, 8),
    }
    assert volumes(network, torch.randn(2, 3, 32, 32)) == {
        "conv1": (2, 96, 32, 32),
        "trunk": (2, 336, 8, 8),
        "average": (2, 336, 1, 1),
        "fc": (2, 10),
    }
    scales = sum(layer.weight.numel() for layer in network.modules() if isinstance(layer, nn.BatchNorm2d))
    assert parameters(network) - scales == 1_649_402  # table 1


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(LeNet5((3, 16, 21), classes=4), id="lenet5"),
        pytest.param(CifarResNet((1, 5, 8), blocks=1, filters=(3, 3, 5), classes=4), id="cifar-resnet"),
        pytest.param(SmallInception((1, 5, 8), width=0.05, classes=4), id="small-inception"),
    ],
)
def test_other_sizes(network):
    assert network(torch.randn(2, *network.input_shape)).shape == (2, network.classes)


def test_errors_name_what_was_given():
    with pytest.raises(ValueError, match=r"at least \(1, 16, 16\), got \(1, 15, 32\)"):
        LeNet5((1, 15, 32))
    with pytest.raises(ValueError, match=r"\[N, 1, 32, 32\], got \[2, 1, 28, 28\]"):
        LeNet5()(torch.randn(2, 1, 28, 28))
    with pytest.raises(ValueError, match="blocks must be at least 1, got 0"):
        CifarResNet(blocks=0)
    with pytest.raises(ValueError, match=r"filters must not decrease.*got \(16, 8, 64\)"):
        CifarResNet(filters=(16, 8, 64))
    for network in (CifarResNet(), SmallInception()):
        with pytest.raises(ValueError, match=r"\[N, 3, H, W\] with H and W of at least 1, got \[2, 1, 32, 32\]"):
            network(torch.randn(2, 1, 32, 32))
