"""What is fused into a convolution: residual, max pooling, maxout; and the transposed convolution with its epilogue."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from kernels import backend, functional, reference
from kernels.checks import make_window
from kernels.shape import POINT
from kernels.tuning import Tile, use_tile
from tests.closeness import assert_as_exact_as_torch
from tests.determinism import backend_to_compare
from tests.kernels.problems import CONVOLUTIONS, Problem

conv = pytest.importorskip("kernels.conv", reason="triton is not installed")
ops = pytest.importorskip("kernels.ops", reason="triton is not installed")

pytestmark = pytest.mark.usefixtures("triton_only")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SMALL = Tile(32, 16, 16)
NAMES = "batch-1 empty-batch stem-7x7-stride-2 dilation grouped depthwise channels-last expanded 3-d 1-d".split()
SOME = [p for p in CONVOLUTIONS if p.id in NAMES]

MAX_POOLED = [
    pytest.param(Problem((8, 8), (3, 3), padding=1), 2, {}, id="halving"),
    pytest.param(Problem((11, 9), (3, 3), stride=2, padding=1), 3, {"stride": 2, "padding": 1}, id="overlapping"),
    pytest.param(Problem((10, 11), (3, 2)), 2, {"stride": 3, "ceil_mode": True}, id="ragged-edge-kept"),
    pytest.param(Problem((14, 13), (3, 3)), (3, 2), {"stride": 2, "dilation": (2, 3), "padding": 1}, id="dilated"),
    pytest.param(Problem((9, 9), (3, 3), channels=6, outputs=4, groups=2), 2, {}, id="grouped"),
    pytest.param(Problem((8, 8), (3, 3), channels=6, outputs=6, groups=6), 2, {}, id="depthwise"),
    pytest.param(Problem((6, 5), (3, 3), batch=0), 2, {}, id="empty-batch"),
    pytest.param(Problem((6, 5), (3, 3)), (4, 3), {}, id="global"),
    pytest.param(Problem((9, 7), (3, 3), layout="channels_last"), 2, {}, id="channels-last"),
    pytest.param(Problem((9, 7), (3, 3), layout="expanded"), 2, {}, id="expanded"),
    pytest.param(Problem((20,), (3,)), 3, {"stride": 2}, id="1-d"),
    pytest.param(Problem((5, 6, 5), (2, 2, 2)), 2, {"stride": 1}, id="3-d"),
]
MAXOUTS = [
    pytest.param(Problem((7, 6), (3, 3), outputs=6), 2, id="pairs"),
    pytest.param(Problem((7, 6), (3, 3), channels=4, outputs=12, groups=2), 3, id="grouped"),
    pytest.param(Problem((7, 6), (3, 3), outputs=5, layout="channels_last"), 5, id="one-output"),
    pytest.param(Problem((), (), channels=12, outputs=10), 5, id="linear"),
]


def cast(tensors: list[Tensor], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors in `dtype`, and exactly these values in float64; sums of bfloat16's products are exact there."""
    rounded = torch.bfloat16 if dtype == torch.float64 else dtype
    narrow = [t.to(rounded).to(dtype) for t in tensors]
    return narrow, [t.double() for t in narrow]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", SOME)
def test_residual_is_added_before_the_relu(problem, dtype, device):
    if problem.batch == 0:
        functional.linear(torch.ones(1, 1, device=device), torch.ones(1, 1, device=device))
    x, weight, bias, residual = problem.tensors(device)
    narrow, exact = cast([x, weight, bias, residual], dtype)
    magnitude = reference.forward(*(t.abs() for t in exact), problem.window, True)
    launches = backend.launch_count()
    y = conv.forward(*narrow, problem.window, True)
    assert backend.launch_count() == launches + (problem.batch > 0)
    torchs, truth = (reference.forward(*tensors, problem.window, True) for tensors in (narrow, exact))
    assert_as_exact_as_torch(y, torchs, truth, magnitude)


