"""Batch normalisation: values, gradients and running statistics as exact as torch's, in every layout and dtype."""

import copy
import pickle
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from kernels import backend, functional, layers, reference, tuning
from kernels.tuning import Tile, use_tile
from tests.closeness import assert_as_exact_as_torch
from tests.kernels.problems import lay_out

norm = pytest.importorskip("kernels.norm", reason="triton is not installed")
ops = pytest.importorskip("kernels.ops", reason="triton is not installed")

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MODES = pytest.mark.parametrize("training", [True, False], ids=["training", "running"])
MOMENTUM, EPS = 0.3, 1e-3
GIVEN = ("weight", "bias", "residual")


@dataclass(frozen=True)
class Problem:
    shape: tuple[int, ...]
    layout: str = "contiguous"
    given: tuple[str, ...] = GIVEN
    relu: bool = True
    mean: float = 0.5
    spread: float = 2.0

    def tensors(self, device: str) -> dict[str, Tensor | None]:
        """float64 input, residual and gradient of the output in the problem's layout, and all [C]."""
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(device)  # noqa: E731
        wide = {name: lay_out(draw(*self.shape), self.layout) for name in ("input", "residual", "dy")}
        narrow = {name: draw(self.shape[1]) for name in ("weight", "bias", "running_mean", "running_var")}
        tensors = wide | narrow
        tensors["input"] = lay_out(self.mean + self.spread * tensors["input"], self.layout)
        tensors["running_mean"] += self.mean
        tensors["running_var"] = self.spread**2 * (0.5 + tensors["running_var"].abs())
        return {name: None if name in GIVEN and name not in self.given else t for name, t in tensors.items()}


PROBLEMS = [
    pytest.param(Problem((3, 5, 7, 6)), id="no-power-of-two"),
    pytest.param(Problem((3, 5, 7, 6), relu=False), id="no-relu"),
    pytest.param(Problem((3, 5, 7, 6), given=("weight", "bias")), id="no-residual"),
    pytest.param(Problem((3, 5, 7, 6), given=("bias",), relu=False), id="no-weight"),
    pytest.param(Problem((3, 5, 7, 6), given=("weight",)), id="no-bias"),
    pytest.param(Problem((3, 5, 7, 6), given=(), relu=False), id="input-only"),
    pytest.param(Problem((1, 5, 4, 3)), id="batch-1"),
    pytest.param(Problem((2, 3)), id="two-values"),
    pytest.param(Problem((33, 7)), id="no-grid"),
    pytest.param(Problem((5, 1, 3, 3)), id="one-channel"),
    pytest.param(Problem((2, 70, 3, 2)), id="many-channels"),
    pytest.param(Problem((4, 6, 11)), id="1-d"),
    pytest.param(Problem((2, 4, 3, 5, 4)), id="3-d"),
    pytest.param(Problem((3, 5, 7, 6), layout="channels_last"), id="channels-last"),
    pytest.param(Problem((2, 4, 3, 5, 4), layout="channels_last"), id="3-d-channels-last"),
    pytest.param(Problem((3, 5, 7, 6), layout="strided"), id="non-contiguous"),
    pytest.param(Problem((3, 5, 7, 6), layout="expanded"), id="expanded"),
    pytest.param(Problem((4, 5, 16, 16), mean=1000.0, spread=1.0), id="mean-over-spread"),
    pytest.param(Problem((4, 5, 9, 9), mean=0.0, spread=1e-3), id="spread-under-eps"),
]
FEW = [p for p in PROBLEMS if p.id in ("no-power-of-two", "no-weight", "1-d", "channels-last", "expanded")]
SMALL = [pytest.param(Tile(16, 2, 1, splits=3), id="3-splits"), pytest.param(Tile(16, 4, 1, splits=99), id="99-splits")]


def as_torch(t: dict[str, Tensor | None], training: bool, relu: bool) -> Tensor:
    y = F.batch_norm(
        t["input"], t["running_mean"], t["running_var"], t["weight"], t["bias"], training, MOMENTUM, EPS
    )  # fmt: skip
    y = y if t["residual"] is None else y + t["residual"]
    return y.relu() if relu else y


