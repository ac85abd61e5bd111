"""Tensors of more than 2**31 elements: right addresses, in 64 bits where they are needed and only there."""

import numpy as np
import pytest
import torch

from kernels import backend

pytest.importorskip("triton")
import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from kernels import conv, grid, pool  # noqa: E402
from kernels.checks import make_window  # noqa: E402
from kernels.shape import POINT  # noqa: E402

BM = 16


@triton.jit
def _address_kernel(out_ptr, block, counts, size, channels, INDEX: tl.constexpr, BM: tl.constexpr):
    """Where the rows of one block are, as the kernels compute it: block and sizes are numbers only."""
    row = (tl.program_id(0) + block).to(INDEX) * BM + tl.arange(0, BM)
    n, d, h, w = grid.unravel(row, counts)
    address = grid.offset(n, d, h, w, size) * channels
    tl.store(out_ptr + tl.arange(0, BM), address.to(tl.int64))


@pytest.mark.parametrize(
    ("block", "size", "channels"),
    [(2**27 + 3, (2, 300, 500), 7), (2**20, (1, 1, 40_000), 300), (2**24 + 1, (1290, 1290, 1290), 1)],
    ids=["rows", "channels", "one-image"],
)
def test_addresses_need_64_bits_and_have_them(block, size, channels, device):
    expected = (torch.arange(BM) + block * BM) * channels
    assert expected[-1] >= 2**31 or block * BM * channels < 2**31
    for index in (tl.int64, tl.int32):
        out = torch.zeros(BM, dtype=torch.int64, device=device)
        backend.launch(_address_kernel, (1,), out, block, grid.divisors(size), size, channels, INDEX=index, BM=BM)
        fits = index == tl.int64 or expected[-1] < 2**31
        assert torch.equal(out.cpu(), expected) == fits


def test_64_bits_are_used_where_they_are_needed_only():
    assert grid.index_type(2**20) == tl.int32 and grid.index_type(2**20, 2**31) == tl.int64


@pytest.fixture
def huge():
    """2**31 + 64 zeros of which pages that nobody touches take no memory; the last ones are numbers."""
    torch.use_deterministic_algorithms(False)  # would fill what is allocated
    x = torch.from_numpy(np.zeros(2**31 + 64, dtype=np.float16))
    x[-64:] = torch.arange(64, dtype=torch.float16)
    yield x.view(1, 1, -1)
    torch.use_deterministic_algorithms(True)


@pytest.mark.skipif(not backend.INTERPRETING, reason="on a GPU the zeros would take memory")
def test_the_kernels_reach_the_end_of_a_tensor_of_more_than_2_31_elements(huge, triton_only):
    stride = 2**28
    window = make_window("test", (64,), stride, 0, 1)
    weight = torch.ones(1, 1, 64, dtype=torch.float16)
    y = conv.forward(huge, weight, None, None, window, False)
    assert y.shape == (1, 1, 9) and y[..., -1] == sum(range(64)) and y[..., :-1].eq(0).all()
    largest, _ = conv.forward_max(huge, weight, None, window, False, make_window("test", (9,), 9, 0, 1), [1], 1)
    assert largest.item() == sum(range(64))
    dw, db = conv.weight_gradient(huge, torch.ones_like(y), None, window, True)
    assert torch.equal(dw.flatten(), huge.flatten()[-64:]) and db.item() == 9
    pooled, taps = pool.max_pool(huge, window, [9])
    assert pooled[0, 0, -1] == 63 and taps[0, 0, -1] == 63 and POINT.taps == 1
    assert pool.average_pool(huge, window, [9], 0, True)[0, 0, -1] == sum(range(64)) / 64