def pooled(problem: Problem, kernel, more: dict):
    window = problem.window
    pool = make_window("pool", (kernel,) * window.axes if isinstance(kernel, int) else kernel,
                       more.get("stride", kernel), more.get("padding", 0), more.get("dilation", 1))  # fmt: skip
    return window, pool, pool.output_size(problem.output_shape[2:], more.get("ceil_mode", False))


@pytest.mark.parametrize("tile", [None, SMALL], ids=["default", "small"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("problem", "kernel", "more"), MAX_POOLED)
def test_max_pooling_is_fused(problem, kernel, more, dtype, tile, device):
    window, pool, size = pooled(problem, kernel, more)
    check_maximum(problem, dtype, device, tile, (window, True, pool, size, 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("problem", "maxout"), MAXOUTS)
def test_maxout_is_fused(problem, maxout, dtype, device):
    check_maximum(problem, dtype, device, None, (problem.window, False, POINT, problem.output_shape[2:], maxout))


def check_maximum(problem: Problem, dtype: torch.dtype, device: str, tile: Tile | None, arguments: tuple) -> None:
    if problem.batch == 0:
        functional.linear(torch.ones(1, 1, device=device), torch.ones(1, 1, device=device))
    window, relu, pool, size, maxout = arguments
    narrow, exact = cast(list(problem.tensors(device)), dtype)
    x, weight, bias, _ = narrow
    with use_tile(tile or Tile(64, 16, 32)):
        launches = backend.launch_count()
        y, winners = conv.forward_max(x, weight, bias, *arguments)
        assert backend.launch_count() == launches + (problem.batch > 0)
    torchs, truth = (reference.forward_max(*tensors[:3], *arguments)[0] for tensors in (narrow, exact))
    magnitude = reference.forward_max(*(t.abs() for t in exact[:3]), *arguments)[0]
    assert_as_exact_as_torch(y, torchs, truth, magnitude)
    # What the winners point at is the maximum, within the same bound.
    full = reference.forward(*exact[:3], None, window, relu)
    if maxout > 1:
        chosen = full.unflatten(1, (-1, maxout)).gather(2, winners.long().unsqueeze(2)).squeeze(2)
    else:
        index = reference.indices(winners, pool, full.shape[2:])
        chosen = full.flatten(2).gather(2, index.flatten(2)).view_as(index)
    # An error of either sum of the two that were compared can have chosen the other.
    assert_as_exact_as_torch(chosen.to(dtype), torchs, truth, 2 * magnitude)


FUSED = [
    pytest.param({"residual": True, "activation": "relu"}, id="residual"),
    pytest.param({"max_pool": 2, "activation": "relu"}, id="max-pool"),
    pytest.param({"max_pool": {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}}, id="overlapping"),
    pytest.param({"maxout": 3, "activation": "relu"}, id="maxout"),
]


@pytest.mark.parametrize("fused", FUSED)
def test_fused_gradients_are_those_of_the_parts(fused, device):
    x, weight, bias, residual = Problem((6, 7), (3, 3), outputs=6, padding=1).tensors(device)
    tensors = [x, weight, bias, residual] if fused.get("residual") else [x, weight, bias]

    def run(choice: str) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in tensors]
        keywords = fused | {"residual": leaves[3]} if len(leaves) == 4 else fused
        with backend_to_compare(choice):
            y = functional.conv2d(*leaves[:3], padding=1, **keywords)
            weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=device).view_as(y)
            return [y, *torch.autograd.grad(y, leaves, weights)]

    torch.testing.assert_close(run("triton"), run("torch"))


@pytest.mark.parametrize("fused", FUSED)
def test_first_and_second_derivatives_of_what_is_fused(fused, device):
    problem = Problem((4, 3), (3, 2), outputs=6, padding=1)
    x, weight, bias, residual = (t.requires_grad_() for t in problem.tensors(device))
    if fused.get("residual"):
        inputs = [x, weight, bias, residual]
        call = lambda x, w, b, z: functional.conv2d(x, w, b, padding=1, activation="relu", residual=z)  # noqa: E731
    else:
        inputs = [x, weight, bias]
        call = lambda x, w, b: functional.conv2d(x, w, b, padding=1, **fused)  # noqa: E731
    assert gradcheck(call, inputs, fast_mode=True) and gradgradcheck(call, inputs, fast_mode=True)