def as_ours(t: dict[str, Tensor | None], training: bool, relu: bool) -> Tensor:
    return functional.batch_norm(
        t["input"], t["running_mean"], t["running_var"], t["weight"], t["bias"], training, MOMENTUM, EPS,
        residual=t["residual"], activation="relu" if relu else None,
    )  # fmt: skip


def run(function, tensors: dict[str, Tensor], training: bool, relu: bool, mask: Tensor | None = None) -> dict:
    """Output, gradients and running statistics; the gradient of the output is zero where `mask` <= 0, if given.

    With `mask` the activation is left to it: two outputs may lie on different sides of 0, by a rounding.
    """
    t = {name: None if v is None else v.clone() for name, v in tensors.items() if "running" in name}
    t |= {name: v if v is None else v.detach() for name, v in tensors.items() if name not in t}
    wanted = {name: t[name].requires_grad_() for name in ("input", *GIVEN) if t[name] is not None}
    y = function(t, training, relu and mask is None)
    gradients = torch.autograd.grad(y, list(wanted.values()), reference.masked(t["dy"], mask))
    result = {"d" + name: gradient for name, gradient in zip(wanted, gradients, strict=True)}
    return result | {"y": y.detach()} | {name: t[name] for name in t if "running" in name}


def truth_of(t: dict[str, Tensor | None], training: bool, relu: bool, mask: Tensor | None) -> dict:
    """What `run` gives, of float64 tensors by the twin: torch's own adds one by one, with an error beyond float64's."""
    inputs = [t[name] for name in ("input", *GIVEN)]
    used = t["running_mean"], t["running_var"]
    y, *batch = reference.batch_norm(*inputs, *((None, None) if training else used), EPS, relu)
    running, statistics = used, batch if training else used
    if training:
        positions = t["input"].numel() // t["input"].shape[1]
        unbiased = (batch[0], batch[1] * (positions / (positions - 1)))
        running = [(1 - MOMENTUM) * old + MOMENTUM * new for old, new in zip(used, unbiased, strict=True)]
    gradients = reference.batch_norm_gradient(
        t["dy"], t["input"], t["weight"], mask, *statistics, EPS, training, True, True
    )
    names = ("y", "dinput", "dweight", "dbias", "dresidual", "running_mean", "running_var")
    return dict(zip(names, (y, *gradients, *running), strict=True))


def magnitudes(t: dict[str, Tensor], truth: dict[str, Tensor], training: bool) -> dict[str, Tensor]:
    """Every result's sum with the absolute value of each term, from float64 tensors, dy masked.

    A normalised value is x's term less the mean's. Its product with dy is as uncertain as the one factor's terms times
    the other factor's value, and the reverse: the latter is that of dy alone, which is given. The variance is a sum of
    squares of differences, each rounded after the subtraction, so nothing cancels in it.
    """
    x, dy = t["input"], t["dy"].abs()
    axes = [axis for axis in range(x.dim()) if axis != 1]
    wide = lambda v: v.view(-1, *[1] * (x.dim() - 2))  # noqa: E731
    mean, var = (x.mean(axes), x.var(axes, correction=0)) if training else (t["running_mean"], t["running_var"])
    mean_terms = x.abs().mean(axes) if training else mean.abs()
    rstd = wide((var + EPS).rsqrt())
    scale = rstd if t["weight"] is None else rstd * wide(t["weight"]).abs()
    xhat, terms = ((x - wide(mean)) * rstd).abs(), (x.abs() + wide(mean_terms)) * rstd
    y, dx = (x.abs() + wide(mean_terms)) * scale, dy
    for name in ("bias", "residual"):
        if t[name] is not None:
            y = y + (t[name] if name == "residual" else wide(t[name])).abs()
    if training:
        average = lambda v: wide(v.mean(axes))  # noqa: E731
        dx = dy + average(dy) + xhat * average(dy * terms) + terms * average(dy * xhat)
    running_mean = MOMENTUM * mean_terms + (1 - MOMENTUM) * t["running_mean"].abs()
    return {
        "y": y, "dinput": dx * scale, "dweight": (dy * terms).sum(axes), "dbias": dy.sum(axes), "dresidual": dy,
        "running_mean": running_mean, "running_var": truth["running_var"],
    }  # fmt: skip


