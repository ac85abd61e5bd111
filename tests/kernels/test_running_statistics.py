"""Running statistics of batch norm, moved by the kernel: as exact as torch's in every dtype, momentum and layout."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels import functional, layers
from tests.closeness import assert_as_exact_as_torch
from tests.kernels.problems import lay_out

ops = pytest.importorskip("kernels.ops", reason="triton is not installed")

DTYPES = [
    pytest.param(*pair, id="-".join(str(dtype).removeprefix("torch.") for dtype in pair))
    for pair in (
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.float16, torch.float16),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
    )
]
MOMENTUMS = [0.0, 1.0, 0.1, 0.7, 1, 0, torch.tensor(0.3), torch.tensor(0.25, dtype=torch.float64)]
Statistics = tuple[Tensor, Tensor]


def statistics(
    channels: int, dtype: torch.dtype, device: str, layout: str = "contiguous", mean: float = 0
) -> Statistics:
    generator = torch.Generator().manual_seed(1)
    draw = lambda: torch.randn(channels, generator=generator).to(device, dtype)  # noqa: E731
    running = draw() + mean, draw().abs() + 0.5
    if layout == "strided":
        wide = [t.new_full((2 * channels,), 7.0) for t in running]
        for w, t in zip(wide, running, strict=True):
            w[::2] = t
        running = tuple(w[::2] for w in wide)
    return running


def draw(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (0.5 + 2 * torch.randn(shape, generator=generator)).to(device, dtype)


def assert_moved_as_torch_moves(
    x: Tensor, make: Callable[[], Statistics], momentum: float | Tensor,
    ours: Callable[..., object] = functional.batch_norm,
) -> None:  # fmt: skip
    """Hold both statistics that `ours` moves to the tolerance rule, with torch's in the same dtype beside them."""
    before, moved, theirs = make(), make(), make()
    ours(x, *moved, None, None, True, momentum)
    nn.functional.batch_norm(x, *theirs, None, None, True, float(momentum))
    axes = [axis for axis in range(x.dim()) if axis != 1]
    var, mean = torch.var_mean(x.double(), axes)
    share = float(momentum)
    for old, ours_, torchs, batch in zip(before, moved, theirs, (mean, var), strict=True):
        old, new = (1 - share) * old.double(), share * batch
        assert_as_exact_as_torch(ours_, torchs, old + new, old.abs() + new.abs())


@pytest.mark.parametrize("momentum", MOMENTUMS, ids=lambda m: f"{type(m).__name__}-{float(m):g}")
@pytest.mark.parametrize(("dtype", "of_statistics"), DTYPES)
def test_move_as_torchs_do(dtype, of_statistics, momentum, device, triton_only):
    momentum = momentum.to(device) if isinstance(momentum, Tensor) else momentum
    x = draw((3, 5, 6, 4), dtype, device)
    assert_moved_as_torch_moves(x, lambda: statistics(5, of_statistics, device), momentum)


