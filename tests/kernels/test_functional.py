"""The public functions: torch's names, signatures and shapes; memory formats; and one clear message for bad input."""

import inspect
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels import functional
from tests.determinism import backend_to_compare
from tests.kernels.problems import AVERAGES, CONVOLUTIONS, POOLINGS, lay_out

BACKENDS = [
    pytest.param("triton", marks=pytest.mark.skipif(not kernels.backend.AVAILABLE, reason="no triton")),
    "torch",
]


@pytest.fixture(params=BACKENDS)
def backend(request):
    with backend_to_compare(request.param):
        yield request.param


def documented(name: str) -> list[str]:
    arguments = re.search(r"\((.*?)\) -> Tensor", getattr(F, name).__doc__)[1]
    return [part.split("=")[0].strip() for part in arguments.split(",")]


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_pooling_signatures_are_torchs(axes):
    def ours(name: str) -> list[str]:
        return list(inspect.signature(getattr(functional, name)).parameters)

    for name in (f"max_pool{axes}d", f"adaptive_max_pool{axes}d"):
        assert ours(name) == list(inspect.signature(getattr(F, name + "_with_indices")).parameters)
    assert ours(f"avg_pool{axes}d") == documented(f"avg_pool{axes}d")
    assert ours(f"adaptive_avg_pool{axes}d") == documented("adaptive_avg_pool1d")


def test_convolution_signatures_are_torchs():
    for name in ("conv1d", "conv2d", "conv3d"):
        fused = ["activation", "residual", "max_pool", "maxout"]
        assert list(inspect.signature(getattr(functional, name)).parameters) == [*documented(name), *fused]
        name = name.replace("conv", "conv_transpose")
        assert list(inspect.signature(getattr(functional, name)).parameters) == [*documented(name), "activation"]


@pytest.mark.parametrize("problem", [p for p in CONVOLUTIONS if p.values[0].padding != "full" and p.values[0].kernel])
def test_convolution_gives_torchs_output(problem, backend, device):
    x, weight, bias, _ = problem.tensors(device)
    name = f"conv{len(problem.size)}d"
    arguments = (weight, bias, problem.stride, problem.padding, problem.dilation, problem.groups)
    expected = getattr(F, name)(x, *arguments).relu()
    y = getattr(functional, name)(x, *arguments, activation="relu")
    torch.testing.assert_close(y, expected)
    if problem.batch:
        unbatched = getattr(functional, name)(x[0], *arguments, activation="relu")
        torch.testing.assert_close(unbatched, expected[0])


@pytest.mark.parametrize("problem", [p for p in POOLINGS if p.values[0].values != "nan-and-infinite"])
def test_pooling_gives_torchs_output_and_indices(problem, backend, device):
    x = problem.input(device, torch.float32)
    name, arguments = problem.max_call
    y, index = getattr(functional, name)(x, *arguments)
    expected, expected_index = getattr(F, name)(x, *arguments)
    assert torch.equal(y, expected) and torch.equal(index, expected_index)
    if problem.batch:
        y, index = getattr(functional, name)(x[0], *arguments)
        assert torch.equal(y, expected[0]) and torch.equal(index, expected_index[0])


@pytest.mark.parametrize("problem", [p for p in AVERAGES if p.values[0].values != "nan-and-infinite"])
def test_average_pooling_gives_torchs_output(problem, backend, device):
    x = problem.input(device, torch.float64)
    name, arguments = problem.average_call
    expected = getattr(F, name)(x, *arguments)
    torch.testing.assert_close(getattr(functional, name)(x, *arguments), expected)
    if problem.batch:
        torch.testing.assert_close(getattr(functional, name)(x[0], *arguments), expected[0])


def test_an_adaptive_output_size_may_leave_out_extents(backend, device):
    x = torch.randn(2, 3, 5, 7, device=device)
    assert functional.adaptive_avg_pool2d(x, (None, 3)).shape == (2, 3, 5, 3)
    assert torch.equal(functional.adaptive_max_pool2d(x, (2, None)), F.adaptive_max_pool2d(x, (2, None)))
    assert torch.equal(functional.adaptive_max_pool1d(x[0], None), x[0])
    assert functional.adaptive_avg_pool2d(x, (0, 3)).shape == (2, 3, 0, 3)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0,)], ids=["no-batch", "no-channels", "no-channels-unbatched"])
