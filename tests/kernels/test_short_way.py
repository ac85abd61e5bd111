"""The short way to the operators, past torch's dispatcher: the same results, and no way around whoever listens."""

import contextlib
import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from kernels import backend, functional, layers

ops = pytest.importorskip("kernels.ops", reason="triton is not installed")

from tests.kernels.operator_calls import TAP, calls  # noqa: E402

CALLS = [pytest.param(call, id=call.name) for call in calls()]
CONVOLUTION = CALLS[0].values[0]


@pytest.fixture
def dispatched(monkeypatch) -> list[str]:
    """The list that fills with the names of operators that are called by the dispatcher."""
    names: list[str] = []
    for name in ops.__all__:
        operator = getattr(ops, name)

        def note(*arguments: Any, op: Any = operator.op, name: str = name) -> Any:
            names.append(name)
            return op(*arguments)

        monkeypatch.setattr(operator, "op", note)
    return names


def as_tuple(outputs: Any) -> tuple[Tensor | None, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def assert_equal(ours: Any, theirs: Any) -> None:
    for a, b in zip(as_tuple(ours), as_tuple(theirs), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()
            assert a.requires_grad == b.requires_grad and a.is_inference() == b.is_inference()
            assert a._is_view() == b._is_view() and torch.equal(a.detach(), b.detach())


def test_every_operator_is_called():
    assert {call.values[0].name for call in CALLS} == set(ops.__all__)


MODES = {
    "grad": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("call", CALLS)
def test_results_are_the_dispatchers(call, mode, device, triton_only, dispatched):
    results = []
    for way in (call.by_operator, call.by_dispatcher):
        _, tensors = call.with_leaves(device)
        with MODES[mode]():
            results.append((*as_tuple(way(*tensors)), *tensors))
        assert bool(dispatched) == (way == call.by_dispatcher and mode != "inference")  # then below autograd, too
    assert_equal(*results)
    assert results[0][0].requires_grad == (mode not in ("no_grad", "inference"))


@pytest.mark.parametrize("call", CALLS)
def test_gradients_are_the_dispatchers(call, device, triton_only, dispatched):
    """First and second ones, with the graph kept; they are found on the short way, too, where the output was."""
    results = []
    for way in (call.by_operator, call.by_dispatcher):
        leaves, tensors = call.with_leaves(device)
        outputs = [y for y in as_tuple(way(*tensors)) if y.requires_grad]
        weights = [torch.linspace(-1, 1, y.numel(), device=device).view(y.shape) for y in outputs]
        total = sum((y * w).sum() for y, w in zip(outputs, weights, strict=True))
        plain = torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)
        first = torch.autograd.grad(total, leaves, create_graph=True, allow_unused=True)
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(plain, first, strict=True))
        penalty = sum(g.square().sum() for g in first if g is not None and g.requires_grad)
        second = ()
        if isinstance(penalty, Tensor):
            second = torch.autograd.grad(penalty, leaves, allow_unused=True)
        results.append((*plain, *first, *second))
        assert not dispatched or way == call.by_dispatcher
    assert_equal(*results)


@pytest.mark.parametrize("name", ["convolution_weight_gradient", "batch_norm_gradient", "convolution_max"])
def test_an_output_that_nobody_uses_has_no_gradient(name, device, triton_only):
    (call,) = (c.values[0] for c in CALLS if c.values[0].name == name)
    for number in range(3):
        results = []
        for way in (call.by_operator, call.by_dispatcher):
            leaves, tensors = call.with_leaves(device)
            outputs = [y for y in as_tuple(way(*tensors)) if y.requires_grad]
            y = outputs[number % len(outputs)]
            results.append(torch.autograd.grad(y.sum(), leaves, allow_unused=True))
        assert_equal(*results)


def test_of_unused_outputs_alone_nothing_is_computed(device, triton_only):
    """A node whose gradients are all None launches nothing, and hands None on."""
    leaves, tensors = CONVOLUTION.with_leaves(device)
    y = CONVOLUTION.by_operator(*tensors)

    class Unused(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y.clone()

        @staticmethod
        def backward(ctx, dy):
            return None

    before = backend.launch_count()
    assert torch.autograd.grad(Unused.apply(y).sum(), leaves, allow_unused=True) == (None,) * len(leaves)
    assert backend.launch_count() == before


class Watch(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        return function(*arguments, **(keywords or {}))


class WatchFunctions(TorchFunctionMode):
    def __torch_function__(self, function, types, arguments=(), keywords=None):
        return function(*arguments, **(keywords or {}))


class Subclass(Tensor):
    pass


WEIGHT = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))


def draw(device: str, requires_grad: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, 4, 4, generator=generator).to(device).requires_grad_(requires_grad)


def convolve(x: Tensor, weight: Tensor | None = None) -> Tensor:
    return ops.convolution(x, WEIGHT.to(x.device) if weight is None else weight, None, None, TAP, False)


LISTENERS: dict[str, Callable[[Tensor], Any]] = {
    "dispatch mode": lambda x: within(Watch(), x),
    "flop counter": lambda x: within(FlopCounterMode(display=False), x),
    "function mode": lambda x: within(WatchFunctions(), x),
    "profiler": lambda x: within(torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]), x),
    "autograd profiler": lambda x: within(torch.autograd.profiler.profile(use_cpu=True), x),
    "fake mode": lambda x: in_fake_mode(x),
    "make_fx": lambda x: make_fx(lambda x: convolve(x))(x)(x),
    "jit.trace": lambda x: torch.jit.trace(convolve, (x,), check_trace=False)(x),
    "compile": lambda x: torch.compile(convolve, fullgraph=True, backend="aot_eager")(x),
    "functionalize": lambda x: torch.func.functionalize(convolve)(x),
    "subclass": lambda x: convolve(x.as_subclass(Subclass)),
    "subclass of weights": lambda x: convolve(x, WEIGHT.to(x.device).as_subclass(Subclass)),
    "negated": lambda x: convolve(torch._neg_view(-x)),
    "negated weight": lambda x: convolve(x, torch._neg_view(-WEIGHT.to(x.device))),
    "meta": lambda x: convolve(x.to("meta")),
}


