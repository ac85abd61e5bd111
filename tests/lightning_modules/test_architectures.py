import pytest
import torch
from torch import nn

from kernels import use_backend
from lightning_modules.architectures import AllCNN, ConvNet, LeNet


def volumes(network: nn.Module, images: torch.Tensor) -> dict[str, tuple[int, ...]]:
    """The shape that each layer gives."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, layer in network.named_children():
        layer.register_forward_hook(lambda _, __, output, name=name: shapes.update({name: tuple(output.shape)}))
    network(images)
    return shapes


def test_volumes_of_the_lecture():
    assert volumes(ConvNet(), torch.randn(2, 3, 32, 32)) == {
        "conv": (2, 12, 32, 32),
        "pool": (2, 12, 16, 16),
        "fc": (2, 10),
    }


def test_volumes_of_lenet():
    assert volumes(LeNet(), torch.randn(2, 1, 8, 8)) == {
        "conv1": (2, 16, 8, 8),
        "pool1": (2, 16, 4, 4),
        "conv2": (2, 32, 4, 4),
        "maxout": (2, 16, 4, 4),
        "pool2": (2, 16, 2, 2),
        "fc1": (2, 64),
        "fc2": (2, 10),
    }


def test_volumes_of_all_cnn():
    network = AllCNN()
    assert volumes(network, torch.randn(2, 3, 32, 32)) == {
        "drop_input": (2, 3, 32, 32),
        "conv1": (2, 96, 32, 32),
        "conv2": (2, 96, 32, 32),
        "conv3": (2, 96, 16, 16),
        "drop3": (2, 96, 16, 16),
        "conv4": (2, 192, 16, 16),
        "conv5": (2, 192, 16, 16),
        "conv6": (2, 192, 8, 8),
        "drop6": (2, 192, 8, 8),
        "conv7": (2, 192, 6, 6),
        "conv8": (2, 192, 6, 6),
        "conv9": (2, 10, 6, 6),
        "average": (2, 10, 1, 1),
    }
    assert sum(p.numel() for p in network.parameters()) == 1_369_738


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(AllCNN((1, 9, 11), filters=(5, 7), classes=4), id="all-cnn"),
        pytest.param(ConvNet((1, 9, 7), filters=5, kernel_size=3, classes=4), id="convnet"),
        pytest.param(LeNet((3, 13, 10), filters=(6, 5), kernel_sizes=(9, 5), maxout=3, classes=4), id="lenet"),
    ],
)
def test_other_sizes(network):
    assert network(torch.randn(1, *network.input_shape)).shape == (1, network.classes)


def plain_convnet(state: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """The ConvNet as PyTorch alone would write it."""
    conv = nn.functional.conv2d(images, state["conv.weight"], state["conv.bias"], padding="same")
    return nn.functional.linear(
        nn.functional.max_pool2d(conv.relu(), 2).flatten(1), state["fc.weight"], state["fc.bias"]
    )


def test_convnet_is_the_plain_network():
    network, images = ConvNet(), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(network(images), plain_convnet(network.state_dict(), images))


def test_lenet_is_the_same_through_triton(device):
    network, images = LeNet().to(device), torch.randn(2, 1, 8, 8, device=device)
    scores = network(images)
    with use_backend("triton"):
        torch.testing.assert_close(network(images), scores)


def test_errors_name_what_was_given():
    with pytest.raises(ValueError, match=r"at least \(1, 4, 4\).*got \(1, 3, 8\)"):
        LeNet((1, 3, 8))
    with pytest.raises(ValueError, match=r"at least \(1, 2, 2\).*got \(0, 8, 8\)"):
        ConvNet((0, 8, 8))
    with pytest.raises(ValueError, match=r"\[N, 1, 8, 8\], got \[2, 3, 8, 8\]"):
        LeNet()(torch.randn(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"got \[1, 8, 8\]"):
        LeNet()(torch.randn(1, 8, 8))
    with pytest.raises(ValueError, match=r"at least \(1, 9, 9\), got \(3, 8, 32\)"):
        AllCNN((3, 8, 32))
