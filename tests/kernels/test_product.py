"""Matrix products: torch.matmul's shapes, every layout of the factors as it lies, and linear layers with epilogues."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from kernels import backend, functional
from tests.closeness import assert_as_exact_as_torch

pytestmark = pytest.mark.usefixtures("triton_only")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SHAPES = [
    ((5, 4), (4, 3)), ((50, 70), (70, 33)), ((2, 5, 4), (4, 3)), ((2, 3, 5, 4), (3, 4, 6)), ((2, 1, 5, 4), (7, 4, 2)),
    ((4,), (4, 3)), ((5, 4), (4,)), ((4,), (4,)), ((2, 5, 4), (4,)), ((4,), (2, 4, 3)), ((0, 4), (4, 3)),
    ((5, 0), (0, 3)), ((1, 1), (1, 1)),
]  # fmt: skip


@pytest.fixture(autouse=True)
def launch(triton_only, device):
    functional.linear(torch.ones(1, 1, device=device), torch.ones(1, 1, device=device))  # empty products launch nothing


@pytest.mark.parametrize(("left", "right"), SHAPES, ids=str)
def test_shapes_and_gradients_are_torchs(left, right, device):
    def run(function) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        leaves = [
            torch.randn(shape, generator=generator, dtype=torch.float64).to(device).requires_grad_()
            for shape in (left, right)
        ]
        y = function(*leaves)
        return [
            y,
            *torch.autograd.grad(y, leaves, torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y).to(device)),
        ]

    ours, torchs = run(functional.matmul), run(torch.matmul)
    torch.testing.assert_close(ours, torchs)
    assert ours[0].is_contiguous() and torchs[0].is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("turned", ["nn", "nt", "tn", "tt"])
def test_factors_are_read_as_they_lie(turned, dtype, device):
    a, b = torch.randn(37, 70, device=device).bfloat16(), torch.randn(70, 45, device=device).bfloat16()
    a, b = (
        t.to(dtype).t().contiguous().t() if turn == "t" else t.to(dtype) for t, turn in zip((a, b), turned, strict=True)
    )
    launches = backend.launch_count()
    y = functional.matmul(a, b)
    assert backend.launch_count() == launches + 1 and y.is_contiguous()
    assert_as_exact_as_torch(y, a @ b, a.double() @ b.double(), a.double().abs() @ b.double().abs())


@pytest.mark.parametrize("shapes", [((3, 4), (4, 2)), ((2, 3, 4), (2, 4, 2))], ids=["one", "batch"])
def test_first_and_second_derivatives(shapes, device):
    inputs = [torch.randn(s, dtype=torch.float64, device=device, requires_grad=True) for s in shapes]
    assert gradcheck(functional.matmul, inputs, fast_mode=True)
    assert gradgradcheck(functional.matmul, inputs, fast_mode=True)


def test_linear_fuses_what_a_convolution_does(device):
    x, weight = torch.randn(2, 5, 7, device=device), torch.randn(6, 7, device=device)
    bias, residual = torch.randn(6, device=device), torch.randn(2, 5, 6, device=device)
    expected = F.linear(x, weight, bias)
    y = functional.linear(x, weight, bias, residual=residual, activation="relu")
    torch.testing.assert_close(y, (expected + residual).relu())
    y = functional.linear(x, weight, bias, maxout=3)
    torch.testing.assert_close(y, expected.unflatten(-1, (2, 3)).amax(-1))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda m, ones: m(ones(2, 3), ones(2, 3)),
            ValueError,
            r"\[\*, K, N\], got \(2, 3\) and",
        ),
        (lambda m, ones: m(ones(()), ones(3)), ValueError, r"got \(\) and \(3,\)"),
        (lambda m, ones: m(ones(2, 3, 4), ones(3, 4, 5)), ValueError, "leading axes must broadcast"),
        (lambda m, ones: m(ones(2, 3), ones(3, 2).long()), TypeError, "other must be float16.*got int64"),
        (lambda m, ones: m(ones(2, 3), None), TypeError, "other must be a torch.Tensor"),
    ],
)
def test_bad_input_is_one_clear_line(call, error, message, device):
    with pytest.raises(error, match=message):
        call(functional.matmul, partial(torch.ones, device=device))
