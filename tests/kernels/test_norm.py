"""Batch normalisation: values, gradients and running statistics as exact as torch's, in every layout and dtype."""

import random
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import backend, functional, layers, reference
from kernels.tuning import Tile, use_tile
from tests.closeness import assert_as_exact_as_torch
from tests.kernels.problems import lay_out

norm = pytest.importorskip("kernels.norm", reason="triton is not installed")
norm_gradient = pytest.importorskip("kernels.norm_gradient", reason="triton is not installed")
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
    outlier: float = 0.0  # added to the first value of the first channel

    def tensors(self, device: str) -> dict[str, Tensor | None]:
        """float64 input, residual and gradient of the output in the problem's layout, and all [C]."""
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(device)  # noqa: E731
        wide = {name: lay_out(draw(*self.shape), self.layout) for name in ("input", "residual", "dy")}
        narrow = {name: draw(self.shape[1]) for name in ("weight", "bias", "running_mean", "running_var")}
        tensors = wide | narrow
        tensors["input"] = lay_out(self.mean + self.spread * tensors["input"], self.layout)
        if self.outlier:
            tensors["input"][(0,) * len(self.shape)] += self.outlier
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
    pytest.param(Problem((2, 48, 4, 4), mean=0.0, spread=1.0), id="few-positions"),
]
FEW = [
    p
    for p in PROBLEMS
    if p.id in ("no-power-of-two", "no-weight", "1-d", "channels-last", "expanded", "mean-over-spread")
]
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
    y, *batch = reference.batch_norm(*inputs, *((None, None) if training else used), None, EPS, relu)
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
    tensors = rounded(problem, dtype, device, parameters)
    ours = run(as_ours, tensors, training, problem.relu)
    compare(problem, tensors, training, ours)
    kept = torch.channels_last if problem.layout == "channels_last" and len(problem.shape) == 4 else None
    if kept:
        assert ours["y"].is_contiguous(memory_format=kept) and ours["dinput"].is_contiguous(memory_format=kept)


def rounded(
    problem: Problem, dtype: torch.dtype, device: str, parameters: torch.dtype | None = None
) -> dict[str, Tensor | None]:
    """The tensors of a problem in a dtype, those [C] in that of `parameters`."""
    wide = ("input", "residual", "dy")
    return {
        name: None if v is None else lay_out(v.to(dtype), problem.layout) if name in wide else v.to(parameters or dtype)
        for name, v in problem.tensors(device).items()
    }


def compare(problem: Problem, tensors: dict[str, Tensor | None], training: bool, ours: dict[str, Tensor]) -> None:
    """Hold what `run` gave for tensors to the rule of tests/closeness.py."""
    double = {name: None if v is None else v.double() for name, v in tensors.items()}
    mask = ours["y"] if problem.relu else None
    truth = truth_of(double, training, problem.relu, mask)
    torchs = run(as_torch, tensors, training, problem.relu, mask)
    if problem.relu:
        torchs["y"] = torchs["y"].relu()
    magnitude = magnitudes(double | {"dy": reference.masked(double["dy"], mask)}, truth, training)
    for name, result in ours.items():
        assert_as_exact_as_torch(result, torchs[name], truth[name], magnitude[name])


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)  # float64 has no truth to be held to
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("outlier", [1e4, -1e4])
def test_an_outlier_takes_no_digits_from_the_others(outlier, splits, dtype, device, triton_only):
    problem = Problem((10, 2, 40, 40), mean=0.1, spread=1e-3, outlier=outlier)
    with use_tile(Tile(256, 4, 1, splits=splits)):
        check(problem, dtype, True, device)


@pytest.mark.parametrize("seed", range(20))
def test_is_as_exact_for_large_means_outliers_and_few_positions(seed, device, triton_only):
    chance = random.Random(seed)
    size = chance.choice([(), (chance.randint(1, 9),), (4, 4), (24, 24), (1, 2, 3)])
    problem = Problem(
        (chance.randint(2, 6), chance.choice([1, 3, 48]), *size),
        relu=chance.random() < 0.5,
        mean=chance.choice([0.0, chance.uniform(-1, 1), 10 ** chance.uniform(0, 4), -(10 ** chance.uniform(0, 4))]),
        spread=10 ** chance.uniform(-2, 2),
        outlier=chance.choice([0.0, 10 ** chance.uniform(0, 4), -(10 ** chance.uniform(0, 4))]),
    )
    check(problem, torch.float32, True, device)


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
    arguments = (t["input"], t["weight"], t["bias"], t["residual"], *statistics, None, EPS, problem.relu)
    y, *batch = expected = reference.batch_norm(*arguments)
    torch.testing.assert_close(norm.batch_norm(*arguments), expected)
    mask, statistics = y if problem.relu else None, batch if training else statistics
    arguments = (t["dy"], t["input"], t["weight"], mask, *statistics, EPS, training, True, True)
    torch.testing.assert_close(norm_gradient.batch_norm_gradient(*arguments), reference.batch_norm_gradient(*arguments))


def test_twin_has_the_sums_of_a_process(device, triton_only):
    """Moments and the gradient's sums, which processes add up, and what follows from them."""
    t = Problem((3, 5, 7, 6), mean=100.0).tensors(device)
    x, dy, weight, y = t["input"].float(), t["dy"].float(), t["weight"].float(), t["residual"].float()
    moments = reference.batch_moments(x.double())
    for found, expected, exact in zip(norm.batch_moments(x), moments, reference.batch_moments(x), strict=True):
        assert_as_exact_as_torch(found.float(), exact, expected, expected.abs())
    mean, var = (m.float() for m in moments)
    sums = reference.batch_norm_sums(dy, x, y, mean, var, EPS)
    found = norm_gradient.batch_norm_sums(dy, x, y, mean, var, EPS)
    torch.testing.assert_close(found, tuple(s.double() for s in sums), rtol=1e-5, atol=1e-5)
    arguments = (dy, x, weight, y, mean, var, *sums, EPS)
    for residual in (False, True):
        found = norm_gradient.batch_norm_propagate(*arguments, residual)
        torch.testing.assert_close(found, reference.batch_norm_propagate(*arguments, residual))


def test_twin_tracks_as_the_kernel_does(device, triton_only):
    x, *running = (torch.randn(shape, device=device).abs() for shape in ((4, 3, 5), (3,), (3,)))
    found = {}
    for module in (norm, reference):
        mean, var = (t.clone() for t in running)
        found[module] = *module.batch_norm(x, None, None, None, mean, var, MOMENTUM, EPS, True), mean, var
    torch.testing.assert_close(found[norm], found[reference])


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
