"""The switch to torch.nn: every layer and every architecture, with the same state_dict and the same outputs."""

import copy
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import pytest
import torch
from torch import Tensor, nn

import kernels
from kernels import backend, layers
from lightning_modules.architectures import plain
from tests.networks import ARCHITECTURES, outputs_of, small

TABLE = torch.tensor([[True, False, True], [True, True, False], [False, False, False], [True, True, True]])

# Each layer, and the shape of its input.
LAYERS = {
    "Conv1d": (layers.Conv1d(4, 6, 3, groups=2, activation="relu", pool=layers.MaxPool1d(2)), (2, 4, 9)),
    "Conv2d": (layers.Conv2d(4, 6, 3, 2, 1), (2, 4, 6, 5)),
    "Conv2d-relu-pool": (layers.Conv2d(4, 6, 3, activation="relu", pool=layers.MaxPool2d(3, 2, 1)), (2, 4, 9, 8)),
    "Conv2d-torch-pool": (layers.Conv2d(4, 6, 3, pool=nn.MaxPool2d(2)), (2, 4, 9, 8)),
    "Conv2d-maxout": (layers.Conv2d(4, 6, 3, activation="relu", pool=layers.CrossChannelMaxPool(3)), (2, 4, 6, 5)),
    "Conv2d-full": (layers.Conv2d(4, 6, (3, 2), padding="full", dilation=(1, 2), stride=2), (2, 4, 6, 5)),
    "Conv2d-circular": (layers.Conv2d(4, 6, 3, padding=2, padding_mode="circular"), (4, 6, 5)),
    "Conv3d": (layers.Conv3d(2, 3, 2, bias=False, padding="same", activation="relu"), (1, 2, 4, 4, 3)),
    "ConvTranspose1d": (layers.ConvTranspose1d(4, 6, 3, 2, activation="relu"), (2, 4, 9)),
    "ConvTranspose2d": (layers.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), (2, 4, 6, 5)),
    "ConvTranspose3d": (layers.ConvTranspose3d(2, 3, 2, dilation=2, activation="relu"), (1, 2, 4, 4, 3)),
    "Linear": (layers.Linear(5, 3, activation="relu"), (2, 4, 5)),
    "Linear-maxout": (layers.Linear(5, 6, pool=layers.CrossChannelMaxPool(2)), (2, 4, 5)),
    "BatchNorm1d": (layers.BatchNorm1d(4, momentum=None), (5, 4)),
    "BatchNorm2d": (layers.BatchNorm2d(4, activation="relu"), (2, 4, 6, 5)),
    "BatchNorm3d": (layers.BatchNorm3d(4, track_running_stats=False), (2, 4, 3, 2, 2)),
    "TiledConv2d": (layers.TiledConv2d(4, 6, 3, tile=(2, 3), groups=2, padding=(2, 1), dilation=2), (2, 4, 9, 10)),
    "TiledConv2d-same": (layers.TiledConv2d(4, 6, (2, 3), tile=20, padding="same", activation="relu"), (4, 6, 5)),
    "TiledConv2d-full": (layers.TiledConv2d(4, 6, 3, tile=2, stride=(2, 1), padding="full", bias=False), (2, 4, 6, 5)),
    "LocalConv2d": (layers.LocalConv2d(4, 6, 3, (7, 9), stride=2, padding=1, groups=2), (2, 4, 7, 9)),
    "TableConv2d": (layers.TableConv2d(TABLE, (2, 3), (2, 1), "full", activation="relu"), (2, 3, 6, 5)),
    "TableConv2d-same": (layers.TableConv2d(TABLE, 2, padding="same", bias=False), (3, 6, 5)),
    "CrossChannelMaxPool": (layers.CrossChannelMaxPool(2), (2, 4, 5, 6)),
    "MaxPool1d": (layers.MaxPool1d(3, 2), (2, 4, 9)),
    "MaxPool2d": (layers.MaxPool2d(2, ceil_mode=True), (2, 4, 6, 5)),
    "MaxPool3d": (layers.MaxPool3d(2), (1, 2, 4, 4, 3)),
    "AvgPool1d": (layers.AvgPool1d(3, 2, 1), (2, 4, 9)),
    "AvgPool2d": (layers.AvgPool2d(3, padding=1, count_include_pad=False), (2, 4, 6, 5)),
    "AvgPool3d": (layers.AvgPool3d(2, divisor_override=3), (1, 2, 4, 4, 3)),
    "AdaptiveMaxPool1d": (layers.AdaptiveMaxPool1d(4), (2, 4, 9)),
    "AdaptiveMaxPool2d": (layers.AdaptiveMaxPool2d((4, None)), (2, 4, 6, 5)),
    "AdaptiveMaxPool3d": (layers.AdaptiveMaxPool3d(2), (1, 2, 4, 4, 3)),
    "AdaptiveAvgPool1d": (layers.AdaptiveAvgPool1d(4), (2, 4, 9)),
    "AdaptiveAvgPool2d": (layers.AdaptiveAvgPool2d(2), (2, 4, 6, 5)),
    "AdaptiveAvgPool3d": (layers.AdaptiveAvgPool3d((2, 3, None)), (1, 2, 4, 4, 3)),
}


@contextmanager
def nothing_of_kernels() -> Iterator[None]:
    """Within, no function of `kernels` is called, even where its Triton kernels could run."""
    called = []

    def watch(frame: FrameType, event: str, _: object) -> None:
        name = frame.f_globals.get("__name__", "")
        if event == "call" and name.split(".")[0] == "kernels":
            called.append(f"{name}.{frame.f_code.co_name}")

    launches = backend.launch_count()
    with kernels.use_backend("triton"):
        sys.setprofile(watch)
        try:
            yield
        finally:
            sys.setprofile(None)
    assert not called, called
    assert backend.launch_count() == launches