def check(problem: Problem, dtype: torch.dtype, training: bool, device: str, parameters: torch.dtype | None = None):
    wide = ("input", "residual", "dy")
    tensors = {
        name: None if v is None else lay_out(v.to(dtype), problem.layout) if name in wide else v.to(parameters or dtype)
        for name, v in problem.tensors(device).items()
    }
    double = {name: None if v is None else v.double() for name, v in tensors.items()}
    ours = run(as_ours, tensors, training, problem.relu)
    mask = ours["y"] if problem.relu else None
    truth = truth_of(double, training, problem.relu, mask)
    torchs = run(as_torch, tensors, training, problem.relu, mask)
    if problem.relu:
        torchs["y"] = torchs["y"].relu()
    magnitude = magnitudes(double | {"dy": reference.masked(double["dy"], mask)}, truth, training)
    for name, result in ours.items():
        assert_as_exact_as_torch(result, torchs[name], truth[name], magnitude[name])
    kept = torch.channels_last if problem.layout == "channels_last" and len(problem.shape) == 4 else None
    if kept:
        assert ours["y"].is_contiguous(memory_format=kept) and ours["dinput"].is_contiguous(memory_format=kept)


@MODES
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_is_as_exact_as_torch(problem, dtype, training, device, triton_only):
    check(problem, dtype, training, device)


@MODES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("problem", FEW)
def test_half_input_takes_float32_parameters(problem, dtype, training, device, triton_only):
    check(problem, dtype, training, device, torch.float32)


@MODES
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tile", SMALL)
@pytest.mark.parametrize(
    "problem", [p for p in PROBLEMS if p.id in ("no-power-of-two", "expanded", "mean-over-spread")]
)
def test_is_as_exact_on_many_small_blocks(problem, tile, dtype, training, device, triton_only):
    with use_tile(tile):
        check(problem, dtype, training, device)


@MODES
@pytest.mark.parametrize("problem", FEW)
def test_twin_agrees(problem, training, device, triton_only):
    t = problem.tensors(device)
    statistics = (None, None) if training else (t["running_mean"], t["running_var"])
    arguments = (t["input"], t["weight"], t["bias"], t["residual"], *statistics, EPS, problem.relu)
    y, *batch = expected = reference.batch_norm(*arguments)
    torch.testing.assert_close(norm.batch_norm(*arguments), expected)
    mask, statistics = y if problem.relu else None, batch if training else statistics
    arguments = (t["dy"], t["input"], t["weight"], mask, *statistics, EPS, training, True, True)
    torch.testing.assert_close(norm.batch_norm_gradient(*arguments), reference.batch_norm_gradient(*arguments))


@MODES
def test_parameters_need_not_be_contiguous(training, device, triton_only):
    """Not in the problems, since `run` clones what is updated in place."""
    x = torch.randn(3, 4, 5, device=device)
    columns = torch.rand(4, 4, device=device) + 0.5
    expected = columns.clone()
    y = functional.batch_norm(x, *columns.unbind(1), training=training)
    torch.testing.assert_close(y, F.batch_norm(x, *expected.unbind(1), training=training))
    torch.testing.assert_close(columns, expected)
    weight = columns[:1, 0].expand(4).requires_grad_()
    (dw,) = torch.autograd.grad(functional.batch_norm(x, None, None, weight, training=True).square().sum(), weight)
    (truth,) = torch.autograd.grad(F.batch_norm(x, None, None, weight, training=True).square().sum(), weight)
    torch.testing.assert_close(dw, truth)