def test_empty_inputs_are_taken_where_torch_takes_them(shape, axes, backend, device):
    x = torch.ones(*shape, *[6] * axes, device=device, requires_grad=True)
    for name in (f"max_pool{axes}d", f"avg_pool{axes}d", f"adaptive_max_pool{axes}d", f"adaptive_avg_pool{axes}d"):
        try:
            expected = getattr(F, name)(x, 4)
        except RuntimeError:
            with pytest.raises(ValueError, match=f"{name}: input must have no extent of 0 but the batch's"):
                getattr(functional, name)(x, 4)
        else:
            y = getattr(functional, name)(x, 4)
            assert y.shape == expected.shape
            if 0 not in shape[1:] or backend == "triton":  # torch's own gradient refuses no channels
                assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("shape", [(3, 12), (2, 12, 5), (2, 12, 4, 3), (2, 12, 2, 3, 4)], ids=str)
def test_cross_channel_max_pool_is_the_maximum_of_channel_groups(shape, backend, device):
    x = torch.randn(shape, device=device)
    expected = x.unflatten(1, (4, 3)).amax(2)
    assert torch.equal(functional.cross_channel_max_pool(x, 3), expected)


@pytest.mark.parametrize("shape", [(12,), (3, 12), (2, 5, 12)], ids=str)
def test_linear_takes_any_leading_axes(shape, backend, device):
    x, weight, bias = (torch.randn(s, device=device, dtype=torch.float64) for s in (shape, (7, 12), (7,)))
    torch.testing.assert_close(functional.linear(x, weight, bias), F.linear(x, weight, bias))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_memory_format_is_kept(layout, backend, device):
    x = lay_out(torch.randn(2, 4, 6, 6, device=device), layout).requires_grad_()
    y = functional.conv2d(x, torch.randn(8, 4, 3, 3, device=device), activation="relu")
    pooled = functional.cross_channel_max_pool(functional.max_pool2d(y, 2), 2)
    means = functional.avg_pool2d(y, 2), functional.adaptive_avg_pool2d(y, 3), functional.adaptive_max_pool2d(y, 3)
    kept = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert all(t.is_contiguous(memory_format=kept) for t in (y, pooled, *means))


@pytest.mark.parametrize("value", [2**31, 2**63 - 1, 2**63, 10**30], ids=["31", "63-1", "63", "more"])
@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("stride", lambda x, w, n: functional.conv2d(x, w, stride=n)),
        ("stride", lambda x, w, n: functional.conv2d(x, w, stride=(1, n))),
        ("padding", lambda x, w, n: functional.conv2d(x, w, padding=[n])),
        ("dilation", lambda x, w, n: functional.conv2d(x, w, dilation=n)),
        ("groups", lambda x, w, n: functional.conv2d(x, w, groups=n)),
        ("maxout", lambda x, w, n: functional.conv2d(x, w, maxout=n)),
        ("max_pool: stride", lambda x, w, n: functional.conv2d(x, w, max_pool={"kernel_size": 2, "stride": n})),
        ("stride", lambda x, w, n: functional.conv_transpose2d(x, w, stride=n)),
        ("output_padding", lambda x, w, n: functional.conv_transpose2d(x, w, output_padding=n)),
        ("kernel_size", lambda x, w, n: functional.max_pool2d(x, n)),
        ("stride", lambda x, w, n: functional.max_pool2d(x, 2, n)),
        ("padding", lambda x, w, n: functional.avg_pool2d(x, 2, 1, n)),
        ("divisor_override", lambda x, w, n: functional.avg_pool2d(x, 2, divisor_override=-n)),
        ("pool_size", lambda x, w, n: functional.cross_channel_max_pool(x, n)),
    ],
)
def test_an_int_of_more_than_32_bits_is_refused(argument, call, value, backend, device):
    x, weight = torch.ones(1, 4, 8, 8, device=device), torch.ones(4, 4, 3, 3, device=device)
    with pytest.raises(ValueError, match=rf"{argument} must be less than 2\*\*31, got .*{value}"):
        call(x, weight, value)


