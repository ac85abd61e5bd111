"""The three kernels of a convolution against float64, by the one tolerance rule, in every dtype and on small tiles."""

import pytest
import torch
from torch import Tensor

from kernels import reference, tuning
from kernels.tuning import Tile, use_tile
from tests.closeness import assert_as_exact_as_torch
from tests.kernels.problems import CONVOLUTIONS, Problem

conv = pytest.importorskip("kernels.conv", reason="triton is not installed")

pytestmark = pytest.mark.usefixtures("triton_only")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SMALL = Tile(32, 16, 16, splits=2)
SMALL_DEPTHWISE = Tile(32, 16, 16, splits=3, dot=False)


def three_operations(module, problem: Problem, tensors: list[Tensor], relu: bool) -> tuple[Tensor, ...]:
    """Output, input gradient, weight and bias gradient by `module`: kernels.conv or its twin."""
    x, weight, bias, dy, mask = tensors
    mask = mask if relu else None
    y = module.forward(x, weight, bias, None, problem.window, relu)
    dx = module.transpose(dy, weight, None, mask, problem.window, problem.size, False)
    return y, dx, *module.weight_gradient(x, dy, mask, problem.window, True)


def check(problem: Problem, dtype: torch.dtype, device: str, relu: bool) -> None:
    x, weight, bias, dy = problem.tensors(device)
    # The ReLU mask of both gradients is given, so that a sign lost to rounding does not decide the comparison.
    # Sums of products of bfloat16 values are exact in float64, where there is no better truth to compare with.
    rounded = torch.bfloat16 if dtype == torch.float64 else dtype
    tensors = [t.to(rounded).to(dtype) for t in (x, weight, bias, dy, (dy.flip(0) > 0))]
    exact = [t.double() for t in tensors]
    ours = three_operations(conv, problem, tensors, relu)
    torchs = three_operations(reference, problem, tensors, relu)
    truths = three_operations(reference, problem, exact, relu)
    magnitudes = three_operations(reference, problem, [t.abs() for t in exact], relu)
    for compared in zip(ours, torchs, truths, magnitudes, strict=True):
        assert_as_exact_as_torch(*compared)


@pytest.mark.parametrize("relu", [False, True], ids=["linear", "relu"])
@pytest.mark.parametrize("problem", CONVOLUTIONS)
def test_agrees_with_float64(problem, relu, device):
    check(problem, torch.float32, device, relu)


def test_a_window_as_large_as_the_image_has_one_tap(device, monkeypatch):
    """Its three operations are products of matrices, of which (tap, channel) is one axis: no tap reaches nothing."""
    asked, find = [], tuning.tile
    monkeypatch.setattr(tuning, "tile", lambda *arguments: asked.append(arguments) or find(*arguments))
    problem = Problem((5, 6), (5, 6), channels=2, outputs=3, batch=4)
    check(problem, torch.float32, device, relu=False)
    taps = 5 * 6
    assert [arguments[0:1] + arguments[2:6] for arguments in asked] == [
        ("forward", 4, 3, taps * 2, 1), ("transpose", 4, taps * 2, 3, 1), ("weight_gradient", 3, taps * 2, 4, 1)
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("problem", CONVOLUTIONS)
def test_agrees_in_every_dtype(problem, dtype, device):
    check(problem, dtype, device, relu=True)


@pytest.mark.parametrize("problem", CONVOLUTIONS)
def test_agrees_on_many_small_blocks(problem, device):
    with use_tile(SMALL):
        check(problem, torch.float32, device, relu=True)


@pytest.mark.parametrize("problem", [p for p in CONVOLUTIONS if p.values[0].steps <= 48])
def test_agrees_channel_by_channel(problem, device):
    with use_tile(SMALL_DEPTHWISE):
        check(problem, torch.float32, device, relu=True)


@pytest.mark.parametrize("problem", [p for p in CONVOLUTIONS if p.values[0].channels == 3 and p.values[0].groups == 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_what_is_beside_the_window_does_not_show(problem, value, device):
    """Lines of few channels are loaded with a neighbour's elements at both ends, whose weight is 0."""
    x, weight, *_ = (t.float() for t in problem.tensors(device))
    x[0, -1, 3, 2], x[-1, 0, -4, -5] = value, value
    y, truth = (each.forward(x, weight, None, None, problem.window, False) for each in (conv, reference))
    assert truth.isfinite().any() and not truth.isfinite().all()
    assert torch.equal(y.isnan(), truth.isnan()) and torch.equal(y.isfinite(), truth.isfinite())
