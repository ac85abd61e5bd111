import socket

import pytest
import torch

from lightning_modules.data.photographs import GAP, GREY, NATURAL, PHOTOGRAPHS, divide, parts, photograph


def test_photographs_are_shipped(monkeypatch):
    def refuse(*args):
        raise AssertionError("a download was tried")

    monkeypatch.setattr(socket, "socket", refuse)
    for name in PHOTOGRAPHS:
        picture = photograph(name, color=name not in GREY)
        assert picture.dtype == torch.float32 and picture.shape[0] == (1 if name in GREY else 3)
        assert 0 <= picture.min() and picture.max() <= 1 and picture.max() > 0.5


@pytest.mark.parametrize("name", NATURAL)
def test_grey_is_a_mean_of_the_colours(name):
    color, grey = photograph(name, color=True), photograph(name, color=False)
    assert grey.shape == (1, *color.shape[1:])
    assert (color.amin(0) <= grey[0] + 1e-6).all() and (grey[0] <= color.amax(0) + 1e-6).all()


def test_blocks_lie_in_the_picture_with_gaps_between():
    height, width = 191, 384
    taken = torch.zeros(height, width)
    for top, left, rows, columns in divide(height, width).tolist():
        assert top + rows <= height and left + columns <= width
        taken[max(top - GAP, 0) : top + rows + GAP, max(left - GAP, 0) : left + columns + GAP] += 0.5
        assert (taken[top : top + rows, left : left + columns] == 0.5).all()
        taken[top : top + rows, left : left + columns] = 1
    assert (taken > 0).all()


def places(part, which: torch.Tensor, size: tuple[int, int]) -> set[int]:
    return set(part.places(which, size, torch.Generator().manual_seed(0)).flatten().tolist())


def test_no_pixel_is_in_two_splits():
    pictures = [torch.zeros(1, 100, 140), torch.zeros(1, 130, 90)]
    train, val, test = (places(part, torch.arange(400) % 2, (5, 7)) for part in parts(pictures, split_seed=3))
    assert train.isdisjoint(val | test) and val.isdisjoint(test)
    assert len(train) > 2 * len(val) and len(val) > 1000 and len(test) > 1000


def test_crops_are_windows_of_their_picture():
    pictures = [torch.arange(2.0 * 100 * 140).view(2, 100, 140), -torch.arange(1, 1 + 2.0 * 130 * 90).view(2, 130, 90)]
    which = torch.tensor([1, 0, 0, 1])
    part = parts(pictures, split_seed=0)[0]
    for crop, index in zip(part.crops(which, (4, 6)), which.tolist(), strict=True):
        top, left = (pictures[index][0] == crop[0, 0, 0]).nonzero()[0].tolist()
        assert torch.equal(crop, pictures[index][:, top : top + 4, left : left + 6])


def test_every_block_is_reached_to_its_edges():
    part = parts([torch.zeros(1, 60, 80)], split_seed=0)[1]
    rows, columns = 60, 80
    expected = {
        row * columns + column
        for top, left, height, width in part.blocks[0].tolist()
        for row in range(top, top + height)
        for column in range(left, left + width)
    }
    assert rows * columns > len(expected) and places(part, torch.zeros(3000, dtype=torch.long), (3, 3)) == expected