def test_an_output_that_no_memory_holds_is_refused(backend, device):
    x, weight = torch.ones(1, 4, 8, 8, device=device), torch.ones(4, 4, 3, 3, device=device)
    most = 2**31 - 1
    for call in (
        lambda: functional.conv2d(x, weight, padding=most),
        lambda: functional.conv_transpose2d(x, weight, stride=most),
        lambda: functional.adaptive_avg_pool2d(x, most),
    ):
        with pytest.raises(ValueError, match=r"the output would be \(\d{10,}, \d{10,}\) large"):
            call()


def test_a_lazy_layer_must_have_been_called(backend, device):
    x, lazy = torch.ones(2, 3, 8, 8, device=device), torch.nn.LazyConv2d(4, 3, device=device)
    for name, call in {
        "weight": lambda: functional.conv2d(x, lazy.weight),
        "bias": lambda: functional.conv2d(x, torch.ones(4, 3, 3, 3, device=device), lazy.bias),
        "residual": lambda: functional.conv2d(x, torch.ones(4, 3, 3, 3, device=device), residual=lazy.weight),
        "input": lambda: functional.max_pool2d(lazy.weight, 2),
        "linear: weight": lambda: functional.linear(x, torch.nn.LazyLinear(4).weight),
        "running_mean": lambda: functional.batch_norm(x, torch.nn.LazyBatchNorm2d().running_mean, torch.ones(3)),
        "other": lambda: functional.matmul(x, lazy.weight),
    }.items():
        with pytest.raises(ValueError, match=f"{name} has no shape yet: call the lazy layer that it is of"):
            call()


def test_what_counts_as_an_int_is_taken(backend, device):
    x, weight = torch.randn(2, 4, 8, 8, device=device), torch.randn(6, 2, 3, 3, device=device)
    two, one = np.int64(2), torch.Size([1, 1])
    y = functional.conv2d(x, weight, stride=two, padding=one, dilation=[1], groups=two)
    torch.testing.assert_close(y, F.conv2d(x, weight, stride=2, padding=1, groups=2))
    assert torch.equal(functional.max_pool2d(x, [two, two]), F.max_pool2d(x, 2))
    assert torch.equal(functional.max_pool2d(x, two, two), F.max_pool2d(x, 2))


def test_no_features_and_no_channels_are_taken(backend, device):
    assert torch.equal(functional.linear(torch.ones(5, 0, device=device), torch.ones(3, 0, device=device)),
                       torch.zeros(5, 3, device=device))  # fmt: skip
    assert functional.cross_channel_max_pool(torch.ones(2, 0, 3, device=device), 2).shape == (2, 0, 3)


