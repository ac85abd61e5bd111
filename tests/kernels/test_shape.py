"""Shape arithmetic against torch's own, over a grid of windows."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from kernels.checks import make_window
from kernels.shape import Window, is_channels_last, memory_format, to_channels_last

GRID = list(itertools.product((1, 5, 8), (1, 2, 3), (1, 2, 4), (0, 1), (1, 2)))


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_output_size_is_torchs(ceil_mode):
    compared = 0
    for size, kernel, stride, padding, dilation in GRID:
        if padding > (dilation * (kernel - 1) + 1) // 2 or size + 2 * padding < dilation * (kernel - 1) + 1:
            continue
        window = make_window("test", (kernel,), stride, padding, dilation)
        expected = F.max_pool1d(torch.zeros(1, 1, size), kernel, stride, padding, dilation, ceil_mode).shape[2]
        assert window.output_size((size,), ceil_mode) == (expected,)
        compared += 1
    assert compared > 60


@pytest.mark.parametrize("stride", range(1, 5))
@pytest.mark.parametrize("dilation", range(1, 5))
def test_taps_that_reach_an_input_are_the_lattice_that_the_window_says(stride, dilation):
    window = make_window("test", (7,), stride, 3, dilation)
    (before, _), (common,), (every,), (inverse,) = window.padding[0], window.common, window.every, window.inverse
    for i in range(12):
        position = i + before
        reaching = [tap for tap in range(7) if (position - tap * dilation) % stride == 0]
        first = position % stride // common * inverse % every
        assert reaching == ([] if position % common else list(range(first, 7, every)))
        assert len(reaching) <= window.reach((12,), (1,))[0]
        outputs = [(position - tap * dilation) // stride for tap in reaching]
        assert all(b - a == window.back[0] for a, b in itertools.pairwise(outputs))


def test_parts_that_a_grid_is_divided_into_are_those_that_the_window_says():
    for extent, parts in itertools.product(range(1, 14), range(1, 14)):
        members = [range(p * extent // parts, -(-(p + 1) * extent // parts)) for p in range(parts)]
        window = Window.dividing((extent,), (parts,))
        assert all(1 <= len(member) <= window.kernel[0] for member in members)
        assert (len(set(map(len, members))) == 1) >= (not window.fixed_where_even((extent,), (parts,)).adaptive)
        for i in range(extent):
            reaching = [p for p, member in enumerate(members) if i in member]
            assert reaching == list(range(i * parts // extent, -(-(i + 1) * parts // extent)))
            assert len(reaching) <= window.reach((extent,), (parts,))[0]


def test_named_padding():
    pairs = {name: make_window("test", (4, 3), 1, name, (2, 1)).padding for name in ("valid", "same", "full")}
    assert pairs == {"valid": ((0, 0), (0, 0)), "same": ((3, 3), (1, 1)), "full": ((6, 6), (2, 2))}
    assert make_window("test", (4,), 1, "same", 1).padding == ((1, 2),)


def test_lifting_adds_axes_of_extent_one():
    lifted = Window((3,), (2,), ((1, 0),), (2,), groups=2).lifted()
    assert lifted == Window((1, 1, 3), (1, 1, 2), ((0, 0), (0, 0), (1, 0)), (1, 1, 2), groups=2, tile=(1, 1, 1))
    assert lifted.edges == (False, False, True)


@pytest.mark.parametrize("axes", [0, 1, 2, 3])
def test_a_window_survives_being_flattened(axes):
    padding = tuple((axis, 2 * axis) for axis in range(axes))
    window = Window((3,) * axes, (2,) * axes, padding, (1,) * axes, groups=4, tile=(5,) * axes, adaptive=True)
    assert Window.from_flat(window.flat) == window


@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 3, 4, 5, 6)], ids=str)
def test_memory_is_made_channels_last(shape):
    x = torch.randn(shape)
    last = to_channels_last(x)
    assert torch.equal(last, x) and is_channels_last(last) and (len(shape) < 3) == is_channels_last(x)
    assert to_channels_last(last).data_ptr() == last.data_ptr()
    assert len(shape) < 2 or last.movedim(1, -1).is_contiguous()


def test_a_memory_format_is_that_of_any_tensor():
    x = torch.randn(2, 3, 4, 5)
    last = x.to(memory_format=torch.channels_last)
    assert memory_format(x, last) == torch.channels_last and memory_format(x) == torch.contiguous_format


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)[0].unsqueeze(0),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)[:1],
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).select(3, 0).unsqueeze(3),
        torch.randn(1, 2, 4, 1).permute(0, 3, 1, 2).contiguous().permute(0, 2, 1, 3),
        torch.randn(2, 3, 1, 1).to(memory_format=torch.channels_last),
    ],
    ids=lambda x: str((tuple(x.shape), x.stride())),
)
def test_axes_of_one_position_tell_of_a_format_as_in_torch(x):
    expected = F.max_pool2d(x, 1).stride()
    assert torch.empty(x.shape, memory_format=memory_format(x)).stride() == expected


@pytest.mark.parametrize(
    ("window", "covers"),
    [
        (Window((5, 6), (3, 1), ((0, 0), (0, 0)), (1, 1)), True),
        (Window((5, 5), (1, 1), ((0, 0), (0, 0)), (1, 1)), False),
        (Window((5, 6), (1, 1), ((1, 0), (0, 0)), (1, 1)), False),
        (Window((5, 6), (1, 1), ((0, 0), (0, 0)), (2, 1)), False),
        (Window((5, 6), (1, 1), ((0, 0), (0, 0)), (1, 1), groups=2), False),
        (Window((5, 6), (1, 1), ((0, 0), (0, 0)), (1, 1), tile=(2, 1)), False),
    ],
    ids=["covers", "smaller", "padded", "dilated", "grouped", "tiled"],
)
def test_a_window_that_covers_its_grid(window, covers):
    assert window.covers((5, 6)) == covers