@MODES
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_nan_spreads_as_in_torch(value, training, device, triton_only):
    t = Problem((3, 5, 4, 4), given=("weight", "bias")).tensors(device)
    t["input"][1, 2, 3, 0] = t["input"][0, 4, 0, 0] = value
    ours, torchs = (run(function, t, training, True) for function in (as_ours, as_torch))
    for name in ("y", "dinput", "dweight", "dbias"):
        torch.testing.assert_close(ours[name], torchs[name], equal_nan=True)


def test_launches_no_more_than_it_must(device, triton_only):
    def launches(run) -> int:
        before = backend.launch_count()
        run()
        return backend.launch_count() - before

    layer = layers.BatchNorm2d(4, activation="relu").to(device)
    x = torch.randn(2, 4, 3, 3, device=device, requires_grad=True)
    for training, forward, backward in ((True, 2, 2), (False, 1, 2)):
        y = []
        assert launches(lambda: y.append(layer.train(training)(x, x))) == forward  # noqa: B023
        assert launches(lambda: y[0].sum().backward()) == backward  # noqa: B023
    y = layer.requires_grad_(False)(x)
    assert launches(lambda: y.sum().backward()) == 1


@MODES
def test_is_bitwise_repeatable(training, device, triton_only):
    t = Problem((3, 5, 7, 6)).tensors(device)
    with use_tile(Tile(16, 2, 1, splits=3)):
        first, second = (run(as_ours, t, training, True) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@MODES
@pytest.mark.parametrize("problem", FEW)
def test_opcheck(problem, training, device, triton_only):
    t = {name: None if v is None else v.float() for name, v in problem.tensors(device).items()}
    inputs = [t[name] for name in ("input", *GIVEN)]
    statistics = (None, None) if training else (t["running_mean"], t["running_var"])
    y, *batch = ops.batch_norm(*inputs, *statistics, EPS, problem.relu)
    inputs = [None if v is None else v.clone().requires_grad_() for v in inputs]
    torch.library.opcheck(ops.batch_norm, (*inputs, *statistics, EPS, problem.relu))
    statistics = batch if training else statistics
    for parameters, residual in ((True, True), (False, False)):
        arguments = (t["dy"].clone().requires_grad_(), *inputs[:2], y if problem.relu else None, *statistics, EPS)
        torch.library.opcheck(ops.batch_norm_gradient, (*arguments, training, parameters, residual))


@MODES
@pytest.mark.parametrize("relu", [False, True], ids=["linear", "relu"])
@pytest.mark.parametrize("given", [GIVEN, ("bias",), ()], ids=["all", "bias", "input-only"])
def test_gradcheck_and_gradgradcheck(given, relu, training, device, triton_only):
    t = Problem((3, 2, 2, 2), given=given).tensors(device)
    names = ("input", *given)

    def function(*inputs: Tensor) -> Tensor:
        return as_ours(t | {n: None for n in GIVEN} | dict(zip(names, inputs, strict=True)), training, relu)

    if training:
        t |= {"running_mean": None, "running_var": None}  # which each call would move
    inputs = [t[name].clone().requires_grad_() for name in names]
    assert gradcheck(function, inputs, fast_mode=True)
    assert gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_second_derivative_keeps_dtypes(dtype, device, triton_only):
    x = torch.randn(4, 3, device=device, dtype=dtype, requires_grad=True)
    weight = torch.ones(3, device=device, requires_grad=True)
    y = functional.batch_norm(x, None, None, weight, training=True)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    for gradient, of in zip(torch.autograd.grad(dx.square().sum(), (x, weight)), (x, weight), strict=True):
        assert gradient.dtype == of.dtype and gradient.isfinite().all()


class Block(nn.Module):
    """A residual block of batch norms, one with momentum and one with the mean over all batches."""

    def __init__(self) -> None:
        super().__init__()
        self.first = layers.BatchNorm2d(4, activation="relu")
        self.second = layers.BatchNorm2d(4, momentum=None, activation="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * x, residual=x)


def test_compiles_without_a_graph_break(device, triton_only):
    eager = Block().to(device)
    net = copy.deepcopy(eager)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for training in (True, False):
        eager.train(training), net.train(training)
        x = torch.randn(2, 4, 5, 3, device=device)
        y, expected = compiled(x), eager(x)
        y.sum().backward(), expected.sum().backward()
        assert torch.equal(y, expected)
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(net.parameters(), eager.parameters(), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(net.buffers(), eager.buffers(), strict=True))


def test_a_batch_of_any_size_runs_one_compiled_graph(device, triton_only):
    graphs = []

    def compiler(graph, inputs):
        graphs.append(graph)
        return graph

    net = torch.compile(Block().to(device), fullgraph=True, dynamic=True, backend=compiler)
    for batch in (2, 3, 5):
        net(torch.randn(batch, 4, 5, 3, device=device))
    assert len(graphs) == 1


@MODES
@pytest.mark.parametrize("name", ["auto", "torch"])
def test_an_empty_batch_is_torchs(name, training, device):
    layer, theirs = layers.BatchNorm2d(3, activation="relu").to(device), nn.BatchNorm2d(3).to(device)
    with backend.use_backend(name):
        for module in (layer, theirs):
            x = torch.ones(0, 3, 2, 2, device=device, requires_grad=True)
            y = module.train(training)(x)
            y.sum().backward()
            assert y.shape == x.shape == x.grad.shape
            assert torch.equal(module.weight.grad, torch.zeros(3, device=device))
    assert all(torch.equal(a, b) for a, b in zip(layer.buffers(), theirs.buffers(), strict=True))


@pytest.mark.parametrize("name", ["auto", "torch"])
@pytest.mark.parametrize("momentum", [0.0, 0.3, 1.0, None], ids=str)
def test_follows_the_running_statistics_of_torch(momentum, name, device):
    ours, theirs = layers.BatchNorm2d(5, momentum=momentum).to(device), nn.BatchNorm2d(5, momentum=momentum).to(device)
    with backend.use_backend(name):
        for batch in (3, 2, 1):
            x = torch.randn(batch, 5, 4, 3, device=device) + batch
            torch.testing.assert_close(ours(x), theirs(x))
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("arguments", [{}, {"affine": False}, {"track_running_stats": False}, {"eps": 0.1}], ids=str)
@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"])
def test_layers_exchange_state_with_torch(name, arguments, device, triton_only):
    ours, theirs = (getattr(room, name)(4, **arguments).to(device) for room in (layers, nn))
    assert isinstance(ours, type(theirs)) and repr(ours) == repr(theirs)
    x = torch.randn(3, 4, *[5] * int(name[-2]), device=device)
    theirs(2 * x + 1)
    ours.load_state_dict(theirs.state_dict())
    for training in (True, False):
        torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x))
    theirs.load_state_dict(ours.state_dict())