def test_meta_tensors_give_shapes(backend):
    x = torch.empty(2, 4, 8, 8, device="meta")
    weight = torch.empty(6, 4, 3, 3, device="meta")
    with kernels.use_backend("auto"):
        assert functional.conv2d(x, weight).shape == (2, 6, 6, 6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda f, x, w: f.conv2d(x[0, 0], w),
            ValueError,
            r"conv2d: input must be \[N, C, H, W\].*2 dimensions: \(8, 8\)",
        ),
        (lambda f, x, w: f.conv2d(x, w[0]), ValueError, r"conv2d: weight must be.*\(4, 3, 3\)"),
        (
            lambda f, x, w: f.conv2d(x, w[:, :3]),
            ValueError,
            r"input must have 3 channels.*got 4.*\(2, 4, 8, 8\).*\(6, 3, 3, 3\)",
        ),
        (lambda f, x, w: f.conv2d(x, w[:, :1], groups=4), ValueError, r"groups must divide the output channels, 6"),
        (lambda f, x, w: f.conv2d(x, w, groups=0), ValueError, r"groups must be an int >= 1, got 0"),
        (lambda f, x, w: f.conv2d(x, w, w.new_zeros(5)), ValueError, r"bias must have shape \(6,\), got \(5,\)"),
        (
            lambda f, x, w: f.conv2d(x, w, dilation=4),
            ValueError,
            r"larger than the padded input: kernel_size \(3, 3\).*\(8, 8\)",
        ),
        (lambda f, x, w: f.conv2d(x, w, stride=0), ValueError, r"stride must be an int or 2 ints, each >= 1, got 0"),
        (
            lambda f, x, w: f.conv2d(x, w, stride=(1, 1, 1)),
            ValueError,
            r"stride must be an int or 2 ints.*got \(1, 1, 1\)",
        ),
        (
            lambda f, x, w: f.conv2d(x, w, padding=-1),
            ValueError,
            r"padding must be an int or 2 ints, each >= 0, got -1",
        ),
        (lambda f, x, w: f.conv2d(x, w, padding="some"), ValueError, r"'valid', 'same', 'full', got 'some'"),
        (lambda f, x, w: f.conv2d(x, w, stride=2, padding="same"), ValueError, r"padding='same' needs stride 1"),
        (
            lambda f, x, w: f.conv2d(x, w, activation="tanh"),
            ValueError,
            r"activation must be None or 'relu', got 'tanh'",
        ),
        (
            lambda f, x, w: f.conv2d(x.long(), w),
            TypeError,
            r"input must be float16, bfloat16, float32 or float64, got int64",
        ),
        (lambda f, x, w: f.conv2d(x.cfloat(), w), TypeError, r"got complex64"),
        (lambda f, x, w: f.conv2d(x, w.double()), TypeError, r"one dtype, got input float32 and weight float64"),
        (
            lambda f, x, w: f.conv2d(x, w.to("meta")),
            ValueError,
            r"one device, got input on (cpu|cuda:0) and weight on meta",
        ),
        (lambda f, x, w: f.conv2d(x.to_sparse(), w), TypeError, r"input must be a dense \(strided\) tensor"),
        (lambda f, x, w: f.conv2d(x.cpu().numpy(), w), TypeError, r"input must be a torch.Tensor, got ndarray"),
        (lambda f, x, w: f.conv2d(None, w), TypeError, r"conv2d: input must be a torch.Tensor, got NoneType"),
        (lambda f, x, w: f.conv2d(x, None), TypeError, r"conv2d: weight must be a torch.Tensor, got NoneType"),
        (lambda f, x, w: f.linear(x, None), TypeError, r"linear: weight must be a torch.Tensor, got NoneType"),
        (lambda f, x, w: f.max_pool2d(None, 2), TypeError, r"max_pool2d: input must be a torch.Tensor, got NoneType"),
        (lambda f, x, w: f.conv2d(x, w, False), TypeError, r"conv2d: bias must be a torch.Tensor, got bool"),
        (
            lambda f, x, w: f.conv2d(x, w, stride=1.5),
            ValueError,
            r"stride must be an int or 2 ints, each >= 1, got 1.5",
        ),
        (
            lambda f, x, w: f.conv2d(x, w, stride=None),
            ValueError,
            r"stride must be an int or 2 ints, each >= 1, got None",
        ),
        (lambda f, x, w: f.conv2d(x, w, dilation=True), ValueError, r"dilation must be .* got True"),
        (
            lambda f, x, w: f.max_pool2d(x, 2, padding="same"),
            ValueError,
            r"padding must be an int or 2 ints.* got 'same'",
        ),
        (lambda f, x, w: f.max_pool2d(x, 2.0), ValueError, r"kernel_size must be an int or 2 ints, each >= 1, got 2.0"),
        (lambda f, x, w: f.max_pool2d(x, 3, 1, 1, 9), ValueError, r"the window is larger than the padded input"),
        (
            lambda f, x, w: f.max_pool2d(x, 2, 1, 1, 9),
            ValueError,
            r"dilation must be at most the padded input's extent 8, got 9",
        ),
        (lambda f, x, w: f.max_pool2d(x[0, 0], 2), ValueError, r"max_pool2d: input must be"),
        (lambda f, x, w: f.max_pool2d(x, 9), ValueError, r"max_pool2d: the window is larger than the padded input"),
        (lambda f, x, w: f.max_pool2d(x, 2, padding=2), ValueError, r"at most half of kernel_size, got 2 for 2"),
        (
            lambda f, x, w: f.max_pool2d(x, 2, stride=0),
            ValueError,
            r"stride must be an int or 2 ints, each >= 1, got 0",
        ),
        (lambda f, x, w: f.avg_pool2d(None, 2), TypeError, r"avg_pool2d: input must be a torch.Tensor, got NoneType"),
        (lambda f, x, w: f.avg_pool2d(x.long(), 2), TypeError, r"avg_pool2d: input must be float16,.* got int64"),
        (lambda f, x, w: f.avg_pool2d(x[0, 0], 2), ValueError, r"avg_pool2d: input must be"),
        (
            lambda f, x, w: f.avg_pool3d(x, (5, 3, 3), padding=1),
            ValueError,
            r"avg_pool3d: kernel_size must be at most the input's \(4, 8, 8\), got \(5, 3, 3\)",
        ),
        (lambda f, x, w: f.avg_pool3d(x, 9), ValueError, r"avg_pool3d: the window is larger than the padded input"),
        (
            lambda f, x, w: f.avg_pool2d(x, 2, padding=2),
            ValueError,
            r"avg_pool2d: padding must be at most half of kernel_size",
        ),
        (
            lambda f, x, w: f.avg_pool1d(x[0], 2, stride=0),
            ValueError,
            r"avg_pool1d: stride must be an int or 1 ints, .* got 0",
        ),
        (
            lambda f, x, w: f.avg_pool2d(x, 2, divisor_override=0),
            ValueError,
            r"avg_pool2d: divisor_override must be None or an int other than 0, got 0",
        ),
        (lambda f, x, w: f.avg_pool3d(x, 2, divisor_override=2.5), ValueError, r"divisor_override must be .* got 2.5"),
        (
            lambda f, x, w: f.avg_pool2d(x[..., :0], 1),
            ValueError,
            r"no extent of 0 but the batch's, got \(2, 4, 8, 0\)",
        ),
        (lambda f, x, w: f.adaptive_avg_pool2d(x[:, :, :0], 1), ValueError, r"no extent of 0 .*, got \(2, 4, 0, 8\)"),
        (lambda f, x, w: f.adaptive_max_pool2d(x[:, :0], 1), ValueError, r"no extent of 0 .*, got \(2, 0, 8, 8\)"),
        (
            lambda f, x, w: f.adaptive_max_pool2d(None, 2),
            TypeError,
            r"adaptive_max_pool2d: input must be a torch.Tensor",
        ),
        (lambda f, x, w: f.adaptive_max_pool2d(x[0, 0], 2), ValueError, r"adaptive_max_pool2d: input must be"),
        (
            lambda f, x, w: f.adaptive_max_pool2d(x, -1),
            ValueError,
            r"output_size must be an int or 2 ints or None, each >= 0, got -1",
        ),
        (lambda f, x, w: f.adaptive_avg_pool2d(x, (3,)), ValueError, r"output_size must be .* got \(3,\)"),
        (lambda f, x, w: f.adaptive_avg_pool2d(x, (3, 3, 3)), ValueError, r"output_size must be .* got \(3, 3, 3\)"),
        (lambda f, x, w: f.adaptive_avg_pool2d(x, 2.0), ValueError, r"output_size must be .* got 2.0"),
        (lambda f, x, w: f.adaptive_avg_pool2d(x, "all"), ValueError, r"output_size must be .* got 'all'"),
        (lambda f, x, w: f.linear(x, w[0, 0, :, :2]), ValueError, r"linear: input must have 2 features, got 8"),
        (lambda f, x, w: f.linear(x, w), ValueError, r"weight \[out, in\]"),
        (lambda f, x, w: f.cross_channel_max_pool(x, 3), ValueError, r"pool_size must divide the channels, got 3"),
        (lambda f, x, w: f.cross_channel_max_pool(x, 0), ValueError, r"pool_size must be an int >= 1, got 0"),
    ],
)
def test_bad_input_is_one_clear_line(call, error, message, backend, device):
    x, w = torch.zeros(2, 4, 8, 8, device=device), torch.zeros(6, 4, 3, 3, device=device)
    launches = kernels.backend.launch_count()
    with pytest.raises(error, match=message) as caught:
        call(functional, x, w)
    assert "\n" not in str(caught.value)
    assert kernels.backend.launch_count() == launches
