"""The registry: opcheck, gradients, FLOPs against ATen's, compilation without graph breaks, bitwise repeatability."""

import shutil
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

from kernels import functional, layers
from kernels.shape import POINT
from tests.determinism import nondeterministic
from tests.kernels.problems import AVERAGES, CONVOLUTIONS, POOLINGS, Pooling, Problem, lay_out

ops = pytest.importorskip("kernels.ops", reason="triton is not installed")
conv = pytest.importorskip("kernels.conv", reason="triton is not installed")

pytestmark = pytest.mark.usefixtures("triton_only")
NAMES = "stem-7x7-stride-2 grouped channels-last same-even-window linear 1-d 3-d-channels-last expanded".split()
FEW = [p for p in CONVOLUTIONS if p.id in NAMES]
POOLING_NAMES = "overlapping dilated channels-last 1-d 3-d adaptive adaptive-channels-last adaptive-1-d".split()
FEW_POOLINGS = [p for p in POOLINGS if p.id in POOLING_NAMES]
AVERAGE_NAMES = "ragged-edge-not-counted divisor channels-last 3-d adaptive adaptive-channels-last average-1-d".split()
FEW_AVERAGES = [p for p in AVERAGES if p.id in AVERAGE_NAMES]


def arguments(problem: Problem, device: str, dtype: torch.dtype = torch.float32):
    x, weight, bias, dy = (t.to(dtype) for t in problem.tensors(device))
    window = problem.window
    return x, weight, bias, dy, [window.flat]


def pool_arguments(problem: Pooling) -> list[list[int]]:
    return [problem.window.flat, list(problem.output_size)]


def average_arguments(problem: Pooling) -> list:
    return [*pool_arguments(problem), problem.divisor or 0, problem.count_include_pad]


@pytest.mark.parametrize("relu", [False, True], ids=["linear", "relu"])
@pytest.mark.parametrize("problem", FEW)
def test_opcheck_of_the_convolution_operators(problem, relu, device):
    x, weight, bias, dy, geometry = arguments(problem, device)
    y = ops.convolution(x, weight, bias, None, *geometry, relu)
    mask = y if relu else None
    for tensor in (x, weight, bias):
        tensor.requires_grad_()
    torch.library.opcheck(ops.convolution.op, (x, weight, bias, None, *geometry, relu))
    x, weight = x.detach(), weight.detach()
    torch.library.opcheck(ops.convolution_transpose.op, (dy, weight, None, mask, *geometry, list(problem.size), False))
    torch.library.opcheck(ops.convolution_weight_gradient.op, (x, dy, mask, *geometry, True))
    torch.library.opcheck(ops.convolution_weight_gradient.op, (x, dy, mask, *geometry, False))


def test_opcheck_of_what_is_fused(device):
    problem = Problem((6, 7), (3, 3), outputs=6, padding=1)
    x, weight, bias, residual, geometry = arguments(problem, device)
    tensors = [t.requires_grad_() for t in (x, weight, bias)]
    torch.library.opcheck(ops.convolution.op, (*tensors, residual.requires_grad_(), *geometry, True))
    halving = Pooling((6, 7), (2, 2)).window.flat
    torch.library.opcheck(ops.convolution_max.op, (*tensors, *geometry, True, halving, [3, 3], 1))
    torch.library.opcheck(ops.convolution_max.op, (*tensors, *geometry, True, POINT.flat, [6, 7], 3))
    dy, bias = residual.detach().requires_grad_(), x.detach()[0, :, 0, 0].clone().requires_grad_()
    torch.library.opcheck(ops.convolution_transpose.op, (dy, weight, bias, None, *geometry, list(problem.size), True))


@pytest.mark.parametrize("problem", FEW_POOLINGS)
def test_opcheck_of_the_pooling_operators(problem, device):
    x = problem.input(device, torch.float32)
    y, taps = ops.max_pool(x, *pool_arguments(problem))
    torch.library.opcheck(ops.max_pool.op, (x.requires_grad_(), *pool_arguments(problem)))
    dy = torch.randn_like(y).requires_grad_()
    torch.library.opcheck(ops.max_pool_gradient.op, (dy, taps, problem.window.flat, list(problem.size)))