def test_layers_copy_pickle_and_show_the_activation():
    layer = layers.BatchNorm2d(4, activation="relu")
    assert repr(layer) == repr(nn.BatchNorm2d(4))[:-1] + ", activation=relu)"
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert repr(twin) == repr(layer)
    with pytest.raises(ValueError, match="BatchNorm1d: activation must be None or 'relu', got 'gelu'"):
        layers.BatchNorm1d(4, activation="gelu")
    with pytest.raises(ValueError, match="expected 4D input"):
        layer(torch.ones(2, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_leaves_it_alone(dtype, device, triton_only):
    layer = layers.BatchNorm2d(2, activation="relu").to(device)
    x = torch.randn(2, 2, 3, 3, device=device)
    with torch.autocast(device, dtype):
        assert layer(x).dtype == torch.float32
        y = layer(x.to(dtype), residual=x.to(dtype))
    y.float().sum().backward()
    assert y.dtype == dtype and layer.weight.grad.dtype == layer.running_mean.dtype == torch.float32


def test_only_y_has_a_gradient_and_may_be_changed_in_place(device, triton_only):
    x = torch.randn(4, 3, device=device, requires_grad=True)
    y, mean, var = ops.batch_norm(x, None, None, None, None, None, EPS, False)
    assert y.requires_grad and not mean.requires_grad and not var.requires_grad
    expected = torch.autograd.grad((2 * y).square().sum(), x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(y.mul_(2).square().sum(), x)[0], expected)


def test_forward_mode_is_refused_rather_than_wrong(device, triton_only):
    x = torch.randn(4, 3, device=device)
    functional.batch_norm(x, None, None, training=True)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward-mode differentiation needs the torch"):
        functional.batch_norm(forward_ad.make_dual(x, x), None, None, training=True)


@pytest.mark.parametrize("target", ["interpreter", "sm_90", "gfx942"])
def test_heuristic_gives_legal_tiles(target, monkeypatch):
    monkeypatch.setattr(tuning, "target", lambda: target)
    for positions in (1, 3, 196, 100_352, 2**24):
        for channels in (1, 3, 64, 2048):
            tile = tuning.norm_tile(positions, channels)
            assert tile.m & (tile.m - 1) == tile.n & (tile.n - 1) == 0
            assert tile.m * tile.n <= 2**20 and 1 <= tile.splits <= 128


X, ONES = torch.randn(2, 4, 3, 3), torch.ones(4)


@pytest.mark.parametrize("name", ["auto", "torch"])
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: f(X.numpy(), ONES, ONES), TypeError, r"input must be a torch.Tensor, got ndarray"),
        (lambda f: f(X.long(), ONES, ONES), TypeError, r"input must be float16, .* got int64"),
        (lambda f: f(ONES, ONES, ONES), ValueError, r"input must be \[N, C\] or .*, got 1 dimensions: input \(4,\)"),
        (lambda f: f(X[None, None], ONES, ONES), ValueError, r"up to 3 axes, got 6 dimensions"),
        (lambda f: f(X, None, None), ValueError, r"running_mean and running_var must be given unless training"),
        (lambda f: f(X, ONES, None, training=True), ValueError, r"must both be given or both be None"),
        (
            lambda f: f(X, ONES[:3], ONES),
            ValueError,
            r"running_mean must have shape \(4,\), got \(3,\).*\(2, 4, 3, 3\)",
        ),
        (lambda f: f(X, ONES, ONES, ONES[:3]), ValueError, r"weight must have shape \(4,\), got \(3,\)"),
        (lambda f: f(X, ONES, ONES, 2.0), TypeError, r"weight must be a torch.Tensor, got float"),
        (lambda f: f(X, ONES, ONES, ONES.half()), TypeError, r"one dtype, got running_mean float32 and weight float16"),
        (lambda f: f(X, *[ONES.half()] * 2), TypeError, r"running_mean must be float32 for input float32, got float16"),
        (
            lambda f: f(X.half(), *[ONES.double()] * 2),
            TypeError,
            r"running_mean must be float16 or float32 for input float16, got float64",
        ),
        (lambda f: f(X, *[ONES.to("meta")] * 2), ValueError, r"one device, got input on cpu and running_mean on meta"),
        (lambda f: f(X[:1, :, :1, :1], None, None, training=True), ValueError, r"more than one value per channel"),
        (lambda f: f(X, None, None, training=True, eps=0.0), ValueError, r"eps must be > 0 in training, got 0.0"),
        (lambda f: f(X, ONES, ONES, eps=-1.0), ValueError, r"eps must be >= 0, got -1.0"),
        (lambda f: f(X, ONES, ONES, momentum=None), TypeError, r"momentum must be a number or .*, got None"),
        (
            lambda f: f(X, ONES, ONES, residual=X[..., :2]),
            ValueError,
            r"residual must have the output's shape \(2, 4, 3, 3\), got \(2, 4, 3, 2\)",
        ),
        (lambda f: f(X, ONES, ONES, residual=X.half()), TypeError, r"got input float32 and residual float16"),
        (lambda f: f(X, ONES, ONES, activation="gelu"), ValueError, r"activation must be None or 'relu', got 'gelu'"),
    ],
)
def test_bad_input_is_one_clear_line(call, error, message, name):
    launches = backend.launch_count()
    with backend.use_backend(name), pytest.raises(error, match="batch_norm: .*" + message) as caught:
        call(functional.batch_norm)
    assert "\n" not in str(caught.value) and backend.launch_count() == launches
