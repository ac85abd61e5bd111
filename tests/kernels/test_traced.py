"""torch.jit.trace: at sizes that it has not seen, a trace is right or says that it would not be."""

import pytest
import torch
from torch import Tensor

from kernels import functional
from kernels.backend import use_backend

WEIGHT, TRANSPOSED, FACTOR = torch.linspace(-1, 1, 216), torch.linspace(1, 2, 216), torch.linspace(-1, 1, 30)


def convolve(x: Tensor, **options) -> Tensor:
    return functional.conv2d(x, WEIGHT.to(x.device).view(6, 4, 3, 3), **options)


def spread(x: Tensor) -> Tensor:
    return functional.conv_transpose2d(x, TRANSPOSED.to(x.device).view(4, 6, 3, 3), stride=2)


# The second is whether Triton's launcher is given the size.
OPERATIONS = {
    "conv2d": (convolve, False),
    "conv2d, same": (lambda x: convolve(x, padding="same", activation="relu"), False),
    "conv2d with residual": (lambda x: convolve(x, padding=1, residual=convolve(x, padding=1)), False),
    "conv2d with pooling": (lambda x: convolve(x, max_pool=2), True),
    "conv2d with maxout": (lambda x: convolve(x, maxout=2), True),
    "conv_transpose2d": (spread, True),
    "max_pool2d": (lambda x: functional.max_pool2d(x, 2), True),
    "max_pool2d, unbatched": (lambda x: functional.max_pool2d(x[0], 2, return_indices=True)[1], True),
    "avg_pool2d": (lambda x: functional.avg_pool2d(x, 2, ceil_mode=True), True),
    "adaptive_avg_pool2d to None": (lambda x: functional.adaptive_avg_pool2d(x, (None, 1)), True),
    "adaptive_max_pool2d": (lambda x: functional.adaptive_max_pool2d(x, 3), True),
    "cross_channel_max_pool": (lambda x: functional.cross_channel_max_pool(x, 2), False),
    "batch_norm": (lambda x: functional.batch_norm(x, None, None, training=True), False),
    "linear": (lambda x: functional.linear(x[..., :5], FACTOR.to(x.device).view(6, 5)), False),
    "linear with maxout": (lambda x: functional.linear(x[..., :5], FACTOR.to(x.device).view(6, 5), maxout=2), False),
    "matmul": (lambda x: functional.matmul(x[..., :5], FACTOR.to(x.device).view(5, 6)), False),
    "matmul of batches": (lambda x: functional.matmul(x, x.transpose(-1, -2)), True),
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # a size that is a constant is what the test is about
@pytest.mark.parametrize("choice", ["auto", "torch"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_trace_is_right_or_refuses_at_other_sizes(name, choice, device):
    function, is_given_the_size = OPERATIONS[name]
    is_held = is_given_the_size and (choice == "auto" or "None" in name)
    with use_backend(choice):
        traced = torch.jit.trace(function, torch.randn(2, 4, 8, 8, device=device), check_trace=False)
        for shape in ((2, 4, 8, 8), (1, 4, 8, 8), (2, 4, 9, 8), (1, 4, 5, 6)):
            x = torch.randn(shape, device=device)
            if is_held and (shape[2:] != (8, 8) or (shape[0] != 2 and "batches" in name)):
                with pytest.raises(torch.jit.Error, match="traced for extents .* trace again, or use torch.compile"):
                    traced(x)
            else:
                assert torch.equal(traced(x), function(x))