@pytest.mark.parametrize("problem", FEW_AVERAGES)
def test_opcheck_of_the_average_operators(problem, device):
    x = problem.input(device, torch.float32).requires_grad_()
    window, _, *how = average_arguments(problem)
    dy = torch.randn_like(ops.average_pool(x, *average_arguments(problem))).requires_grad_()
    torch.library.opcheck(ops.average_pool.op, (x, *average_arguments(problem)))
    torch.library.opcheck(ops.average_pool_gradient.op, (dy, window, list(problem.size), *how))


def test_every_operator_is_checked(device):
    """The tests above, and those of batch norm, name every operator that is registered."""
    registered = {
        name.removeprefix("convnets::") for name in torch._C._dispatch_get_all_op_names() if "convnets::" in name
    }
    assert registered == {
        "average_pool", "average_pool_gradient", "batch_norm", "batch_norm_gradient", "batch_norm_in_training",
        "convolution", "convolution_max", "convolution_transpose", "convolution_weight_gradient", "max_pool",
        "max_pool_gradient",
    }  # fmt: skip
    functional.linear(torch.ones(1, 1, device=device), torch.ones(1, 1, device=device))  # for `triton_only`


@pytest.mark.parametrize("relu", [False, True], ids=["linear", "relu"])
@pytest.mark.parametrize("problem", FEW)
def test_gradcheck_of_convolution(problem, relu, device):
    x, weight, bias, _, geometry = arguments(problem, device, torch.float64)
    inputs = [t.clone().requires_grad_() for t in (x, weight, bias)]
    call = lambda *tensors: ops.convolution(*tensors, None, *geometry, relu)  # noqa: E731
    assert gradcheck(call, inputs, fast_mode=True) and gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("problem", FEW_POOLINGS)
def test_gradcheck_of_pooling(problem, device):
    x = problem.input(device, torch.float64).requires_grad_()
    pool = lambda x: ops.max_pool(x, *pool_arguments(problem))[0]  # noqa: E731
    assert gradcheck(pool, [x], fast_mode=True) and gradgradcheck(pool, [x], fast_mode=True)


@pytest.mark.parametrize("problem", FEW_AVERAGES)
def test_gradcheck_of_the_average(problem, device):
    x = problem.input(device, torch.float64).requires_grad_()
    pool = lambda x: ops.average_pool(x, *average_arguments(problem))  # noqa: E731
    assert gradcheck(pool, [x], fast_mode=True) and gradgradcheck(pool, [x], fast_mode=True)


@pytest.mark.parametrize("problem", [p for p in FEW_POOLINGS if p.id in ("overlapping", "adaptive", "adaptive-1-d")])
def test_second_derivatives_are_torchs(problem, device):
    """Of a penalty on the gradient, by which a loss needs the gradient's own gradient."""
    results = []
    for functions, allowed in ((functional, nullcontext()), (F, nondeterministic())):
        x = problem.input(device, torch.float64).requires_grad_()
        penalty = 0
        with allowed:
            for name, arguments in (problem.max_call, problem.average_call):
                y = getattr(functions, name)(x, *arguments)
                y = (y[0] if isinstance(y, tuple) else y).pow(3).sum()
                (dx,) = torch.autograd.grad(y, x, create_graph=True)
                penalty = penalty + dx.square().sum()
            results += torch.autograd.grad(penalty, x)
    torch.testing.assert_close(*results)


def test_gradcheck_of_cross_channel_pooling(device):
    x = torch.randn(2, 6, 3, 2, dtype=torch.float64, device=device, requires_grad=True)
    assert gradcheck(lambda x: functional.cross_channel_max_pool(x, 3), [x], fast_mode=True)


@pytest.mark.parametrize("needed", ["input", "weight", "bias"])
def test_only_the_gradient_that_is_needed_is_computed(needed, device):
    x, weight, bias, dy, geometry = arguments(Problem((6, 6), (3, 3)), device)
    wanted = {"input": x, "weight": weight, "bias": bias}[needed].requires_grad_()
    y = ops.convolution(x, weight, bias, None, *geometry, True)
    with FlopCounterMode(display=False) as counter:
        y.backward(dy)
    counted = counter.get_flop_counts()["Global"]
    assert [op.__name__ for op in counted] == [
        "convolution_transpose" if needed == "input" else "convolution_weight_gradient"
    ]
    assert wanted.grad is not None


