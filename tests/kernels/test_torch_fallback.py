"""Tensors that we do not take are left to torch in a converted model, and refused by our layers and functions."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import kernels
from kernels import functional, layers, torch_fallback

GRID = {1: (8,), 2: (8, 8), 3: (4, 4, 4)}


def convert(layer: nn.Module) -> nn.Module:
    """The layer in a converted model of its own."""
    return kernels.convert(nn.Sequential(layer))


class Calls(nn.Module):
    """Calls a function."""

    def __init__(self, call) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64], ids=str)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_integers_are_pooled_as_by_torch(axes, dtype, device):
    x = torch.randint(0, 200, (2, 3, *GRID[axes]), dtype=dtype, device=device)
    for name in ("MaxPool", "AdaptiveMaxPool"):
        layer = getattr(nn, f"{name}{axes}d")(2)
        try:
            expected = layer(x)
        except RuntimeError:  # what torch refuses, it refuses in its words
            with pytest.raises(RuntimeError, match="not implemented|not supported|Expected"):
                convert(layer)(x)
            continue
        assert torch.equal(convert(layer)(x), expected)
        with pytest.raises(TypeError, match="input must be float16, bfloat16, float32 or float64, got"):
            getattr(layers, f"{name}{axes}d")(2).to(device)(x)


def test_functions_take_what_torch_takes():
    mask = torch.randint(0, 2, (2, 3, 8, 8), dtype=torch.uint8)  # of which CUDA has no pooling
    model = kernels.convert(Calls(lambda x: F.max_pool2d(x, 3, 1, 1)))
    assert list(model.report.replaced.values()) == ["function max_pool2d"]
    assert torch.equal(model(mask), F.max_pool2d(mask, 3, 1, 1))
    assert torch.equal(model(mask.float()), F.max_pool2d(mask.float(), 3, 1, 1))
    for name in functional.__all__:
        if hasattr(F, name):  # every one of them is replaced, and can be pickled
            function = torch_fallback.FUNCTIONS[getattr(F, name)]
            assert pickle.loads(pickle.dumps(function)) is function


def complex_convolution() -> tuple[nn.Module, Tensor]:
    return nn.Conv2d(3, 4, 3, dtype=torch.complex64), torch.randn(2, 3, 8, 8, dtype=torch.complex64)


def complex_linear() -> tuple[nn.Module, Tensor]:
    return nn.Linear(3, 4, dtype=torch.complex64), torch.randn(2, 3, dtype=torch.complex64)


def sparse_linear() -> tuple[nn.Module, Tensor]:
    return nn.Linear(3, 4), torch.eye(3).to_sparse()


def nested_linear() -> tuple[nn.Module, Tensor]:
    return nn.Linear(3, 4), torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)], layout=torch.jagged)


def integer_convolution() -> tuple[nn.Module, Tensor]:
    layer = nn.Conv2d(3, 4, 3)
    layer.weight = nn.Parameter(torch.ones(4, 3, 3, 3, dtype=torch.int64), requires_grad=False)
    layer.bias = None
    return layer, torch.ones(1, 3, 8, 8, dtype=torch.int64)


def quantised_pooling() -> tuple[nn.Module, Tensor]:
    return nn.MaxPool2d(2), torch.quantize_per_tensor(torch.randn(1, 2, 4, 4), 0.1, 0, torch.quint8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "build",
    [complex_convolution, complex_linear, sparse_linear, nested_linear, integer_convolution, quantised_pooling],
)
def test_other_tensors_are_left_to_torch(build):
    layer, x = build()
    expected, actual = layer(x), convert(layer)(x)
    dense = [y.values() if y.is_nested else y.dequantize() if y.is_quantized else y for y in (actual, expected)]
    torch.testing.assert_close(*dense)
    report = convert(layer).report
    if layer(x).dtype in (torch.complex64, torch.int64):
        assert report.left == {"0": f"{type(layer).__name__}: {layer.weight.dtype} is not supported"}


def test_shapes_that_torch_broadcasts_are_left_to_torch(device):
    x, weight = torch.randn(2, 3, device=device), torch.randn(4, 3, device=device)
    bias = torch.randn(1, device=device)
    model = kernels.convert(Calls(lambda x: F.relu(F.linear(x, weight, bias))))
    torch.testing.assert_close(model(x), F.relu(F.linear(x, weight, bias)))


def test_what_was_to_be_fused_follows_one_by_one():
    x, weight = torch.randint(-3, 3, (2, 3, 8, 8)), torch.randint(-3, 3, (3, 3, 1, 1))
    summed = torch_fallback.conv2d(x, weight, residual=x, activation="relu")
    assert torch.equal(summed, F.relu(F.conv2d(x, weight) + x))
    pooled = torch_fallback.conv2d(x, weight, activation="relu", max_pool={"kernel_size": 2})
    assert torch.equal(pooled, F.max_pool2d(F.relu(F.conv2d(x, weight)), 2))


def test_errors_are_torchs_in_a_converted_model_and_ours_elsewhere(device):
    x = torch.randn(2, 5, 8, 8, device=device)
    with pytest.raises(RuntimeError, match="expected input.* to have 3 channels, but got 5 channels"):
        convert(nn.Conv2d(3, 4, 3).to(device))(x)
    with pytest.raises(ValueError, match="conv2d: input must have 3 channels"):
        layers.Conv2d(3, 4, 3).to(device)(x)
    norm = convert(nn.BatchNorm2d(5).double().to(device))  # a dtype that neither takes for this input
    with pytest.raises(RuntimeError, match="mixed dtype|scalar type|[Ee]xpected"):
        norm(x)
    with pytest.raises(TypeError, match="must be float32 for input float32, got float64"):
        layers.BatchNorm2d(5).double().to(device)(x)
    own = kernels.convert(nn.Sequential(layers.Conv2d(3, 4, 3, activation="relu"))).to(device)
    with pytest.raises(ValueError, match="conv2d: input must have 3 channels"):
        own(x)


def test_a_kernels_own_error_is_not_hidden(device, monkeypatch):
    def fails(*_):
        raise ValueError("no such tile")

    model = convert(nn.Conv2d(3, 4, 3).to(device))
    monkeypatch.setattr(kernels.ops, "convolution", fails)
    with kernels.use_backend("triton"), pytest.raises(ValueError, match="no such tile"):
        model(torch.randn(2, 3, 8, 8, device=device))


def test_integers_can_be_compiled():
    torch._dynamo.reset()  # other tests may have compiled as many models of this class as it takes
    model = convert(nn.MaxPool2d(2))
    x = torch.randint(0, 9, (1, 2, 4, 4), dtype=torch.uint8)
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(x), F.max_pool2d(x, 2))


def test_layers_with_parts_are_named():
    model = nn.Sequential(
        parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), parametrizations.weight_norm(nn.Linear(3, 4)), Scaled(3, 4),
        nn.LSTM(3, 4), torch.ao.nn.quantized.dynamic.Linear(3, 4),
    )  # fmt: skip
    assert kernels.convert(model).report.left == {
        "0": "ParametrizedConv2d has no equivalent: it is parametrized",
        "1": "ParametrizedLinear has no equivalent: it is parametrized",
        "2": "Scaled has no equivalent, a subclass of Linear with its own code",
        "3": "LSTM has no equivalent",
        "4": "Linear has no equivalent: it is quantised",
    }


class Scaled(nn.Linear):
    """A layer whose code cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else x


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "prepare",
    [torch.nn.utils.weight_norm, torch.nn.utils.spectral_norm, lambda layer: prune.l1_unstructured(layer, "weight", 3)],
    ids=["weight_norm", "spectral_norm", "pruning"],
)
def test_weights_that_are_computed_before_each_call_are_copied(prepare, device):
    """Their tensor is no leaf after a forward pass, which copy.deepcopy refuses."""
    model = nn.Sequential(prepare(nn.Conv2d(3, 4, 3)), nn.ReLU()).to(device)
    x = torch.randn(2, 3, 8, 8, device=device)
    model(x)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    converted = kernels.convert(model).eval()
    torch.testing.assert_close(converted(x), model.eval()(x))
    converted(x).sum().backward()
    assert all(p.grad is not None for p in converted.parameters()) and all(p.grad is None for p in model.parameters())


def test_what_cannot_be_copied_is_refused_in_a_line():
    model = nn.Sequential(nn.ReLU())
    model.losses = [torch.ones(1, requires_grad=True) * 2]
    with pytest.raises(ValueError, match="convert: module cannot be copied by copy.deepcopy: Only Tensors"):
        kernels.convert(model)
