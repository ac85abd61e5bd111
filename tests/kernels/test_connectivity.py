"""Tiled, local and table connectivity, against convolutions that are put together by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

import kernels
from kernels import functional, layers

BACKENDS = [
    pytest.param("triton", marks=pytest.mark.skipif(not kernels.backend.AVAILABLE, reason="no triton")),
    "torch",
]


@pytest.fixture(params=BACKENDS)
def backend(request):
    before = kernels.backend.launch_count()
    with kernels.use_backend(request.param):
        yield request.param
    assert (kernels.backend.launch_count() > before) == (request.param == "triton")


def draw(*shape: int, device: str) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, device=device)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("tile", [(1, 1), (2, 3), (4, 1), (9, 9)], ids=str)
def test_tiles_take_turns(tile, groups, backend, device):
    x, weight = draw(2, 4, 8, 9, device=device), draw(*tile, 6, 4 // groups, 3, 3, device=device)
    bias = draw(*tile, 6, device=device)
    arguments = {"stride": (1, 2), "padding": 1, "dilation": (2, 1), "groups": groups}
    y = functional.tiled_conv2d(x, weight, bias, **arguments, activation="relu")
    for a in range(tile[0]):
        for b in range(tile[1]):
            own = F.conv2d(x, weight[a, b], bias[a, b], **arguments).relu()
            torch.testing.assert_close(y[..., a :: tile[0], b :: tile[1]], own[..., a :: tile[0], b :: tile[1]])


def test_a_single_tile_is_convolution_and_a_tile_for_each_output_local_connection(backend, device):
    x, weight = draw(2, 3, 5, 6, device=device), draw(3, 4, 2, 3, 3, 3, device=device)
    local = functional.local_conv2d(x, weight)
    assert torch.equal(functional.tiled_conv2d(x, weight), local) and local.shape == (2, 2, 3, 4)
    for p in range(3):
        for q in range(4):
            patch = x[..., p : p + 3, q : q + 3]
            torch.testing.assert_close(local[..., p, q], torch.einsum("nchw,ochw->no", patch, weight[p, q]))
    torch.testing.assert_close(functional.tiled_conv2d(x, weight[:1, :1]), F.conv2d(x, weight[0, 0]))


TABLE = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()


def test_a_table_says_which_channels_are_seen(backend, device):
    x, weight = draw(2, 4, 5, 6, device=device), draw(10, 3, 3, device=device)
    bias = draw(5, device=device)
    y = functional.table_conv2d(x, weight, TABLE.to(device), bias, stride=2, padding=1)
    first = 0
    for output, row in enumerate(TABLE):
        seen = weight[None, first : first + int(row.sum())]
        alone = F.conv2d(x[:, row], seen, bias[output : output + 1], 2, 1) if len(seen[0]) else bias[output]
        torch.testing.assert_close(y[:, output : output + 1], alone.expand_as(y[:, :1]))
        first += int(row.sum())


@pytest.mark.parametrize(
    ("call", "shapes"),
    [
        pytest.param(
            lambda *t: functional.tiled_conv2d(*t, stride=2, padding=1, activation="relu"),
            [(1, 2, 5, 4), (2, 2, 2, 2, 3, 2), (2, 2, 2)],
            id="tiled",
        ),
        pytest.param(
            lambda *t: functional.local_conv2d(*t, dilation=2),
            [(1, 1, 3, 4), (1, 2, 2, 1, 2, 2), (1, 2, 2)],
            id="local",
        ),
        pytest.param(
            lambda x, w, b: functional.table_conv2d(x, w, TABLE.to(x.device), b),
            [(1, 4, 3, 3), (10, 2, 2), (5,)],
            id="table",
        ),
    ],
)
def test_first_and_second_derivatives(call, shapes, device, triton_only):
    inputs = [draw(*shape, device=device).requires_grad_() for shape in shapes]
    assert gradcheck(call, inputs, fast_mode=True) and gradgradcheck(call, inputs, fast_mode=True)


LAYERS = [
    pytest.param(lambda: layers.TiledConv2d(3, 4, 3, (2, 2), padding=1, activation="relu"), 4 * 4 * 28, id="tiled"),
    pytest.param(lambda: layers.LocalConv2d(3, 4, 3, (6, 7), stride=2), 2 * 3 * 4 * 28, id="local"),
    pytest.param(lambda: layers.TableConv2d(TABLE[:, :3], 3, padding="same"), 9 * 8 + 5, id="table"),
]


@pytest.mark.parametrize(("build", "parameters"), LAYERS)
def test_layers_have_the_parameters_of_their_connections(build, parameters, device, triton_only):
    layer = build().to(device)
    assert sum(p.numel() for p in layer.parameters()) == parameters
    x = torch.randn(2, 3, 6, 7, device=device)
    y = layer(x)
    y.square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in layer.parameters())
    assert y.std() > 0.1  # initialised as torch's layers are
    twin = build().to(device)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin(x), y)
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), y)


X = torch.zeros(2, 4, 8, 8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: functional.tiled_conv2d(X, torch.zeros(6, 4, 3, 3)), ValueError, r"weight must be \[TH, TW, O,"),
        (lambda: functional.tiled_conv2d(X, torch.zeros(2, 2, 6, 3, 3, 3)), ValueError, "must have 3 channels.*got 4"),
        (
            lambda: functional.tiled_conv2d(X, torch.zeros(2, 2, 6, 4, 3, 3), torch.zeros(6)),
            ValueError,
            r"bias must have shape \(2, 2, 6\), got \(6,\)",
        ),
        (
            lambda: functional.local_conv2d(X, torch.zeros(2, 2, 6, 4, 3, 3)),
            ValueError,
            r"a kernel for each of the \(6, 6\) output positions, got \(2, 2,",
        ),
        (lambda: functional.local_conv2d(X, torch.zeros(6, 4, 3, 3)), ValueError, r"weight must be \[TH, TW"),
        (lambda: functional.table_conv2d(X, torch.zeros(9, 3, 3), TABLE), ValueError, r"weight must be \[10, KH, KW\]"),
        (
            lambda: functional.table_conv2d(X, torch.zeros(9, 3, 3), TABLE.int()),
            ValueError,
            r"table must be \[O, C\] of bool",
        ),
        (lambda: functional.table_conv2d(X, torch.zeros(9, 3, 3), [[True]]), TypeError, "table must be a torch.Tensor"),
        (
            lambda: functional.table_conv2d(X, torch.zeros(8, 3, 3), TABLE[:, :3]),
            ValueError,
            "must have 3 channels.*got 4",
        ),
        (lambda: layers.TiledConv2d(3, 4, 3, 0), ValueError, "tile must be an int or 2 ints, each >= 1, got 0"),
        (lambda: layers.TiledConv2d(3, 4, 3, 2, groups=2), ValueError, "groups must divide 3 and 4 channels, got 2"),
        (
            lambda: layers.LocalConv2d(3, 4, 9, 8),
            ValueError,
            r"kernel_size \(9, 9\) does not fit on input_size \(8, 8\)",
        ),
    ],
)
def test_bad_input_is_one_clear_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
