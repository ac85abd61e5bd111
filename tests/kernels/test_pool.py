"""Pooling and its gradients: of the maximum values, taps and indices exactly torch's, ties and NaN included."""

import pytest
import torch

from kernels import reference
from kernels.shape import Window
from kernels.tuning import Tile, use_tile
from tests.closeness import assert_as_exact_as_torch
from tests.kernels.problems import AVERAGES, POOLINGS, Pooling, lay_out

pool = pytest.importorskip("kernels.pool", reason="triton is not installed")

pytestmark = pytest.mark.usefixtures("triton_only")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def launch_one(device):
    """An empty batch launches nothing, which `triton_only` would mind."""
    pool.max_pool(torch.ones(1, 1, 2, 2, device=device), POOLINGS[0].values[0].window, (1, 1))


def check_max(problem, dtype, device):
    x = problem.input(device, dtype)
    y, taps = pool.max_pool(x, problem.window, problem.output_size)
    plain = x.clone(memory_format=torch.contiguous_format)  # channels-last, torch forgets an index where all is -inf
    truth, index = reference.max_pool_as_torch(plain, problem.window, problem.output_size)
    assert torch.equal(y.nan_to_num(nan=7.0), truth.nan_to_num(nan=7.0))
    assert torch.equal(reference.indices(taps, problem.window, problem.size), index)

    dy = lay_out(torch.randn_like(truth), problem.layout)
    compared = [
        module.max_pool_gradient(gradient, taps, problem.window, problem.size)
        for module, gradient in ((pool, dy), (reference, dy), (reference, dy.double()), (reference, dy.double().abs()))
    ]
    assert_as_exact_as_torch(*compared)


def check_average(problem, dtype, device):
    def compare(name, values, size):
        """With torch on the CPU, as on a GPU not all of its gradients are deterministic, with no 16-bit avg_pool3d."""
        arguments = (problem.window, size, problem.divisor or 0, problem.count_include_pad)
        ours = getattr(pool, name)(values, *arguments)
        twin, values = getattr(reference, name), values.cpu()
        truth, magnitude = (twin(v, *arguments) for v in (values.double(), values.double().abs()))
        known = values.float() if problem.kernel and len(problem.size) == 3 and dtype.itemsize == 2 else values
        torchs = twin(known, *arguments).to(dtype)
        finite = truth.isfinite()
        assert torch.equal(ours.cpu()[~finite].double().nan_to_num(7.0), truth[~finite].nan_to_num(7.0))
        assert_as_exact_as_torch(*(t[finite] for t in (ours.cpu(), torchs, truth, magnitude.abs())))
        return ours

    y = compare("average_pool", problem.input(device, dtype), problem.output_size)
    compare("average_pool_gradient", lay_out(torch.randn_like(y), problem.layout), problem.size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", POOLINGS)
def test_maximum_is_exactly_torchs(problem, dtype, device):
    if problem.batch == 0:
        launch_one(device)
    check_max(problem, dtype, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", AVERAGES)
def test_average_is_as_exact_as_torchs(problem, dtype, device):
    if problem.batch == 0:
        launch_one(device)
    check_average(problem, dtype, device)


@pytest.mark.parametrize("problem", [p for p in AVERAGES if p.values[0].channels == 3 and p.values[0].batch][::3])
def test_many_small_blocks_give_the_same(problem, device):
    with use_tile(Tile(16, 2, 1)):
        check_max(problem, torch.float32, device)
        check_average(problem, torch.float32, device)


@pytest.mark.parametrize("output", [(1, 1), (3, 3)], ids=str)
def test_the_mean_of_a_large_window_of_positive_numbers_is_as_exact_as_torchs(output, device):
    check_average(Pooling((64, 64), output=output, values="positive"), torch.float32, device)


def test_an_output_without_positions_has_a_gradient_of_zeros(device):
    window = Window.dividing((4, 4), (0, 2))
    dy = torch.ones(2, 3, 0, 2, device=device)
    assert torch.equal(pool.average_pool_gradient(dy, window, (4, 4), 0, True), torch.zeros(2, 3, 4, 4, device=device))


@pytest.mark.parametrize("problem", [p for p in POOLINGS if p.values[0].batch])
def test_twin_finds_the_same_taps(problem, device):
    x = problem.input(device, torch.float32)
    _, taps = pool.max_pool(x, problem.window, problem.output_size)
    _, expected = reference.max_pool(x, problem.window, problem.output_size)
    assert torch.equal(taps, expected)
