"""What a graph would not do as the model's own code does it is left alone: each case was wrong once, or nearly."""

import gc
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import kernels
from kernels import layers
from tests.determinism import nondeterministic

pytestmark = pytest.mark.usefixtures("triton_only")


class Model(nn.Module):
    """Two convolutions, a batch norm and a buffer, for a forward that a test gives."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.c, self.d, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.register_buffer("n", torch.tensor([1.0, 2.0, 3.0, 4.0]))
        self._run = forward

    def forward(self, x):
        return self._run(self, x)


@pytest.fixture
def x(device) -> Tensor:
    return torch.randn(2, 4, 6, 6, device=device)


def assert_same(forward, x: Tensor) -> nn.Module:
    torch.manual_seed(0)
    model = Model(forward).to(x.device)
    converted = kernels.convert(model)
    torch.testing.assert_close(converted(x.clone()), model(x.clone()))
    return converted


def test_what_is_called_when_garbage_is_collected_is_no_part_of_the_trace(x):
    seen = []

    def note(phase, info):
        with torch.no_grad():
            seen.append(phase)

    threshold = gc.get_threshold()
    gc.callbacks.append(note)
    gc.set_threshold(1)
    try:
        converted = assert_same(lambda s, x: s.d(s.c(x).relu()), x)
    finally:
        gc.callbacks.remove(note)
        gc.set_threshold(*threshold)
    assert seen and converted.report.fused


def no_grad(s, x):
    with torch.no_grad():
        x = s.c(x)
    return s.d(x)


def no_autocast(s, x):
    with torch.autocast(x.device.type if isinstance(x, Tensor) else "cpu", enabled=False):
        return s.c(x)


def counts(s, x):
    s.n.add_(1)
    return s.c(x)


def drops_layers(s, x):
    return s.c(x) if random.random() < 2 else x


@torch.no_grad()
def is_decorated(s, x):
    return F.relu(s.c(x))


def checkpoints(s, x):
    return checkpoint(s.c, x, use_reentrant=False)


class Doubled(torch.autograd.Function):
    """Has a derivative of 2 and no effect."""

    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, dy):
        return dy * 2


double = Doubled.apply


def has_a_derivative_of_its_own(s, x):
    return F.relu(s.c(double(x)))


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (no_grad, "a context"),
        (no_autocast, "torch.fx cannot trace it"),
        (is_decorated, "a context"),
        (checkpoints, "a context, of torch.utils.checkpoint"),
        (has_a_derivative_of_its_own, "a context"),
        (lambda s, x: s.c(x) * torch.arange(6).to(x.device), "computes with tensors that do not depend on its input"),
        (lambda s, x: F.relu(s.c(x)) * s.c.weight.detach().requires_grad_().sum(), "'requires_grad_'"),
        (drops_layers, "'random'"),
    ],
)
def test_keeps_its_own_code(forward, reason, x):
    converted = assert_same(forward, x)
    assert reason in converted.report.untraced[""] and type(converted.c) is layers.Conv2d


def test_gradients_of_code_that_is_kept_are_the_models(x):
    for forward in (no_grad, checkpoints, has_a_derivative_of_its_own):
        torch.manual_seed(0)
        model = Model(forward).to(x.device)
        gradients = []
        for net in (model, kernels.convert(model)):
            leaf = x.clone().requires_grad_()
            gradients.append(torch.autograd.grad(net(leaf).square().sum(), [leaf, net.c.weight], allow_unused=True))
        torch.testing.assert_close(*gradients)


def uses_a_buffer(s, x):
    return F.relu(s.c(x - s.n.view(1, -1, 1, 1)))


def counts_and_uses(s, x):
    s.n.add_(1)
    return F.relu(s.c(x)) * s.n.view(1, -1, 1, 1)


@pytest.mark.parametrize("forward", [counts, uses_a_buffer, counts_and_uses])
def test_buffers_are_read_and_changed_at_each_call(forward, x):
    torch.manual_seed(0)
    model = Model(forward).to(x.device)
    converted = kernels.convert(model)
    assert not converted.report.untraced
    for _ in range(3):
        torch.testing.assert_close(converted(x), model(x))
        assert torch.equal(converted.n, model.n)


def test_an_argument_with_a_default_may_be_given(x):
    class Scaled(nn.Sequential):
        def forward(self, x, scale=None):
            y = super().forward(x)
            return y if scale is None else y * scale

    model = Scaled(nn.Conv2d(4, 4, 1), nn.ReLU()).to(x.device)
    converted = kernels.convert(model)
    assert converted.report.fused == {"0": "Conv2d + ReLU"}
    torch.testing.assert_close(converted(x), model(x))
    torch.testing.assert_close(converted(x, 2.0), model(x, 2.0))
    torch.testing.assert_close(converted(scale=2.0, x=x), model(x, 2.0))
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        converted()
    with pytest.raises(TypeError, match="unexpected keyword argument 'factor'"):
        converted(x, factor=2.0)


def test_its_own_idea_of_training_is_kept(x):
    class Frozen(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[1].eval()
            return self

    model = Frozen(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()).to(x.device)
    converted = kernels.convert(model).train()
    assert not converted[1].training and converted.report.fused == {"1": "BatchNorm2d + ReLU"}
    torch.testing.assert_close(converted(x), model.train()(x))
    assert torch.equal(converted[1].running_mean, torch.zeros(4, device=x.device))
    model = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout(0.9)), nn.ReLU()).to(x.device)
    model[0].eval()
    converted = kernels.convert(model)
    assert torch.equal(converted(x), converted(x))
    assert not torch.equal(converted.train()(x), converted(x))


def slice_is_cleared(s, x):
    h = s.b(x)
    x[:, :1].mul_(0)
    return F.relu(h + x)


def other_addend_is_changed(s, x):
    y = x.clone()
    z = y.add_(s.c(x))
    return F.relu(z) + y


@pytest.mark.parametrize(
    "forward",
    [
        lambda s, x: F.relu(torch.add(s.c(x), x, alpha=0.5)),
        slice_is_cleared,
        other_addend_is_changed,
        lambda s, x: F.relu(s.c(F.adaptive_avg_pool2d(x, 1)) + x),
        lambda s, x: F.relu(s.c(x) + x.size(1)),
        lambda s, x: F.relu(s.c(x) + s.d(x)[:, :, :1]),
        lambda s, x: F.linear(s.c(x), torch.ones_like(x[0, 0, 0])),
        lambda s, x: F.max_pool2d(s.c(x), 2, []),
        lambda s, x: F.max_pool2d(F.relu(s.c(x)), 1, 2),
    ],
)
def test_gives_the_models_result(forward, x):
    assert_same(forward, x)


def test_parts_still_do_by_themselves_what_they_did(x):
    block = Model(lambda s, x: F.relu(s.b(s.c(x)) + x))
    model = nn.Sequential(block, nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.MaxPool2d(2))).to(x.device)
    converted = kernels.convert(model)
    assert sorted(converted.report.fused.values()) == [
        "BatchNorm2d + residual + ReLU",
        "Conv2d + ReLU + max pooling",
    ]
    torch.testing.assert_close(converted(x), model(x))
    for ours, theirs in zip(converted, model, strict=True):
        torch.testing.assert_close(ours(x), theirs(x))


def test_stays_what_it_was(x):
    class Tied(nn.Sequential):
        def predict(self, x):
            return self(x).argmax(1)

    conv = nn.Conv2d(4, 4, 1)
    model = Tied(conv, nn.ReLU(), conv).to(x.device)
    model.name = "tied"
    converted = kernels.convert(model)
    assert isinstance(converted, Tied) and converted.name == "tied" and converted[0] is converted[2]
    assert list(converted.state_dict()) == list(model.state_dict())
    assert torch.equal(converted.predict(x), model.predict(x))
    again = kernels.convert(converted)
    assert again is not converted and torch.equal(again(x), converted(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sums_are_promoted_as_torch_promotes_them(dtype, x):
    for forward in (lambda s, x: F.relu(s.b(s.c(x)) + x), lambda s, x: F.relu(s.c(x) + x)):
        model = Model(forward).to(x.device)
        with torch.autocast(x.device.type, dtype):
            assert kernels.convert(model)(x).dtype == model(x).dtype == torch.float32


def test_only_what_can_be_folded_is(x):
    own = nn.Sequential(layers.Conv2d(4, 4, 1, activation="relu"), nn.BatchNorm2d(4)).to(x.device)
    training = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).to(x.device)
    shared = Model(lambda s, x: s.b(s.c(x)) + F.conv2d(x, s.c.weight)).to(x.device)
    for model in (own.eval(), training.eval(), shared.eval()):
        for norm in filter(lambda layer: isinstance(layer, nn.BatchNorm2d), model.modules()):
            nn.init.normal_(norm.weight)
            norm.running_mean.normal_()
    training[1].training = True
    for model in (own, training, shared):
        torch.testing.assert_close(kernels.convert(model, fold_batch_norm=True)(x), model(x))


def test_a_table_can_be_loaded(x):
    eye = torch.eye(4).bool()
    one, other = (layers.TableConv2d(eye[rows], 1, bias=False).to(x.device) for rows in ([0, 1], [2, 3]))
    assert not torch.equal(one(x), other(x))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x), other(x))


def test_torch_func_is_refused_rather_than_failing_inside(x):
    weight = torch.randn(4, 4, 1, 1, device=x.device)
    call = torch.func.grad(lambda x: kernels.functional.conv2d(x, weight).sum())
    kernels.functional.conv2d(x, weight)
    with pytest.raises(RuntimeError, match="torch.func's transforms need the torch backend"):
        call(x)
    with kernels.use_backend("torch"):
        assert call(x).shape == x.shape


def test_tiles_take_part_in_autocast_and_may_be_empty(x):
    weight = torch.randn(2, 2, 3, 4, 3, 3, device=x.device)
    with torch.autocast(x.device.type, torch.bfloat16):
        assert kernels.functional.tiled_conv2d(x.bfloat16(), weight).dtype == torch.bfloat16
    for choice in ("triton", "torch"):
        with kernels.use_backend(choice):
            assert kernels.functional.tiled_conv2d(x[:0], weight).shape == (0, 3, 4, 4)
            assert kernels.functional.tiled_conv2d(x[:, :0], weight[:, :, :, :0]).eq(0).all()


def test_a_slice_of_a_converted_sequential_is_one(x):
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.MaxPool2d([2, 2])).to(x.device)
    torch.testing.assert_close(kernels.convert(model)[:2](x), model[:2](x))


def test_what_follows_a_fused_pooling_may_change_it_in_place(x):
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Hardtanh(inplace=True)).to(x.device)
    converted = kernels.convert(model)
    converted(x).sum().backward()
    with nondeterministic():
        model(x).sum().backward()
    torch.testing.assert_close(converted[0].weight.grad, model[0].weight.grad)


def test_a_part_that_stays_in_training_is_kept(x):
    class Always(nn.Dropout):
        def train(self, mode=True):
            return super().train(True)

    converted = kernels.convert(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), Always(0.9)).to(x.device)).eval()
    assert converted(x + 9).eq(0).float().mean() > 0.7
