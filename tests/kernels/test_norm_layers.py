"""Batch normalisation as torch offers it: operators, second derivatives, layers, running statistics and refusals."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from kernels import backend, functional, layers, tuning
from tests.kernels.test_norm import EPS, FEW, GIVEN, MODES, Problem, as_ours

ops = pytest.importorskip("kernels.ops", reason="triton is not installed")


@MODES
@pytest.mark.parametrize("problem", FEW)
def test_opcheck(problem, training, device, triton_only):
    t = {name: None if v is None else v.float() for name, v in problem.tensors(device).items()}
    inputs = [t[name] for name in ("input", *GIVEN)]
    statistics = (None, None) if training else (t["running_mean"], t["running_var"])
    y, *batch = ops.batch_norm(*inputs, *statistics, EPS, problem.relu)
    inputs = [None if v is None else v.clone().requires_grad_() for v in inputs]
    torch.library.opcheck(ops.batch_norm.op, (*inputs, *statistics, EPS, problem.relu))
    if training:
        running = (t["running_mean"], t["running_var"])
        torch.library.opcheck(ops.batch_norm_in_training.op, (*inputs, *running, 0.1, EPS, problem.relu))
    statistics = batch if training else statistics
    for parameters, residual in ((True, True), (False, False)):
        arguments = (t["dy"].clone().requires_grad_(), *inputs[:2], y if problem.relu else None, *statistics, EPS)
        torch.library.opcheck(ops.batch_norm_gradient.op, (*arguments, training, parameters, residual))


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


@MODES
@pytest.mark.parametrize("momentum", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
@pytest.mark.parametrize("which", ["running_mean", "running_var"])
@pytest.mark.parametrize("name", ["auto", "torch"])
def test_running_statistics_have_no_gradient(name, which, momentum, training, device):
    """As in torch, which refuses them too, but not where nothing is recorded."""
    running = {"running_mean": torch.zeros(3, device=device), "running_var": torch.ones(3, device=device)}
    running[which].requires_grad_()
    before = running[which].detach().clone()
    x = torch.randn(4, 3, device=device)
    with backend.use_backend(name):
        with pytest.raises(ValueError, match=f"{which} has no gradient"):
            functional.batch_norm(x, **running, training=training, momentum=momentum)
        assert torch.equal(running[which], before)
        with torch.no_grad():
            functional.batch_norm(x, **running, training=training, momentum=momentum)
    assert torch.equal(running[which], before) != training


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
    monkeypatch.setattr(tuning, "target", lambda device=None: target)
    for positions, channels, itemsize in itertools.product((1, 3, 196, 100_352, 2**24), (1, 3, 64, 2048), (2, 4, 8)):
        tile = tuning.norm_tile(positions, channels, itemsize)
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
