"""Code whose state or answers a trace would freeze: the model and its conversion do the same, call after call."""

import collections
import itertools
import random

import numpy as np
import numpy.random as npr
import pytest
import torch
import torch.nn.functional as F
from numpy.random import uniform
from torch import Tensor, nn

import kernels

pytestmark = pytest.mark.usefixtures("triton_only")


class Counter:
    """Returns how often it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        return self.calls


class Stateful(nn.Module):
    """Scales the output of a convolution by what `step` makes of an object."""

    def __init__(self, held, step) -> None:
        super().__init__()
        self.conv, self.held, self.step = nn.Conv2d(4, 4, 1), held, step

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x)) * self.step(self.held)


def turn(numbers) -> float:
    numbers.rotate(1)
    return numbers[0]


def multiply(numbers) -> float:
    product = 1.0
    for factor, _ in zip(numbers, range(2), strict=False):
        product *= factor
    return product


@pytest.fixture
def x(device) -> Tensor:
    return torch.randn(2, 4, 6, 6, device=device)


@pytest.mark.parametrize(
    ("held", "step", "reason"),
    [
        (Counter(), lambda count: count(), "changes an attribute"),
        ([(Counter(),)], lambda nested: nested[0][0](), "changes an attribute"),
        (collections.deque([1.0, 2.0, 3.0]), turn, "changes an attribute"),
        (itertools.count(1.0), multiply, "it has a count, which its code may advance"),
        (random.Random(0), lambda dice: dice.uniform(1, 2), "it has a Random, which its code may advance"),
        (np.random.default_rng(0), lambda dice: dice.uniform(1, 2), "it has a Generator, which its code may advance"),
    ],
)
def test_what_is_counted_or_drawn_is_at_each_call(held, step, reason, x):
    model = Stateful(held, step).to(x.device)
    converted = kernels.convert(model)
    assert reason in converted.report.untraced[""]
    for _ in range(2):
        torch.testing.assert_close(converted(x), model(x))


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (lambda x: {torch.float32: 2}.get(x.dtype, 3), "makes a key"),
        (lambda x: 2 if x.shape in {torch.Size([2, 4, 6, 6])} else 3, "makes a key"),
        (lambda x: {4: 2}.get(x.shape[1], 3), "makes a key"),
        (lambda x: len(f"{x.shape[1]}"), "makes a text"),
        (lambda x: 2 if str(x.device).startswith(("cpu", "cuda")) else 3, "makes a text"),
        (lambda x: 2 if "float32" in repr(x.dtype) else 3, "makes a text"),
        (lambda x: 2 if callable(x) else 3, "'callable'"),
        (lambda x: 2 if id(x.contiguous()) == id(x) else 3, "'id'"),
        (lambda x: 2 if x.__class__.__name__ == "Tensor" else 3, "'__class__'"),
    ],
)
def test_stand_ins_answer_no_question(question, reason, x):
    class Asks(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self[0](x)) * question(x)

    model = Asks(nn.Conv2d(4, 4, 1)).to(x.device)
    converted = kernels.convert(model)
    assert reason in converted.report.untraced[""]
    torch.testing.assert_close(converted(x), model(x))


def test_assertions_may_say_what_was_given(x):
    class Asserts(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            torch._assert(
                x.shape[1] == 4,
                f"expected 4 channels, got {x.shape[1]}",
            )
            return F.relu(self[0](x))

    model = Asserts(nn.Conv2d(4, 4, 1)).to(x.device)
    converted = kernels.convert(model)
    assert converted.report.fused
    torch.testing.assert_close(converted(x), model(x))
    with pytest.raises(AssertionError, match="expected 4 channels"):
        converted(x[:, :3])


@pytest.mark.parametrize("draw", [uniform, npr.rand], ids=["uniform", "rand"])
def test_numbers_of_numpy_are_drawn_at_each_call(draw, x):
    model = Stateful(None, lambda _: draw()).to(x.device)
    converted = kernels.convert(model)
    assert "draws random numbers" in converted.report.untraced[""]
    results = []
    for net in (model, converted, converted):
        npr.seed(0)
        results += [net(x), net(x)]
    torch.testing.assert_close(results[2:], results[:2] * 2)