def within(listener: Any, x: Tensor) -> Tensor:
    with listener:
        return convolve(x)


def in_fake_mode(x: Tensor) -> Tensor:
    with FakeTensorMode() as mode:
        y = convolve(mode.from_tensor(x), mode.from_tensor(WEIGHT.to(x.device)))
    assert type(y).__name__ == "FakeTensor"
    return y


@pytest.mark.parametrize("requires_grad", [False, True], ids=["no-grad", "grad"])
@pytest.mark.parametrize("name", LISTENERS)
def test_whoever_listens_sees_the_operator(name, requires_grad, device, dispatched):
    x = draw(device, requires_grad)
    expected = convolve(x)
    assert not dispatched
    y = LISTENERS[name](x)
    assert dispatched and set(dispatched) == {"convolution"}
    assert y.shape == expected.shape and (name == "meta" or y.requires_grad == requires_grad)
    if name not in ("meta", "fake mode"):
        assert torch.equal(y.detach(), expected.detach())
    dispatched.clear()
    assert torch.equal(convolve(x), expected) and not dispatched


@pytest.mark.parametrize(
    "transform",
    [
        lambda f, x: torch.func.vmap(f)(x[None]),
        lambda f, x: torch.func.grad(lambda x: f(x).sum())(x),
        lambda f, x: torch.func.vjp(f, x),
        lambda f, x: torch.func.jvp(f, (x,), (x,)),
    ],
    ids=["vmap", "grad", "vjp", "jvp"],
)
def test_transforms_are_answered_as_before(transform, device, dispatched):
    """By torch's own refusal, or by what it makes of the operator."""
    x, weight = draw(device), WEIGHT.to(device)
    outcomes = []
    for function in (convolve, lambda x: torch.ops.convnets.convolution(x, weight, None, None, list(TAP.flat), False)):
        try:
            outcomes.append(transform(function, x))
        except RuntimeError as error:
            outcomes.append(str(error))
    assert dispatched and type(outcomes[0]) is type(outcomes[1])
    if isinstance(outcomes[0], str):
        assert outcomes[0] == outcomes[1]


