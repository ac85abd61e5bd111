import math

import pytest
import torch
from torch.testing import assert_close

from lightning_modules.gabor import fit_gabor, is_gabor, principal_kernel
from lightning_modules.metrics import GaborLikeness


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    """Ten kernels of two channels: four wavelets, four of white noise, and two dead ones."""
    y, x = torch.meshgrid(torch.arange(9.0) - 4, torch.arange(9.0) - 4, indexing="ij")
    wavelets = [torch.exp(-(x.square() + y.square()) / 6) * torch.cos(1.6 * x + phase) for phase in range(4)]
    noise = torch.randn(4, 9, 9, generator=torch.Generator().manual_seed(0))
    kernels = torch.stack([*wavelets, *noise, 0 * x, 1e-6 * noise[0]])
    return torch.stack([kernels, -0.5 * kernels], 1)


def test_scores(weight):
    metric = GaborLikeness()
    metric.update(weight)
    scores = metric.compute()

    fit = fit_gabor(principal_kernel(weight)[0])
    assert set(scores) == {
        "mean_r2", "median_r2", "fraction_above_null", "fraction", "orientation_entropy", "bandwidth_octaves", "n_x",
        "n_y", "dead",
    }  # fmt: skip
    assert all(score.ndim == 0 and score.is_floating_point() for score in scores.values())
    assert_close(scores["mean_r2"], fit.r2[:8].mean().float())
    assert_close(scores["median_r2"], fit.r2[:8].quantile(0.5).float())
    assert is_gabor(fit).tolist() == [True] * 4 + [False] * 6
    assert scores["fraction"] == pytest.approx(0.4)
    assert scores["dead"] == 2

    table = metric.table()
    assert all(column.shape == (10,) for column in table.values())
    assert table["dead"].tolist() == [0] * 8 + [1] * 2
    assert_close(table["r2"], fit.r2)
    assert_close(table["share"][:8], torch.ones(8, dtype=torch.float64), rtol=0, atol=1e-6)


def test_updates_accumulate(weight):
    """The null model's phase-scrambled kernels are those of a layer, all else is each kernel's own."""
    once, twice = GaborLikeness(), GaborLikeness()
    once.update(weight)
    twice.update(weight[::2])
    twice.update(weight[1::2])
    for name in ("mean_r2", "median_r2", "fraction", "dead"):
        assert_close(twice.compute()[name], once.compute()[name], rtol=0, atol=1e-6)


def test_reset_and_forward(weight):
    metric = GaborLikeness()
    metric.update(weight[4:8])
    metric.reset()
    assert metric(weight[:4])["fraction"] == 1
    assert metric(weight[4:8])["fraction"] == 0
    assert metric.compute()["fraction"] == pytest.approx(0.5)


def test_gathers_the_kernels_of_all_processes(weight):
    metric = GaborLikeness(distributed_available_fn=lambda: True, dist_sync_fn=lambda state, group: [state, state])
    metric.update(weight)
    metric.update(weight[:4])
    scores = metric.compute()
    assert scores["fraction"] == pytest.approx(8 / 14)
    assert scores["dead"] == 4


def test_takes_the_parameter_of_a_layer():
    conv = torch.nn.Conv2d(3, 4, (7, 9)).half()
    metric = GaborLikeness()
    metric.update(conv.weight)
    assert 0 < metric.compute()["mean_r2"] < 0.7
    assert not metric.kernels[0].requires_grad


def test_all_dead():
    metric = GaborLikeness()
    metric.update(torch.zeros(3, 1, 7, 7))
    scores = {name: score.item() for name, score in metric.compute().items()}
    assert {name: score for name, score in scores.items() if score == score} == {
        "mean_r2": 0, "median_r2": 0, "fraction_above_null": 0, "fraction": 0, "dead": 3
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_to_score():
    with pytest.raises(ValueError, match=r"no kernels to score: call update\(weight\) first"):
        GaborLikeness().compute()


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (torch.ones(4, 3, 5, 5), ValueError, r"5x5 window, .* needs 7x7 or more: white noise .* 0\.48 in 5x5"),
        (torch.ones(4, 3, 11, 3), ValueError, r"11x3 window"),
        (torch.ones(4, 11, 11), ValueError, r"weight must be \[O, C, kh, kw\] and not empty, got shape \[4, 11, 11\]"),
        (torch.ones(4, 1, 7, 7, dtype=torch.int32), TypeError, r"weight must be a floating-point .*torch\.int32"),
        (torch.full((4, 1, 7, 7), math.nan), ValueError, r"weight \[4, 1, 7, 7\] must be finite, got NaN or inf"),
    ],
    ids=["small", "narrow", "rank", "integers", "NaN"],
)
def test_wrong_weights(value, error, message):
    with pytest.raises(error, match=message):
        GaborLikeness().update(value)
