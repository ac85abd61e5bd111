"""torchvision's models on our layers: its state_dict as it is, its outputs, gradients and statistics; their volumes."""

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision.models as zoo
from torch import nn

from lightning_modules.architectures import VGG11, AlexNet, GoogLeNet, ResNet18, ResNet50
from tests.networks import assert_same_step, run

# Ours and theirs, without dropout and with five classes, and the side of the images to be compared with.
PAIRS = {
    "alexnet": (lambda: AlexNet(classes=5, dropout=0.0), lambda: zoo.alexnet(num_classes=5, dropout=0.0), 63),
    "googlenet": (
        lambda: GoogLeNet(classes=5, dropout=(0.0, 0.0), transform_input=True),
        lambda: zoo.googlenet(
            num_classes=5, aux_logits=True, transform_input=True, init_weights=False, dropout=0.0, dropout_aux=0.0
        ),
        40,
    ),
    "resnet18": (lambda: ResNet18(classes=5), lambda: zoo.resnet18(num_classes=5), 40),
    "resnet50": (lambda: ResNet50(classes=5), lambda: zoo.resnet50(num_classes=5), 40),
    "vgg11": (lambda: VGG11(classes=5, dropout=0.0), lambda: zoo.vgg11(num_classes=5, dropout=0.0), 32),
}


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def narrow(model: nn.Module, by: int = 8) -> nn.Module:
    """The model with an eighth of its channels and hidden units, which all are multiples of eight."""
    for layer in model.modules():
        for name, value in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
            part = value.detach()[tuple(slice(extent if extent % by else extent // by) for extent in value.shape)]
            setattr(layer, name, nn.Parameter(part) if isinstance(value, nn.Parameter) else part)
    return model


@torch.no_grad()
def randomised(model: nn.Module) -> nn.Module:
    """The model with random parameters and statistics, under which values neither die out nor explode."""
    model = model.to_empty(device="cpu")
    for name, value in model.state_dict().items():
        if value.dim() > 1:
            nn.init.kaiming_normal_(value)
        elif value.is_floating_point():
            low, high = (-0.5, 0.5) if name.endswith(("bias", "mean")) else (0.5, 1.5)
            value.uniform_(low, high)
        else:
            value.zero_()
    return model


@pytest.mark.parametrize("name", PAIRS)
def test_has_torchvisions_keys_and_shapes(name):
    network = {"alexnet": AlexNet, "googlenet": GoogLeNet, "resnet18": ResNet18, "resnet50": ResNet50, "vgg11": VGG11}
    arguments = {"aux_logits": True, "init_weights": False} if name == "googlenet" else {}
    ours, theirs = on_meta(network[name]), on_meta(lambda: zoo.get_model(name, **arguments))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())  # shapes, too


@pytest.mark.parametrize("name", PAIRS)
def test_computes_what_torchvision_computes(name):
    build, build_theirs, side = PAIRS[name]
    theirs = randomised(narrow(on_meta(build_theirs)))
    ours = narrow(on_meta(build)).to_empty(device="cpu")
    ours.load_state_dict(theirs.state_dict())
    exact, x = copy.deepcopy(theirs).double(), torch.randn(2, 3, side, side)
    for training in (True, False) if any(isinstance(layer, nn.BatchNorm2d) for layer in ours.modules()) else (True,):
        for network in (ours, theirs, exact):
            network.train(training)
        assert_same_step(run(ours, x, "torch"), run(theirs, x, "torch"), run(exact, x.double(), "torch"))


def volumes(network: nn.Module, side: int) -> dict[str, tuple[int, ...]]:
    """The shape (C, H, W) that each layer gives, of images of `side` x `side` pixels, computed without memory."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, layer in network.named_modules():
        layer.register_forward_hook(
            lambda _, __, y, name=name: shapes.update({name: tuple(y.shape[1:])} if isinstance(y, torch.Tensor) else {})
        )
    network.train()(torch.empty(2, network.input_shape[0], side, side, device="meta"))
    return shapes


VOLUMES = {
    AlexNet: {
        "features.0": (64, 55, 55), "features.2": (64, 27, 27), "features.3": (192, 27, 27),
        "features.5": (192, 13, 13), "features.6": (384, 13, 13), "features.8": (256, 13, 13),
        "features.10": (256, 13, 13), "features.12": (256, 6, 6), "avgpool": (256, 6, 6),
        "classifier.1": (4096,), "classifier.4": (4096,), "classifier.6": (1000,),
    },
    VGG11: {
        "features.0": (64, 112, 112), "features.3": (128, 56, 56), "features.6": (256, 56, 56),
        "features.8": (256, 28, 28), "features.11": (512, 28, 28), "features.13": (512, 14, 14),
        "features.16": (512, 14, 14), "features.18": (512, 7, 7), "avgpool": (512, 7, 7),
        "classifier.0": (4096,), "classifier.3": (4096,), "classifier.6": (1000,),
    },
    GoogLeNet: {
        "conv1": (64, 112, 112), "maxpool1": (64, 56, 56), "conv2": (64, 56, 56), "conv3": (192, 56, 56),
        "maxpool2": (192, 28, 28), "inception3a": (256, 28, 28), "inception3b": (480, 28, 28),
        "maxpool3": (480, 14, 14), "inception4a": (512, 14, 14), "inception4b": (512, 14, 14),
        "inception4c": (512, 14, 14), "inception4d": (528, 14, 14), "inception4e": (832, 14, 14),
        "maxpool4": (832, 7, 7), "inception5a": (832, 7, 7), "inception5b": (1024, 7, 7), "avgpool": (1024, 1, 1),
        "fc": (1000,), "aux1.pool": (512, 4, 4), "aux2.pool": (528, 4, 4), "aux1.conv": (128, 4, 4),
        "aux1.fc1": (1024,), "aux1.fc2": (1000,), "aux2.fc2": (1000,),
    },
    ResNet18: {
        "conv1": (64, 112, 112), "maxpool": (64, 56, 56), "layer1": (64, 56, 56), "layer2": (128, 28, 28),
        "layer3": (256, 14, 14), "layer4": (512, 7, 7), "avgpool": (512, 1, 1), "fc": (1000,),
    },
    ResNet50: {
        "conv1": (64, 112, 112), "maxpool": (64, 56, 56), "layer1": (256, 56, 56), "layer2": (512, 28, 28),
        "layer3": (1024, 14, 14), "layer4": (2048, 7, 7), "avgpool": (2048, 1, 1), "fc": (1000,),
    },
}  # fmt: skip


@pytest.mark.parametrize("network", VOLUMES)
def test_volumes(network):
    shapes = volumes(on_meta(network), 224)
    assert {name: shapes[name] for name in VOLUMES[network]} == VOLUMES[network]


@pytest.mark.parametrize(
    ("network", "smallest"), [(AlexNet, 63), (GoogLeNet, 15), (ResNet18, 1), (ResNet50, 1), (VGG11, 32)]
)
def test_smallest_images(network, smallest):
    small = on_meta(lambda: network((3, smallest, smallest), classes=7))
    for side in (smallest, smallest + 6):
        assert volumes(small, side)["fc" if network is GoogLeNet else ""] == (7,)
    for shape in ((2, 3, 40, smallest - 1), (2, 1, 64, 64), (3, 64, 64)):
        says = rf"\[N, 3, H, W\] with H and W of at least {smallest}, got \[{', '.join(map(str, shape))}\]"
        with pytest.raises(ValueError, match=says):
            small(torch.empty(shape, device="meta"))
    with pytest.raises(ValueError, match=rf"at least \(1, {smallest}, {smallest}\), got \(3, {smallest - 1}, 80\)"):
        network((3, smallest - 1, 80))


def test_the_heads_of_googlenet_are_scored_in_training_only():
    network, images = on_meta(lambda: GoogLeNet(classes=7)), torch.empty(2, 3, 64, 64, device="meta")
    assert [tuple(scores.shape) for scores in network(images)] == [(2, 7)] * 3
    assert network.eval()(images).shape == (2, 7)
    with pytest.raises(ValueError, match="transform_input needs images of 3 channels, got 1"):
        GoogLeNet((1, 32, 32), width=0.01, transform_input=True)