@pytest.mark.parametrize("momentum", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("mean", [1e4, -1e8])
def test_forget_a_large_value_as_torchs_do(mean, momentum, device, triton_only):
    """The share of the old value is taken from it, not from its distance to the new one, which rounds that away."""
    x = draw((3, 5, 6, 4), torch.float32, device)
    assert_moved_as_torch_moves(x, lambda: statistics(5, torch.float32, device, mean=mean), momentum)


@pytest.mark.parametrize("of_statistics", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", ["function", "operator", "dispatcher"])
def test_may_have_any_stride(way, of_statistics, device, triton_only):
    """Nothing between their elements is written."""
    kept: list[Tensor] = []

    def make() -> Statistics:
        made = statistics(5, of_statistics, device, "strided")
        kept.extend(t._base for t in made)
        return made

    def by_operator(x, mean, var, weight, bias, training, momentum):
        op = ops.batch_norm_in_training if way == "operator" else torch.ops.convnets.batch_norm_in_training
        op(x, weight, bias, None, mean, var, momentum, 1e-5, False)

    x = draw((3, 5, 6, 4), of_statistics, device)
    function = functional.batch_norm if way == "function" else by_operator
    assert_moved_as_torch_moves(x, make, 0.3, function)
    assert len(kept) == 6 and all(torch.equal(base[1::2], torch.full_like(base[1::2], 7.0)) for base in kept)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided", "expanded"])
def test_move_for_inputs_of_every_layout(layout, device, triton_only):
    x = lay_out(draw((3, 5, 6, 4), torch.float32, device), layout)
    assert_moved_as_torch_moves(x, lambda: statistics(5, torch.float32, device), 0.1)


@pytest.mark.parametrize(("dtype", "of_statistics"), DTYPES)
def test_of_all_batches_are_torchs(dtype, of_statistics, device, triton_only):
    """A momentum of None is the mean over all batches so far."""
    ours, theirs = (
        kind(5, momentum=None, affine=False).to(device, of_statistics) for kind in (layers.BatchNorm2d, nn.BatchNorm2d)
    )
    for batch in range(1, 4):
        x = draw((3, 5, 6, 4), dtype, device) * batch
        before = copy.deepcopy(theirs)
        ours.load_state_dict(theirs.state_dict())  # each step on its own, so that the rule holds for it
        ours(x), theirs(x)
        var, mean = torch.var_mean(x.double(), (0, 2, 3))
        for name, new in (("running_mean", mean), ("running_var", var)):
            old, new = getattr(before, name).double() * (1 - 1 / batch), new / batch
            a, b = getattr(ours, name), getattr(theirs, name)
            assert_as_exact_as_torch(a, b, old + new, old.abs() + new.abs())
        assert torch.equal(ours.num_batches_tracked, theirs.num_batches_tracked)


@pytest.mark.parametrize(("where", "value"), [("input", "nan"), ("statistics", "nan"), ("statistics", "inf")])
@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0])
def test_pass_on_what_is_not_finite_as_torchs_do(momentum, where, value, device, triton_only):
    results = []
    for function in (functional.batch_norm, nn.functional.batch_norm):
        x, running = draw((3, 5, 6, 4), torch.float32, device), statistics(5, torch.float32, device)
        for t in (x[:, 2],) if where == "input" else (running[0][3:4], running[1][1:2]):
            t.fill_(float(value))
        function(x, *running, None, None, True, momentum)
        results.append(running)
    torch.testing.assert_close(*results, equal_nan=True)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiled_networks_move_them_too(dynamic, momentum, device, triton_only):
    layer = layers.BatchNorm2d(4, momentum=momentum).to(device)
    eager = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch in range(2, 5):
        x = draw((batch, 4, 3, 5), torch.float32, device)
        results = []
        for net in (compiled, eager):
            leaf = x.clone().requires_grad_()
            y = net(leaf)
            y.square().sum().backward()
            results.append((y.detach(), leaf.grad))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(layer.buffers(), eager.buffers(), strict=True))
        assert layer.num_batches_tracked == batch - 1


def test_move_in_inference_mode(device, triton_only):
    layer, expected = layers.BatchNorm2d(5).to(device), layers.BatchNorm2d(5).to(device)
    x = draw((3, 5, 6, 4), torch.float32, device)
    expected(x)
    with torch.inference_mode():
        inside = layers.BatchNorm2d(5).to(device)
        layer(x), inside(x)
    for moved in (layer, inside):
        assert all(torch.equal(a, b) for a, b in zip(moved.buffers(), expected.buffers(), strict=True))


def test_move_under_checkpoints_as_torchs_do(device, triton_only):
    """A checkpoint runs the layer twice: so often they move."""
    x = draw((3, 5, 6, 4), torch.float32, device).requires_grad_()
    for use_reentrant in (False, True):
        ours, theirs = layers.BatchNorm2d(5).to(device), nn.BatchNorm2d(5).to(device)
        for layer in (ours, theirs):
            checkpoint(layer, x, use_reentrant=use_reentrant).sum().backward()
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
