"""Tiles: legal for every problem and target, looked up before they are computed, and forced for a block only."""

import itertools
import json
from importlib import resources

import pytest
import torch

from kernels import tuning
from kernels.tuning import Tile, use_tile

LARGEST_BLOCK = 2**20  # elements, of Triton
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
OPERATIONS = ("forward", "forward_max", "transpose", "transpose_tiled", "weight_gradient")
EXTENTS = (1, 3, 16, 37, 96, 512, 4096, 100_352)
TABLES = sorted(path.name for path in (resources.files("kernels") / "tuned").iterdir())


@pytest.mark.parametrize("target", ["interpreter", "sm_90", "gfx942"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_heuristic_gives_legal_tiles(operation, target):
    for rows, columns, depth, taps in itertools.product(EXTENTS, EXTENTS, EXTENTS, (1, 9, 49)):
        tile = tuning.heuristic(target, operation, torch.float32, rows, columns, depth, taps)
        assert all(side >= 16 and side & (side - 1) == 0 for side in (tile.m, tile.n, tile.k))
        assert max(tile.m * tile.k, tile.k * tile.n, tile.m * tile.n) <= LARGEST_BLOCK
        assert tile.splits >= 1 and (operation == "weight_gradient" or tile.splits == 1)


def test_gpu_steps_are_one_tap_where_a_block_divides_the_channels():
    for channels in (16, 48, 64, 96, 128):
        for dtype in DTYPES:
            assert channels % tuning.heuristic("sm_90", "forward", dtype, 4096, 128, channels, 9).k == 0
            assert channels % tuning.heuristic("sm_90", "weight_gradient", dtype, 128, channels, 4096, 9).n == 0


def test_a_window_over_one_channel_is_folded():
    interpreted = tuning.heuristic("interpreter", "forward", torch.float32, 8192, 16, 1, 49)
    compiled = tuning.heuristic("sm_90", "forward", torch.float16, 8192, 16, 1, 49)
    assert -(-49 // interpreted.k) == 1 and -(-49 // compiled.k) == 2  # loop trips, not 49


def test_a_forced_tile_ends_with_its_block():
    problem = ("forward", torch.float32, 100, 8, 8, 9)
    usual, forced = tuning.tile(*problem), Tile(16, 32, 64)
    with pytest.raises(KeyError), use_tile(forced):
        assert tuning.tile(*problem) == forced == tuning.pool_tile(100, 8)
        raise KeyError
    assert tuning.tile(*problem) == usual != forced


@pytest.mark.parametrize("name", TABLES)
def test_recorded_tiles_say_where_they_come_from_and_are_used(name, monkeypatch):
    monkeypatch.setattr(tuning, "target", lambda: name.removesuffix(".json"))
    records = json.loads((resources.files("kernels") / "tuned" / name).read_text())["records"]
    assert records
    for record in records:
        assert record["source"].startswith(("measured", "estimate"))
        problem = [record[key] for key in ("rows", "columns", "depth", "taps", "groups")]
        tile = tuning.tile(record["operation"], getattr(torch, record["dtype"]), *problem)
        assert tile == Tile(**record["tile"])
        assert tile != tuning.heuristic(tuning.target(), record["operation"], getattr(torch, record["dtype"]), *problem)
