"""Layers: torch.nn's state_dict, arguments and initialisation; copies, pickles and repr."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from kernels import backend, functional, layers, reference

PAIRS = [
    pytest.param(layers.Conv1d(4, 6, 3, groups=2), nn.Conv1d(4, 6, 3, groups=2), (2, 4, 9), id="Conv1d"),
    pytest.param(layers.Conv2d(4, 6, 3, padding="same"), nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 6, 5), id="Conv2d"),
    pytest.param(layers.Conv3d(2, 3, 2, bias=False), nn.Conv3d(2, 3, 2, bias=False), (1, 2, 4, 4, 3), id="Conv3d"),
    pytest.param(
        layers.Conv2d(4, 6, 3, padding=2, stride=2, padding_mode="circular"),
        nn.Conv2d(4, 6, 3, padding=2, stride=2, padding_mode="circular"),
        (2, 4, 6, 5),
        id="Conv2d-circular",
    ),
    pytest.param(layers.ConvTranspose1d(4, 6, 3, 2), nn.ConvTranspose1d(4, 6, 3, 2), (2, 4, 9), id="ConvTranspose1d"),
    pytest.param(
        layers.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2),
        nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2),
        (2, 4, 6, 5),
        id="ConvTranspose2d",
    ),
    pytest.param(
        layers.ConvTranspose3d(2, 3, 2, dilation=2),
        nn.ConvTranspose3d(2, 3, 2, dilation=2),
        (1, 2, 4, 4, 3),
        id="ConvTranspose3d",
    ),
    pytest.param(layers.Linear(5, 3), nn.Linear(5, 3), (2, 5), id="Linear"),
    pytest.param(layers.MaxPool1d(3, 2), nn.MaxPool1d(3, 2), (2, 4, 9), id="MaxPool1d"),
    pytest.param(layers.MaxPool2d(2), nn.MaxPool2d(2), (2, 4, 6, 5), id="MaxPool2d"),
    pytest.param(layers.MaxPool3d(2, ceil_mode=True), nn.MaxPool3d(2, ceil_mode=True), (1, 2, 4, 4, 3), id="MaxPool3d"),
    pytest.param(layers.AvgPool1d(3, 2, 1), nn.AvgPool1d(3, 2, 1), (2, 4, 9), id="AvgPool1d"),
    pytest.param(
        layers.AvgPool2d(3, padding=1, count_include_pad=False),
        nn.AvgPool2d(3, padding=1, count_include_pad=False),
        (2, 4, 6, 5),
        id="AvgPool2d",
    ),
    pytest.param(
        layers.AvgPool3d(2, divisor_override=3), nn.AvgPool3d(2, divisor_override=3), (1, 2, 4, 4, 3), id="AvgPool3d"
    ),
    pytest.param(layers.AdaptiveMaxPool1d(4), nn.AdaptiveMaxPool1d(4), (2, 4, 9), id="AdaptiveMaxPool1d"),
    pytest.param(
        layers.AdaptiveMaxPool2d((4, None)), nn.AdaptiveMaxPool2d((4, None)), (2, 4, 6, 5), id="AdaptiveMaxPool2d"
    ),
    pytest.param(layers.AdaptiveMaxPool3d(2), nn.AdaptiveMaxPool3d(2), (1, 2, 4, 4, 3), id="AdaptiveMaxPool3d"),
    pytest.param(layers.AdaptiveAvgPool1d(4), nn.AdaptiveAvgPool1d(4), (2, 4, 9), id="AdaptiveAvgPool1d"),
    pytest.param(layers.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d(1), (2, 4, 6, 5), id="AdaptiveAvgPool2d"),
    pytest.param(
        layers.AdaptiveAvgPool3d((2, 5, None)),
        nn.AdaptiveAvgPool3d((2, 5, None)),
        (1, 2, 4, 4, 3),
        id="AdaptiveAvgPool3d",
    ),  # fmt: skip
]


@pytest.mark.parametrize(("ours", "theirs", "shape"), PAIRS)
def test_exchanges_state_with_torch(ours, theirs, shape, device, triton_only):
    assert isinstance(ours, type(theirs))
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(shape, device=device)
    torch.testing.assert_close(ours.to(device)(x), theirs.to(device)(x))


@pytest.mark.parametrize(("ours", "theirs", "shape"), PAIRS)
def test_copies_and_pickles(ours, theirs, shape):
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert repr(twin) == repr(ours)
        assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), ours.parameters(), strict=True))


def test_adaptive_maxima_come_with_indices_where_asked_for(device, triton_only):
    x = torch.randn(2, 4, 9, 7, device=device)
    for ours, theirs in (
        (layers.AdaptiveMaxPool2d((4, 3), return_indices=True), nn.AdaptiveMaxPool2d((4, 3), return_indices=True)),
        (layers.MaxPool2d(3, return_indices=True), nn.MaxPool2d(3, return_indices=True)),
    ):
        assert all(torch.equal(a, b) for a, b in zip(ours(x), theirs(x), strict=True))


TRACED = {
    "convolutions": nn.Sequential(
        layers.Conv2d(1, 4, 3, padding="same", activation="relu", pool=layers.MaxPool2d(2)),
        layers.Conv2d(4, 6, 3, padding=1, pool=layers.CrossChannelMaxPool(2)),
        layers.BatchNorm2d(3),
        layers.ConvTranspose2d(3, 4, 3, stride=2),
        layers.TiledConv2d(4, 2, 3, tile=2),
        layers.LocalConv2d(2, 2, 3, input_size=7),
        nn.Flatten(),
        layers.Linear(50, 3),
    ),
    "poolings": nn.Sequential(
        layers.MaxPool2d(3, 1, ceil_mode=True),
        layers.CrossChannelMaxPool(1),
        layers.AvgPool2d(2, 1, 1),
        layers.AdaptiveMaxPool2d((5, None)),
        layers.AdaptiveAvgPool2d(2),
    ),
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # the extents of the grid are constants of the trace
@pytest.mark.parametrize("net", TRACED.values(), ids=TRACED)
def test_can_be_traced_by_torch_jit(net, device, triton_only):
    net = copy.deepcopy(net).to(device).eval()
    traced = torch.jit.trace(net, torch.randn(2, 1, 8, 8, device=device))
    x = torch.randn(3, 1, 8, 8, device=device)  # of another batch size
    assert torch.equal(traced(x), net(x))


def test_is_initialised_as_torch_initialises():
    torch.manual_seed(0)
    ours = layers.Conv2d(3, 8, 5)
    torch.manual_seed(0)
    assert torch.equal(ours.weight, nn.Conv2d(3, 8, 5).weight)


def test_activation_is_applied_and_shown(device, triton_only):
    conv = layers.Conv2d(1, 4, 3, padding="full", activation="relu").to(device)
    y = conv(torch.randn(1, 1, 4, 4, device=device))
    assert y.shape == (1, 4, 6, 6) and y.min() == 0 and y.max() > 0
    assert "padding=full" in repr(conv) and "activation=relu" in repr(conv)
    assert layers.Linear(2, 3, activation="relu").to(device)(torch.ones(1, 2, device=device)).min() >= 0


def test_pooling_is_fused_into_the_layer_before_it(device, triton_only):
    x = torch.randn(2, 3, 8, 8, device=device)
    for pool in (layers.MaxPool2d(2), nn.MaxPool2d(3, 2, ceil_mode=True), layers.CrossChannelMaxPool(2)):
        conv = layers.Conv2d(3, 6, 3, activation="relu", pool=pool).to(device)
        launches = backend.launch_count()
        y = conv(x)
        assert backend.launch_count() == launches + 1
        conv.pool = None
        torch.testing.assert_close(y, pool(conv(x)))
        assert list(conv.state_dict()) == ["weight", "bias"]
    maxout = layers.Linear(3, 6, pool=layers.CrossChannelMaxPool(3)).to(device)
    assert maxout(x[:, :, 0, 0]).shape == (2, 2)


def test_on_the_torch_backend_torchs_own_control_flow_passes(device):
    """Checkpointing stops its recomputation by an exception, raised in the middle of an operation."""
    conv = layers.Conv2d(2, 4, 3).to(device)
    x = torch.randn(2, 2, 6, 6, device=device)
    gradients = []
    with backend.use_backend("torch"):
        for use in (lambda: checkpoint(conv, x * 1, use_reentrant=False), lambda: conv(x)):
            gradients.append(torch.autograd.grad(use().sum(), conv.parameters()))
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, KeyboardInterrupt, AssertionError, MemoryError])
def test_on_the_torch_backend_an_operation_that_fails_does_not_run_twice(error, monkeypatch):
    calls = []

    def fail(*_):
        calls.append(1)
        raise error("no")

    monkeypatch.setattr(reference, "CONVOLUTIONS", (None, None, fail, None))
    with backend.use_backend("torch"), pytest.raises(error, match="no"):
        functional.conv2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 2, 2))
    assert calls == [1]


def test_on_the_torch_backend_the_error_of_a_hook_is_the_callers():
    calls = []

    def fail(_):
        calls.append(1)
        raise RuntimeError("no")

    x, weight = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 2, 2, requires_grad=True)
    with backend.use_backend("torch"), torch.autograd.graph.saved_tensors_hooks(fail, fail):
        for run in (lambda: functional.conv2d(x, weight), lambda: functional.linear(x[0, 0], weight.view(1, 4))):
            with pytest.raises(RuntimeError, match="no"):
                run()
    assert calls == [1, 1]


def test_on_the_torch_backend_compiled_code_is_told_what_is_wrong():
    compiled = torch.compile(functional.conv2d, backend="eager", fullgraph=True)
    with backend.use_backend("torch"), pytest.raises(RuntimeError, match="input must have 5 channels"):
        compiled(torch.ones(1, 4, 4, 4), torch.ones(1, 5, 2, 2))


def test_an_output_size_can_be_asked_of_a_transposed_convolution(device, triton_only):
    x = torch.randn(2, 3, 5, 5, device=device)
    ours = layers.ConvTranspose2d(3, 4, 3, stride=2).to(device)
    theirs = nn.ConvTranspose2d(3, 4, 3, stride=2).to(device)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x, output_size=[12, 11]), theirs(x, output_size=[12, 11]))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: layers.Conv2d(1, 2, 3, padding="full", padding_mode="reflect"),
            "Conv2d: padding='full' needs padding_mode='zeros', got 'reflect'",
        ),
        (lambda: layers.Conv2d(1, 2, 3, pool=nn.MaxPool1d(2)), "Conv2d: pool must be a MaxPool2d without indices or a"),
        (
            lambda: layers.Linear(1, 2, pool=nn.MaxPool1d(2)),
            "Linear: pool must be a CrossChannelMaxPool, got MaxPool1d",
        ),
        (lambda: layers.Conv2d(1, 2, 3, activation="gelu"), "Conv2d: activation must be None or 'relu', got 'gelu'"),
        (lambda: layers.Linear(1, 2, activation="gelu"), "Linear: activation must be None or 'relu', got 'gelu'"),
        (lambda: layers.CrossChannelMaxPool(0), "CrossChannelMaxPool: pool_size must be an int >= 1, got 0"),
    ],
)
def test_bad_arguments_are_refused_at_construction(build, message):
    with pytest.raises(ValueError, match=message):
        build()
