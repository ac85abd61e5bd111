"""Rows that are a box of the grid, loaded by a tensor descriptor: the same convolution; addresses where none fits."""

from dataclasses import replace
from math import prod

import pytest
import torch

from kernels import tuning
from kernels.tuning import Tile, use_tile
from tests.kernels.problems import Problem
from tests.kernels.test_conv import check

tl = pytest.importorskip("triton.language", reason="triton is not installed")
boxes = pytest.importorskip("kernels.boxes", reason="triton is not installed")
grid = pytest.importorskip("kernels.grid", reason="triton is not installed")
conv = pytest.importorskip("kernels.conv", reason="triton is not installed")

TILE = Tile(64, 16, 16, boxes=True)
REGULAR = [
    pytest.param(Problem((9, 7), (3, 3), padding=1, channels=16, outputs=16), id="2-d"),
    pytest.param(Problem((9, 7), (3, 3), padding="full", channels=32, outputs=48, batch=1), id="full-batch-1"),
    pytest.param(Problem((12, 11), (3, 2), dilation=(2, 3), padding=(2, 1), channels=16, outputs=16), id="dilation"),
    pytest.param(Problem((7, 6), (3, 3), padding=1, channels=32, outputs=32, groups=2), id="grouped"),
    pytest.param(Problem((5, 4), (4, 2), padding="same", channels=16, outputs=32, batch=5), id="same-even-window"),
    pytest.param(Problem((17,), (4,), padding=2, channels=16, outputs=16), id="1-d"),
    pytest.param(Problem((4, 6, 5), (3, 2, 3), padding=1, channels=16, outputs=16), id="3-d"),
    pytest.param(Problem((), (), channels=32, outputs=16, batch=7), id="linear"),
    pytest.param(Problem((9, 7), (3, 3), padding=1, channels=16, outputs=16, layout="expanded"), id="expanded"),
]
IRREGULAR = [
    pytest.param(Problem((9, 7), (3, 3), channels=16, outputs=16, batch=0), id="empty-batch"),
    pytest.param(Problem((9, 7), (3, 3), stride=2, padding=1, channels=16, outputs=16), id="stride"),
    pytest.param(Problem((9, 7), (3, 3), padding=1, channels=20, outputs=20), id="channels-over-a-step"),
    pytest.param(Problem((7, 9), (3, 3), padding=1, channels=16, outputs=16, tile=(2, 3)), id="tiled"),
]


@pytest.fixture
def described(monkeypatch) -> list[bool]:
    """For each launch with TILE, whether it was given boxes."""
    if not boxes.has_tma(tuning.target()):
        pytest.skip(f"{tuning.target()} has no TMA")
    found = []
    make = boxes.boxes

    def note(*arguments):
        made = make(*arguments)
        found.append(made is not None)
        return made

    monkeypatch.setattr(boxes, "boxes", note)
    return found


@pytest.mark.parametrize("problem", REGULAR)
def test_boxes_agree_with_float64(problem, device, described, triton_only):
    with use_tile(TILE):
        check(problem, torch.float32, device, relu=False)
    assert described == [True, True]  # the convolution and its transpose


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_boxes_of_16_bits(dtype, device, described, triton_only):
    with use_tile(TILE):
        check(REGULAR[0].values[0], dtype, device, relu=False)
    assert described == [True, True]


def test_boxes_where_addresses_need_64_bits(device, described, triton_only, monkeypatch):
    """TMA counts in 32 bits, whatever the tensors."""
    monkeypatch.setattr(grid, "index_type", lambda *_, **__: tl.int64)
    with use_tile(TILE):
        check(REGULAR[3].values[0], torch.float32, device, relu=False)
    assert described == [True, True]


@pytest.mark.parametrize("problem", IRREGULAR)
def test_addresses_where_no_box_fits(problem, device, described, triton_only):
    with use_tile(TILE):
        check(problem, torch.float32, device, relu=False)
    assert described == [False, False]


def test_addresses_where_the_gradient_has_a_mask_and_where_candidates_are_pooled(device, described, triton_only):
    problem = REGULAR[0].values[0]
    x, weight, bias, dy = (t.float() for t in problem.tensors(device))
    pool = Problem((9, 7), (2, 2), stride=2).window
    results = []
    for tile in (TILE, replace(TILE, boxes=False)):
        with use_tile(tile):
            dx = conv.transpose(dy, weight, None, dy, problem.window, problem.size, False)
            results.append((dx, *conv.forward_max(x, weight, bias, problem.window, True, pool, (4, 3), 1)))
    assert described == [False, False]
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize(
    ("rows", "grid", "expected"),
    [
        (128, (32, 1, 28, 28), (8, 1, 4, 4)),  # no position is computed in vain
        (128, (32, 1, 14, 14), (32, 1, 2, 2)),
        (128, (1, 1, 56, 56), (1, 1, 8, 16)),
        (64, (1000, 1, 1, 1), (64, 1, 1, 1)),
        (256, (32, 1, 7, 7), (32, 1, 1, 8)),
    ],
)
def test_the_box_wastes_least_and_is_compact(rows, grid, expected):
    assert prod(expected) == rows and boxes.box(rows, grid) == expected
