"""Problems that nobody thought of: hypothesis draws windows, and all gradients must be the float64 twin's."""

import operator

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kernels.tuning import Tile, use_tile
from tests.kernels.problems import LAYOUTS, Pooling, Problem
from tests.kernels.test_conv import check as check_convolution
from tests.kernels.test_pool import check_average, check_max

pytest.importorskip("kernels.conv", reason="triton is not installed")
pytestmark = pytest.mark.usefixtures("triton_only")


@st.composite
def per_axis(draw, axes: int, least: int, most: int) -> tuple[int, ...]:
    return tuple(draw(st.integers(least, most)) for _ in range(axes))


@st.composite
def convolutions(draw) -> Problem:
    axes, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    most = {1: 40, 2: 12, 3: 6}[axes]
    problem = Problem(
        size=draw(per_axis(axes, 1, most)),
        kernel=draw(per_axis(axes, 1, 5)),
        batch=draw(st.integers(1, 3)),
        channels=groups * draw(st.integers(1, 18)),
        outputs=groups * draw(st.integers(1, 18)),
        stride=draw(per_axis(axes, 1, 4)),
        padding=draw(st.one_of(per_axis(axes, 0, 4), st.just("full"))),
        dilation=draw(per_axis(axes, 1, 3)),
        groups=groups,
        layout=draw(st.sampled_from(LAYOUTS if axes > 1 else ("contiguous", "strided", "expanded"))),
    )
    assume(all(extent >= 1 for extent in problem.window.output_size(problem.size)))
    return problem


@st.composite
def poolings(draw, dilated: bool) -> Pooling:
    axes = draw(st.integers(1, 3))
    kernel, dilation = draw(per_axis(axes, 1, 4)), draw(per_axis(axes, 1, 3 if dilated else 1))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    problem = Pooling(
        size=draw(per_axis(axes, 1, {1: 40, 2: 12, 3: 6}[axes])),
        kernel=kernel,
        stride=draw(per_axis(axes, 1, 5)),
        padding=padding,
        dilation=dilation,
        ceil_mode=draw(st.booleans()),
        count_include_pad=draw(st.booleans()),
        divisor=draw(st.sampled_from((None, None, 3))),
        channels=draw(st.integers(1, 20)),
        values=draw(st.sampled_from(("normal", "ties", "nan-and-infinite"))),
        layout=draw(st.sampled_from(LAYOUTS if axes > 1 else ("contiguous", "strided", "expanded"))),
    )
    assume(all(extent >= 1 for extent in problem.window.output_size(problem.size, problem.ceil_mode)))
    assume(all(p == 0 or d <= extent for d, extent, p in zip(dilation, problem.size, padding, strict=True)))
    return problem


@st.composite
def adaptive_poolings(draw) -> Pooling:
    axes = draw(st.integers(1, 3))
    most = {1: 40, 2: 12, 3: 6}[axes]
    return Pooling(
        size=draw(per_axis(axes, 1, most)),
        output=draw(per_axis(axes, 1, most)),
        channels=draw(st.integers(1, 20)),
        values=draw(st.sampled_from(("normal", "ties", "nan-and-infinite"))),
        layout=draw(st.sampled_from(LAYOUTS if axes > 1 else ("contiguous", "strided", "expanded"))),
    )


@settings(max_examples=60)
@given(problem=convolutions(), relu=st.booleans(), dtype=st.sampled_from((torch.float32, torch.float64, torch.float16)))
def test_convolution(problem, relu, dtype, device):
    check_convolution(problem, dtype, device, relu)


@settings(max_examples=25)
@given(problem=convolutions(), tile=st.sampled_from((Tile(16, 16, 16, splits=3), Tile(32, 16, 64, splits=2))))
def test_convolution_on_small_blocks(problem, tile, device):
    with use_tile(tile):
        check_convolution(problem, torch.float32, device, relu=True)


@settings(max_examples=60)
@given(problem=poolings(dilated=True), dtype=st.sampled_from((torch.float32, torch.float64, torch.bfloat16)))
def test_max_pooling(problem, dtype, device):
    check_max(problem, dtype, device)


@settings(max_examples=50)
@given(problem=poolings(dilated=False), dtype=st.sampled_from((torch.float32, torch.float64, torch.bfloat16)))
def test_average_pooling(problem, dtype, device):
    assume(len(problem.size) < 3 or all(map(operator.le, problem.kernel, problem.size)))  # else torch refuses it
    check_average(problem, dtype, device)


@settings(max_examples=50)
@given(problem=adaptive_poolings(), dtype=st.sampled_from((torch.float32, torch.float64, torch.bfloat16)))
def test_adaptive_pooling(problem, dtype, device):
    check_max(problem, dtype, device)
    check_average(problem, dtype, device)