def test_the_handler_of_a_mode_is_below_autograd(device):
    """Autograd records nothing that it computes, by torch's own operators or ours."""
    recorded = []

    class Handler(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            recorded.append(convolve(x).requires_grad)
            return function(*arguments, **(keywords or {}))

    x = draw(device, True)
    with Handler():
        convolve(draw(device))
    assert recorded and not any(recorded) and convolve(x).requires_grad


def test_profilers_see_the_gradients(device):
    x = draw(device, True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        convolve(x).sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert {"convnets::convolution", "convnets::convolution_transpose"} <= names


def network(device: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        layers.Conv2d(4, 6, 3, padding=1, activation="relu"),
        layers.BatchNorm2d(6, activation="relu"),
        layers.MaxPool2d(2),
        nn.Flatten(),
        layers.Linear(24, 3),
    ).to(device)


def gradients(net: nn.Module, y: Tensor) -> list[Tensor]:
    y.square().sum().backward()
    return [p.grad for p in net.parameters()]


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["tensors", "reentrant"])
def test_checkpoints_give_the_same_gradients(use_reentrant, device, triton_only):
    plain, saving = network(device).eval(), network(device).eval()
    x = draw(device, True)
    expected = gradients(plain, plain(x))
    (dx,), x.grad = (x.grad,), None
    assert_equal(tuple(gradients(saving, checkpoint(saving, x, use_reentrant=use_reentrant))), tuple(expected))
    assert torch.equal(x.grad, dx)


@pytest.mark.parametrize("call", CALLS)
def test_saved_tensors_pass_through_hooks(call, device, triton_only):
    packed: list[list[torch.Size]] = []
    results = []
    for way in (call.by_operator, call.by_dispatcher):
        leaves, tensors = call.with_leaves(device)
        packed.append([])
        pack = lambda t, sizes=packed[-1]: sizes.append(t.shape) or t.clone()  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            outputs = [y for y in as_tuple(way(*tensors)) if y.requires_grad]
        results.append(torch.autograd.grad(sum(y.sum() for y in outputs), leaves, allow_unused=True))
    assert packed[0] == packed[1] and packed[0] if not call.name.startswith("average") else packed == [[], []]
    assert_equal(*results)


@pytest.mark.parametrize("call", [c for c in CALLS if "average" not in c.id and "max_pool" not in c.id])
def test_changing_what_is_saved_is_refused(call, device, triton_only):
    leaves, tensors = call.with_leaves(device)
    outputs = [y for y in as_tuple(call.by_operator(*tensors)) if y.requires_grad]
    with torch.no_grad():
        leaves[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(sum(y.sum() for y in outputs), leaves, allow_unused=True)


def test_tracking_running_statistics_counts_as_a_change(device, triton_only):
    x, mean, var = draw(device), torch.zeros(4, device=device), torch.ones(4, device=device)
    versions = mean._version, var._version
    kept = torch.ones(4, device=device, requires_grad=True) * var
    functional.batch_norm(x, mean, var, training=True)
    assert mean._version > versions[0] and var._version > versions[1]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.sum().backward()


def test_anomalies_are_found(device, triton_only):
    x = torch.full((1, 4, 4, 4), float("nan"), device=device)
    weight = WEIGHT.to(device).clone().requires_grad_()
    with (
        pytest.warns(UserWarning, match="Anomaly Detection|Error detected in"),
        pytest.raises(RuntimeError, match="convolution_gradientBackward' returned nan values"),
        torch.autograd.detect_anomaly(),
    ):
        convolve(x, weight).sum().backward()


def test_inference_tensors_cannot_be_saved(device, triton_only):
    with torch.inference_mode():
        x = draw(device)
    weight = WEIGHT.to(device).clone().requires_grad_()
    for way in (convolve, lambda x, w: torch.ops.convnets.convolution(x, w, None, None, list(TAP.flat), False)):
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
            way(x, weight)


def test_networks_are_copied_between_steps(device, triton_only):
    net = network(device)
    gradients(net, net(draw(device)))
    net.zero_grad()
    twin = copy.deepcopy(net)
    assert_equal(*(tuple(gradients(n, n(draw(device)))) for n in (net, twin)))
    assert_equal(tuple(net.buffers()), tuple(twin.buffers()))


def test_threads_differentiate_at_once(device, triton_only):
    weight = WEIGHT.to(device).clone().requires_grad_()
    inputs = [draw(device) * n for n in range(1, 9)]
    expected = [torch.autograd.grad(convolve(x, weight).square().sum(), weight)[0] for x in inputs]
    with ThreadPoolExecutor(8) as executor:
        found = list(executor.map(lambda x: torch.autograd.grad(convolve(x, weight).square().sum(), weight)[0], inputs))
    assert_equal(tuple(found), tuple(expected))
    graphs = [convolve(x, weight).square().sum() for x in inputs]
    with ThreadPoolExecutor(8) as executor:
        found = list(executor.map(lambda y: torch.autograd.grad(y, weight)[0], graphs))
    assert_equal(tuple(found), tuple(expected))
