"""Code that changes values in place, does more than call layers, or makes lists: what a trace makes of it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from tests.kernels.test_conversion_safety import Model, assert_same

pytestmark = pytest.mark.usefixtures("triton_only")


@pytest.fixture
def x(device) -> Tensor:
    return torch.randn(2, 4, 6, 6, device=device)


def changes_an_alias(s, x):
    h = s.c(x)
    y = h
    h *= 2
    return F.relu(h + y)


def changes_a_view(s, x):
    h = s.b(x)
    h[:, 0] = 1
    v = h.transpose(2, 3)
    v[:, 1] += h[:, 2]
    return F.relu(h)


def changes_its_input(s, x):
    h = s.c(x)
    x += 1
    return F.relu(h) + F.relu(s.b(x))


@pytest.mark.parametrize("forward", [changes_an_alias, changes_a_view, changes_its_input])
def test_changes_in_place_stay_in_place(forward, x):
    converted = assert_same(forward, x)
    assert not converted.report.untraced
    ours, theirs = x.clone(), x.clone()
    converted(ours), forward(converted, theirs)
    assert torch.equal(ours, theirs)


def counts_calls(s, x):
    s.calls = getattr(s, "calls", 0) + 1
    return s.c(x) * s.calls


def keeps_a_list(s, x):
    seen = s.b.__dict__.setdefault("seen", [])
    seen.append(x.size(1))
    return F.relu(s.c(x)) * len(seen)


def asks_for_unknown_types(s, x):
    size = x.size()
    return F.relu(s.c(x * 2 if isinstance(size, tuple) else x))


def asks_for_a_gradient(s, x):
    return F.relu(s.c(x if x.grad is None else x * 2))


def swallows_errors(s, x):
    try:
        weight = float(s.c(x).sum())
    except Exception:
        weight = 0.0
    return s.c(x) * weight


def averages_weights(s, x):
    for q, k in zip(s.c.parameters(), s.d.parameters(), strict=True):
        k.data.mul_(0.9).add_(q.data, alpha=0.1)
    return F.relu(s.c(x)) + s.d(x)


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (counts_calls, "changes an attribute"),
        (keeps_a_list, "uses 'setdefault'"),
        (asks_for_unknown_types, "asks for the type"),
        (asks_for_a_gradient, "uses 'grad'"),
        (swallows_errors, "has try"),
        (averages_weights, "computes with tensors"),
    ],
)
def test_code_that_does_more_than_call_layers_is_kept(forward, reason, x):
    torch.manual_seed(0)
    model = Model(forward).to(x.device)
    converted = kernels.convert(model)
    assert reason in converted.report.untraced[""] and not hasattr(converted, "calls")
    for _ in range(3):
        torch.testing.assert_close(converted(x.clone()), model(x.clone()))


def test_lists_of_the_code_itself_grow_at_each_call(x):
    calls, defaults = [], []

    def closes_over(s, x):
        calls.append(1)
        return F.relu(s.c(x)) * len(calls)

    def has_a_default(s, x, calls=defaults):
        calls.append(1)
        return F.relu(s.c(x)) * len(calls)

    for forward, kept in ((closes_over, calls), (has_a_default, defaults)):
        converted = kernels.convert(Model(forward).to(x.device))
        assert "'append'" in converted.report.untraced[""]
        kept.clear()
        assert torch.equal(2 * converted(x), converted(x)) and len(kept) == 2


def test_types_are_not_guessed(x):
    """A layer may give a list, and an argument may be a number."""

    class Passes(nn.Module):
        def __init__(self):
            super().__init__()
            self.several, self.same, self.conv = Several(), nn.Identity(), nn.Conv2d(4, 4, 1)

        def forward(self, x, factor):
            parts = self.same(self.several(x))
            scaled = factor * 2
            x = self.conv(x * scaled if isinstance(scaled, Tensor) else x)
            return F.relu(sum(parts) + x if isinstance(parts, list) else x)

    class Several(nn.Module):
        def forward(self, x):
            return [x, x * 2] if x.size(0) > 1 else x

    model = Passes().to(x.device)
    converted = kernels.convert(model)
    for images in (x, x[:1]):
        for factor in (3, torch.tensor(3, device=x.device)):
            torch.testing.assert_close(converted(images, factor), model(images, factor))
    half = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), torch.jit.script(nn.ReLU())).to(x.device)
    assert kernels.convert(half).report.fused == {"0": "Conv2d + ReLU"}


class ListsLayers(nn.Module):
    """Calls its layers in a comprehension, which has a code object of its own before Python 3.12."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()) for _ in range(2))
        self.names = []

    def forward(self, x):
        return torch.cat(
            [layer(x) for layer in
             self.layers], 1
        )  # fmt: skip


class ListsNames(ListsLayers):
    def forward(self, x):
        x = (lambda y: y)(x)
        return sum(
            [layer(x) * len([self.names.append("x"),
             self.names]) * len(self.names) for layer in self.layers]
        )  # fmt: skip


class Generates(ListsLayers):
    def forward(self, x):
        x = (lambda y: y)(x)
        return self.add(layer(x) * len([self.names.append("x"), self.names]) * len(self.names) for layer in self.layers)

    def add(self, values):
        return sum(value for value in values)


def test_comprehensions_are_read(x):
    model = ListsLayers().to(x.device)
    converted = kernels.convert(model)
    assert not converted.report.untraced and len(converted.report.fused) == 2
    torch.testing.assert_close(converted(x), model(x))
    for names in (ListsNames(), Generates()):
        converted = kernels.convert(names.to(x.device))
        assert "uses 'append'" in converted.report.untraced[""] and not converted.names
        for _ in range(2):
            torch.testing.assert_close(converted(x), names(x))