TRANSPOSED = [
    pytest.param((5, 6), (3, 3), {}, id="plain"),
    pytest.param((5, 6), (2, 2), {"stride": 2}, id="doubling"),
    pytest.param((5, 4), (4, 3), {"stride": 2, "padding": 1, "output_padding": 1}, id="output-padding"),
    pytest.param((5, 4), (3, 3), {"stride": (3, 2), "output_padding": (2, 1)}, id="asymmetric"),
    pytest.param((5, 4), (3, 2), {"dilation": 3, "output_padding": 2, "padding": 1}, id="dilated"),
    pytest.param((4, 4), (1, 1), {"dilation": 2, "output_padding": 1}, id="pointwise-beyond-the-input"),
    pytest.param((4, 4), (2, 2), {"stride": 3, "output_padding": 2}, id="stride-over-kernel"),
    pytest.param((4, 5), (3, 3), {"groups": 2, "stride": 2, "padding": 2}, id="grouped"),
    pytest.param((4, 5), (3, 3), {"groups": 4, "stride": 2}, id="depthwise"),
    pytest.param((9,), (4,), {"stride": 2, "padding": 1}, id="1-d"),
    pytest.param((3, 4, 2), (3, 2, 2), {"stride": 2, "padding": (1, 0, 0), "output_padding": 1}, id="3-d"),
]


def transposed(size, kernel, more, device) -> tuple[str, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(device)  # noqa: E731
    groups = more.get("groups", 1)
    return f"conv_transpose{len(size)}d", [draw(2, 4, *size), draw(4, 3, *kernel), draw(3 * groups)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("size", "kernel", "more"), TRANSPOSED)
def test_transposed_convolution_is_torchs(size, kernel, more, dtype, device):
    name, tensors = transposed(size, kernel, more, device)
    narrow, exact = cast(tensors, dtype)
    ours, theirs = getattr(functional, name), getattr(F, name)

    def with_gradients(function, tensors: list[Tensor], sign: float) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in tensors]
        y = function(*leaves, **more)
        dy = torch.linspace(sign, 1, y.numel(), device=device).view(y.shape).to(torch.bfloat16).to(y.dtype)
        return [y.detach(), *torch.autograd.grad(y, leaves, dy)]

    launches = backend.launch_count()
    compared = zip(
        with_gradients(ours, narrow, -1), with_gradients(theirs, narrow, -1), with_gradients(theirs, exact, -1),
        with_gradients(theirs, [t.abs() for t in exact], 1), strict=True,
    )  # fmt: skip
    assert backend.launch_count() == launches + 3  # itself and two gradients
    for results in compared:
        assert_as_exact_as_torch(*results)


@pytest.mark.parametrize(("size", "kernel", "more"), TRANSPOSED)
def test_transposed_convolution_fuses_bias_and_relu(size, kernel, more, device):
    name, tensors = transposed(size, kernel, more, device)
    y = getattr(functional, name)(*tensors, **more, activation="relu")
    torch.testing.assert_close(y, getattr(F, name)(*tensors, **more).relu())


@pytest.mark.parametrize(("size", "kernel", "more"), [p for p in TRANSPOSED if p.id in ("output-padding", "grouped")])
def test_first_and_second_derivatives_of_transposed_convolution(size, kernel, more, device):
    name, tensors = transposed(size, kernel, more, device)
    inputs = [t.requires_grad_() for t in tensors]
    call = lambda *tensors: getattr(functional, name)(*tensors, **more, activation="relu")  # noqa: E731
    assert gradcheck(call, inputs, fast_mode=True) and gradgradcheck(call, inputs, fast_mode=True)
