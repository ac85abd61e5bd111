import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from lightning_modules.gabor_score import likeness
from lightning_modules.pictures import ANIMATED_CELL, CELL, GAP, fit_grid, frame, kernel_grid, save_growth, shown
from tests.full_disk import full_disk


def test_zero_is_grey_and_the_largest_weight_white_or_black():
    weight = torch.zeros(2, 1, 7, 7)
    weight[0, 0, 2, 3], weight[1, 0, 0, 0] = 0.01, -5.0
    block = -(-CELL // 7)
    image = kernel_grid(weight)
    first = image[:, GAP : GAP + 7 * block, GAP : GAP + 7 * block]
    second = image[:, GAP : GAP + 7 * block, 2 * GAP + 7 * block : -GAP]
    for kernel, value, (row, column) in ((first, 255, (2, 3)), (second, 0, (0, 0))):
        expected = torch.full((7, 7), 128, dtype=torch.uint8)
        expected[row, column] = value
        assert torch.equal(kernel, expected.repeat_interleave(block, 0).repeat_interleave(block, 1)[None])


def test_three_channels_are_colours():
    weight = torch.zeros(1, 3, 7, 7)
    weight[0, 2] = 1.0
    red, green, blue = kernel_grid(weight)[:, CELL // 2, CELL // 2]
    assert (red, green, blue) == (128, 128, 255)


def test_many_channels_are_columns_and_capped():
    block = -(-CELL // 3)
    assert kernel_grid(torch.randn(5, 20, 3, 3)).shape == (1, 5 * (3 * block + GAP) + GAP, 12 * (3 * block + GAP) + GAP)


def test_a_dead_kernel_is_grey():
    assert (kernel_grid(torch.zeros(1, 1, 7, 7)) == 128).all()


def test_a_true_gabor_is_its_own_fit():
    y, x = torch.meshgrid(torch.arange(11.0) - 5, torch.arange(11.0) - 5, indexing="ij")
    weight = (torch.exp(-(x.square() + y.square()) / 12) * torch.cos(1.2 * x + 0.3))[None, None]
    image = fit_grid(likeness(weight))  # a single cell has no border
    side, gap = 11 * 6, GAP // 4
    kernel, fit, rest = (image[:, :, start : start + side] for start in (0, side + gap, 2 * (side + gap)))
    assert (kernel.int() - fit.int()).abs().max() <= 1
    assert (rest.int() - 128).abs().max() <= 1


def test_the_best_come_first():
    y, x = torch.meshgrid(torch.arange(9.0) - 4, torch.arange(9.0) - 4, indexing="ij")
    gabor = torch.exp(-(x.square() + y.square()) / 8) * torch.cos(1.4 * x)
    noise = torch.randn(9, 9, generator=torch.Generator().manual_seed(0))
    image = fit_grid(likeness(torch.stack([noise, gabor])[:, None]))
    alone = fit_grid(likeness(gabor[None, None]))
    torch.testing.assert_close(image[:, GAP:-GAP, GAP : GAP + alone.shape[2]], alone)


def test_of_thousands_of_kernels_some_are_shown_the_best_and_the_worst_among_them():
    weight = torch.randn(1000, 1, 7, 7, generator=torch.Generator().manual_seed(3))
    found = likeness(weight, scrambled=False)
    r2 = found.fit.r2[shown(found)]
    assert len(r2) == 144 and torch.equal(r2, r2.sort(descending=True).values)
    assert r2[0] == found.fit.r2.max() and r2[-1] == found.fit.r2.min()
    assert fit_grid(found).shape[1] == 36 * (7 * -(-CELL // 7) + GAP) + GAP
    assert kernel_grid(weight).shape[1] == 18 * (7 * -(-CELL // 7) + GAP) + GAP


def test_a_layer_on_one_scale():
    weight = torch.zeros(2, 1, 7, 7)
    weight[0, 0, 3, 3], weight[1, 0, 3, 3] = 1.0, 0.5
    middle = GAP + 3 * 10 + 5
    image = kernel_grid(weight, "layer")
    assert image[0, middle, middle] == 255 and image[0, middle, middle + 7 * 10 + GAP] == 191


def test_an_animation_that_cannot_be_written_leaves_the_old_one(tmp_path):
    frames = [frame(torch.randn(6, 1, 7, 7)) for _ in range(2)]
    save_growth(frames, tmp_path / "growth.gif")
    before = (tmp_path / "growth.gif").read_bytes()
    with full_disk(1000), pytest.raises(OSError, match="growth.gif cannot be written"):
        save_growth(frames, tmp_path / "growth.gif")
    assert (tmp_path / "growth.gif").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_growth_is_an_animation(tmp_path):
    weights = [scale * torch.randn(6, 1, 7, 7, generator=torch.Generator().manual_seed(1)) for scale in (1, 2)]
    other = torch.randn(6, 1, 7, 7, generator=torch.Generator().manual_seed(2))
    frames = [frame(weight) for weight in (*weights, other)]
    assert frames[0].dtype == torch.uint8 and torch.equal(frames[0], frames[1])
    save_growth(frames, tmp_path / "growth.gif")
    with Image.open(tmp_path / "growth.gif") as animation:
        shown = [np.asarray(each.convert("L"), dtype=float) for each in ImageSequence.Iterator(animation)]
        pauses = [each.info["duration"] for each in ImageSequence.Iterator(animation)]
    expected = kernel_grid(other, cell=ANIMATED_CELL)[0].numpy().astype(float)
    assert np.abs(shown[-1] - expected).max() <= 2  # levels of 255
    assert sum(pauses) == 400 + 400 + 5 * 400 and pauses[-1] == 5 * 400