# torch pads the even "same" window itself, and counts a grouped weight gradient as if it were not grouped.
@pytest.mark.parametrize("problem", [p for p in FEW if p.id not in ("same-even-window", "grouped")])
def test_counts_the_flops_that_aten_counts(problem, device):
    x, weight, bias, _, geometry = arguments(problem, device)
    x.requires_grad_(), weight.requires_grad_()

    def flops(run) -> int:
        with FlopCounterMode(display=False) as counter:
            run().sum().backward()
        return counter.get_total_flops()

    axes, window = problem.window.axes, problem.window
    theirs = (F.linear, F.conv1d, F.conv2d, F.conv3d)[axes]
    extra = (window.stride, [b for b, _ in window.padding], window.dilation, window.groups) if axes else ()
    ours = flops(lambda: ops.convolution(x, weight, bias, None, *geometry, True))
    assert ours == flops(lambda: theirs(x, weight, bias, *extra))


@pytest.mark.parametrize(
    ("ours", "theirs", "shapes"),
    [
        (
            lambda x, w: functional.conv_transpose2d(x, w, stride=2, padding=1, output_padding=1),
            lambda x, w: F.conv_transpose2d(x, w, stride=2, padding=1, output_padding=1),
            [(2, 4, 5, 6), (4, 3, 3, 3)],
        ),
        (
            lambda x, w: functional.conv2d(x, w, max_pool=2),
            lambda x, w: F.max_pool2d(F.conv2d(x, w), 2),
            [(2, 4, 6, 6), (6, 4, 3, 3)],
        ),
        (lambda x, w: functional.conv2d(x, w, maxout=3), F.conv2d, [(2, 4, 6, 6), (6, 4, 3, 3)]),
        (functional.matmul, torch.matmul, [(5, 4), (4, 3)]),
        (functional.matmul, torch.matmul, [(2, 5, 4), (2, 4, 3)]),
        (lambda x, w: functional.matmul(x.t(), w.t()), lambda x, w: x.t() @ w.t(), [(4, 5), (3, 4)]),
    ],
)
def test_counts_the_flops_of_whatever_is_built_on_them(ours, theirs, shapes, device):
    def flops(run) -> int:
        leaves = [torch.randn(shape, device=device, requires_grad=True) for shape in shapes]
        with FlopCounterMode(display=False) as counter, nondeterministic():
            run(*leaves).sum().backward()
        return counter.get_total_flops()

    assert flops(ours) == flops(theirs)