def step(network: nn.Module, *inputs: Tensor, **options: object) -> dict[str, Tensor]:
    """Outputs, gradients and state after a step, by name."""
    y = torch.cat([output.flatten() for output in outputs_of(network, *inputs, **options)])
    gradients = {}
    if y.requires_grad:
        (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype)).sum().backward()
        gradients = {f"{name}.grad": p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {"output": y.detach(), **gradients, **network.state_dict()}


def assert_the_same(network: nn.Module, *inputs: Tensor, **options: object) -> None:
    """The same before and after a step, on the torch backend and without `kernels`."""
    network = copy.deepcopy(network)
    twin = plain(network)
    assert not any("kernels" in kind.__module__ for module in twin.modules() for kind in type(module).__mro__)
    assert list(twin.state_dict()) == list(network.state_dict())
    torch.testing.assert_close(twin.state_dict(), network.state_dict(), rtol=0, atol=0)
    expected = step(network, *inputs, **options)
    with nothing_of_kernels():
        found = step(twin, *inputs, **options)
    torch.testing.assert_close(found, expected)


def test_every_layer_is_tested():
    assert {name.partition("-")[0] for name in LAYERS} == set(layers.__all__)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_compute_the_same(name):
    layer, shape = LAYERS[name]
    x = torch.randn(shape)
    assert_the_same(layer, x)
    assert_the_same(copy.deepcopy(layer).eval(), x)


@pytest.mark.parametrize("name", ["Conv1d", "Conv2d", "Conv3d", "Linear", "BatchNorm2d"])
def test_what_a_call_can_ask_for(name):
    layer = copy.deepcopy(LAYERS[name][0])
    layer.activation = layer.pool = None
    x = torch.randn(LAYERS[name][1])
    residual = torch.randn_like(layer(x))
    for other in (residual, residual[:1]):
        assert_the_same(layer, x, other)
        assert_the_same(layer, x, other, activation="relu")
    if name.startswith("Conv"):
        assert_the_same(layer, x, activation="relu", max_pool={"kernel_size": 2, "stride": 1})


@pytest.mark.parametrize("name", ["Conv1d", "Conv2d", "Conv3d"])
def test_a_convolution_and_its_transpose(name):
    """<conv(x), y> = <x, transpose(y)>, before and after the switch."""
    layer = copy.deepcopy(LAYERS[name][0]).double()
    layer.activation = layer.pool = layer.bias = None
    if name == "Conv3d":
        layer.padding = 0
    for conv in (layer, plain(layer)):
        x = torch.randn(LAYERS[name][1], dtype=torch.float64)
        y = conv(x)
        other = torch.randn_like(y)
        window = zip(x.shape[2:], conv.kernel_size, conv.stride, conv.padding, strict=True) if name != "Conv3d" else ()
        back = conv.transpose(other, [(n + 2 * p - k) % s for n, k, s, p in window] or 0)
        torch.testing.assert_close((back * x).sum(), (other * y).sum())


def test_an_output_size_can_be_asked_for():
    assert_the_same(LAYERS["ConvTranspose1d"][0], torch.randn(2, 4, 9), output_size=[20])


def test_a_local_layer_keeps_to_its_input_size():
    with pytest.raises(ValueError, match=r"LocalConv2d: input must be of \(7, 9\), got \(9, 9\)"):
        plain(LAYERS["LocalConv2d"][0])(torch.randn(2, 4, 9, 9))


def test_a_table_is_loaded_with_the_weights():
    other = layers.TableConv2d(TABLE.flip(0), (2, 3), (2, 1), "full", activation="relu")
    layer, x = plain(LAYERS["TableConv2d"][0]), torch.randn(2, 3, 6, 5)
    layer.load_state_dict(other.state_dict())
    torch.testing.assert_close(layer(x), other(x))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_compute_the_same(name):
    """In float64: batch norms over few values magnify rounding."""
    network = small(name).double()
    images = torch.randn(2, *network.input_shape, dtype=torch.float64)
    assert_the_same(network.eval(), images)
    torch.manual_seed(0)
    assert_the_same(network.train(), images)


def test_copies_pickles_and_shows_what_it_is():
    twin = plain(small("LeNet5"))
    images = torch.randn(2, 1, 32, 32)
    assert torch.equal(pickle.loads(pickle.dumps(twin))(images), copy.deepcopy(twin)(images))
    assert "activation=relu" in repr(twin) and "pool_size=3" in repr(plain(LAYERS["Conv2d-maxout"][0]))


def test_the_network_is_left_as_it_is():
    network = small("LeNet")
    kinds = [type(module) for module in network.modules()]
    twin = plain(network)
    assert [type(module) for module in network.modules()] == kinds
    assert all(a is not b for a, b in zip(twin.parameters(), network.parameters(), strict=True))


def test_tied_weights_stay_tied():
    network = nn.ModuleList([layers.Conv2d(1, 4, 3), layers.ConvTranspose2d(4, 1, 3)])
    network[1].weight = network[0].weight
    twin = plain(network)
    assert twin[1].weight is twin[0].weight is not network[0].weight


def test_refuses_what_torch_has_nothing_for():
    class Mine(layers.Conv2d):
        pass

    with pytest.raises(TypeError, match="plain: 1 is a Mine, which torch.nn has nothing for"):
        plain(nn.Sequential(nn.ReLU(), Mine(1, 1, 1)))
    with pytest.raises(TypeError, match="plain: network is a ConvertedSequential"):
        plain(kernels.convert(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU())))
