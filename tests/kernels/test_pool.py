"""Max pooling and its gradient: values, taps and indices exactly torch's, ties and NaN included."""

import pytest
import torch

from kernels import reference
from kernels.tuning import Tile, use_tile
from tests.closeness import assert_as_exact_as_torch
from tests.kernels.problems import POOLINGS

pool = pytest.importorskip("kernels.pool", reason="triton is not installed")

pytestmark = pytest.mark.usefixtures("triton_only")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check(problem, dtype, device):
    x = problem.input(device, dtype)
    y, taps = pool.max_pool(x, problem.window, problem.output_size)
    truth, index = reference.max_pool_as_torch(x, problem.window, problem.ceil_mode)
    assert torch.equal(y.nan_to_num(nan=7.0), truth.nan_to_num(nan=7.0))
    assert torch.equal(reference.indices(taps, problem.window, problem.size), index)

    dy = torch.randn_like(truth)
    compared = [
        module.max_pool_gradient(gradient, taps, problem.window, problem.size)
        for module, gradient in ((pool, dy), (reference, dy), (reference, dy.double()), (reference, dy.double().abs()))
    ]
    assert_as_exact_as_torch(*compared)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", POOLINGS)
def test_is_exactly_torchs(problem, dtype, device):
    if problem.batch == 0:
        pool.max_pool(torch.ones(1, 1, 2, 2, device=device), problem.window, (1, 1))  # an empty batch launches nothing
    check(problem, dtype, device)


@pytest.mark.parametrize("problem", POOLINGS[:6])
def test_is_exact_on_many_small_blocks(problem, device):
    with use_tile(Tile(16, 2, 1)):
        check(problem, torch.float32, device)


@pytest.mark.parametrize("problem", [p for p in POOLINGS if p.values[0].batch])
def test_twin_finds_the_same_taps(problem, device):
    x = problem.input(device, torch.float32)
    _, taps = pool.max_pool(x, problem.window, problem.output_size)
    _, expected = reference.max_pool(x, problem.window, problem.output_size)
    assert torch.equal(taps, expected)