def test_counts_what_a_grouped_convolution_computes(device):
    x, weight, bias, dy, geometry = arguments(Problem((6, 6), (3, 3), channels=6, outputs=4, groups=2), device)
    x.requires_grad_(), weight.requires_grad_()
    with FlopCounterMode(display=False) as counter:
        ops.convolution(x, weight, bias, None, *geometry, False).backward(dy)
    multiplications = 2 * 4 * (4 * 4) * (6 // 2) * (3 * 3)
    assert list(counter.get_flop_counts()["Global"].values()) == [2 * multiplications] * 3


def network() -> torch.nn.Sequential:
    return torch.nn.Sequential(
        layers.Conv2d(1, 6, 5, padding="same", activation="relu"),
        layers.MaxPool2d(3, 2),
        layers.CrossChannelMaxPool(2),
        layers.AvgPool2d(2, 1, 1, count_include_pad=False),
        layers.AdaptiveMaxPool2d((3, None)),
        layers.AdaptiveAvgPool2d(3),
        torch.nn.Flatten(),
        layers.Linear(27, 4, activation="relu"),
    )


def test_compiles_without_a_graph_break(device):
    net = network().to(device)
    x = torch.randn(2, 1, 8, 8, device=device)
    expected = net(x)
    expected.sum().backward()
    gradients = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    y = torch.compile(net, fullgraph=True, backend="aot_eager")(x)
    y.sum().backward()
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    torch.testing.assert_close([p.grad for p in net.parameters()], gradients, rtol=0, atol=0)


@pytest.mark.skipif(shutil.which("g++") is None, reason="TorchInductor needs a C++ compiler")
def test_compiles_with_reduced_overhead(device):
    """On a GPU into CUDA graphs: the first step warms up, the second is captured, the third is a replay."""
    net = network().to(device)
    compiled = torch.compile(net, fullgraph=True, mode="reduce-overhead")
    counters["inductor"].clear()
    for _ in range(3):
        x = torch.randn(2, 1, 8, 8, device=device)
        torch.compiler.cudagraph_mark_step_begin()
        steps = []
        for run in (compiled, net):
            y = run(x)
            steps.append((y.detach().clone(), *torch.autograd.grad(y.sum(), tuple(net.parameters()))))
        torch.testing.assert_close(*steps, rtol=0, atol=0)
    assert device == "cpu" or counters["inductor"]["cudagraph_skips"] == 0


def test_a_batch_of_any_size_runs_one_compiled_graph(device):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    net = torch.compile(network().to(device), fullgraph=True, dynamic=True, backend=backend)
    for batch in (2, 3, 5, 7):
        net(torch.randn(batch, 1, 8, 8, device=device))
    assert len(graphs) == 1


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_outputs_can_be_changed_in_place_as_torchs_can(layout, device):
    x = lay_out(torch.randn(2, 4, 6, 6, device=device), layout)
    for layer in (
        layers.Conv2d(4, 4, 3, padding=1),
        layers.Conv2d(4, 1, 6),
        layers.MaxPool2d(2),
        layers.AvgPool2d(1),
        layers.AdaptiveMaxPool2d(4),
        layers.AdaptiveAvgPool2d(None),
        layers.CrossChannelMaxPool(2),
        torch.nn.Sequential(torch.nn.Flatten(), layers.Linear(144, 3)),
    ):
        y = layer.to(device)(x.requires_grad_())
        expected = torch.autograd.grad((2 * y).sum(), x, retain_graph=True)[0]
        assert torch.equal(torch.autograd.grad(y.mul_(2).sum(), x)[0], expected)


def test_changing_the_output_of_a_fused_relu_in_place_is_refused(device):
    y = layers.Conv2d(4, 4, 3, activation="relu").to(device)(torch.randn(2, 4, 6, 6, device=device))
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_float32_precision_follows_torch(device, monkeypatch):
    def precision(axes: int, dtype: torch.dtype) -> str:
        window = Problem((4,) * axes, (1,) * axes).window
        return conv.gemm.input_precision(torch.empty(0, dtype=dtype), window)

    functional.linear(torch.ones(1, 1, device=device), torch.ones(1, 1, device=device))
    monkeypatch.setattr(conv.tuning, "target", lambda device=None: "sm_90")
    kinds = {2: torch.backends.cudnn.conv, 0: torch.backends.cuda.matmul}
    saved = {axes: kind.fp32_precision for axes, kind in kinds.items()}
    try:
        for axes, kind in kinds.items():
            kind.fp32_precision = "ieee"
            assert precision(axes, torch.float32) == "ieee"
            kind.fp32_precision = "tf32"
            assert precision(axes, torch.float32) == "tf32" and precision(axes, torch.float64) == "ieee"
    finally:
        for axes, kind in kinds.items():
            kind.fp32_precision = saved[axes]
    monkeypatch.setattr(conv.tuning, "target", lambda device=None: "gfx90a")  # has no TF32
    assert precision(2, torch.float32) == "ieee"


def test_forward_mode_is_refused_rather_than_wrong(device):
    weight = torch.ones(1, 1, 1, 1, device=device)
    x = torch.randn(1, 1, 2, 2, device=device)
    assert torch.equal(functional.conv2d(x, weight), x)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward-mode differentiation needs the torch"):
        functional.conv2d(forward_ad.make_dual(x, x), weight)


def test_a_stride_beyond_the_grid_costs_no_phases(device):
    x = torch.randn(1, 2, 6, 6, device=device, requires_grad=True)
    y = functional.conv2d(x, torch.ones(1, 2, 3, 3, device=device), stride=70_000)
    y.sum().backward()
    expected = torch.zeros_like(x)
    expected[..., :3, :3] = 1
    assert torch.equal(x.grad, expected)


def test_is_bitwise_repeatable(device):
    net = network().to(device)
    x = torch.randn(4, 1, 8, 8, device=device)

    def step() -> list[torch.Tensor]:
        net.zero_grad()
        y = net(x)
        y.square().sum().backward()
        return [y.detach(), *(p.grad.clone() for p in net.parameters())]

    for first, second in zip(step(), step(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_casts_as_torch_does(dtype, device):
    conv = layers.Conv2d(2, 3, 3, activation="relu").to(device)
    linear = layers.Linear(3, 2).to(device)
    x = torch.randn(2, 2, 3, 3, device=device)
    with torch.autocast(device, dtype):
        y = linear(conv(x).flatten(1))
    assert y.dtype == dtype
    y.float().sum().backward()
    assert conv.weight.grad.dtype == torch.float32 and conv.weight.grad.isfinite().all()
