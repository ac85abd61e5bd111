"""Tiles: legal for every problem and target, looked up before they are computed, and forced for a block only."""

import itertools
from dataclasses import replace
from importlib import resources

import pytest
import torch

from kernels import backend, heuristics, table, tuning
from kernels.checks import make_window
from kernels.tile import ITEMSIZES, OPERATIONS, Product, Tile, fault
from kernels.tuning import use_tile

pytest.importorskip("kernels.conv", reason="triton is not installed")
from kernels import norm, pool  # noqa: E402
from kernels.problem import OPERATIONS as OPERATIONS_OF_A_LAYER  # noqa: E402
from kernels.problem import Problem  # noqa: E402

EXTENTS = (0, 1, 3, 16, 37, 64, 300, 4096, 100_352)
TABLES = sorted(path.name for path in (resources.files("kernels") / "tuned").iterdir())


@pytest.mark.parametrize("target", ["interpreter", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_heuristic_gives_legal_tiles(dtype, operation, target):
    for rows, columns, depth, taps, groups in itertools.product(EXTENTS, EXTENTS, EXTENTS, (1, 49, 729), (1, 8)):
        product = Product(operation, dtype, rows, columns, depth, taps, groups)
        assert not fault(product, heuristics.choose(target, product))


def test_gpu_steps_are_one_tap_where_a_block_divides_the_channels():
    for channels in (16, 48, 64, 96, 128):
        for dtype, itemsize in ITEMSIZES.items():
            assert channels % heuristics.choose("sm_90", Product("forward", dtype, 4096, 128, channels, 9)).k == 0
            if itemsize > 2:  # else 16 bytes are of one tap, which is enough
                gradient = Product("weight_gradient", dtype, 128, channels, 4096, 9)
                assert channels % heuristics.choose("sm_90", gradient).n == 0


def test_a_window_over_one_channel_is_folded():
    interpreted = heuristics.choose("interpreter", Product("forward", "float32", 8192, 16, 1, 49))
    compiled = heuristics.choose("sm_90", Product("forward", "float16", 8192, 16, 1, 49))
    assert -(-49 // interpreted.k) == 1 and -(-49 // compiled.k) == 2  # loop trips, not 49


def test_a_forced_tile_ends_with_its_block(monkeypatch):
    monkeypatch.setattr(tuning, "target", lambda device=None: "sm_90")
    problem = ("forward", torch.float32, 100, 8, 8, 9)
    usual, forced = tuning.tile(*problem), Tile(16, 32, 64)
    with pytest.raises(KeyError), use_tile(forced):
        assert tuning.tile(*problem) == forced == tuning.pool_tile(100, 8, 4)
        raise KeyError
    assert tuning.tile(*problem) == usual != forced


def test_a_choice_is_looked_up_once(monkeypatch):
    calls = []
    monkeypatch.setattr(tuning, "target", lambda device=None: "sm_90")
    choose = heuristics.choose
    monkeypatch.setattr(heuristics, "choose", lambda *args: calls.append(args) or choose(*args))
    problem = ("forward", torch.float32, 12_345, 67, 89, 9)
    assert tuning.tile(*problem) is tuning.tile(*problem)
    assert len(calls) == 1


def test_a_record_holds_for_its_class_and_is_preferred(monkeypatch, tmp_path):
    product, tile = Product("weight_gradient", "float16", 64, 32, 1100, 9), Tile(16, 32, 64, splits=5)
    monkeypatch.setattr(table, "TUNED", tmp_path)
    (tmp_path / "sm_12.json").write_text(table.dumps("sm_12", [table.Record("", product, tile, {"kind": "estimate"})]))
    monkeypatch.setattr(tuning, "target", lambda device=None: "sm_12")
    of_depth = lambda depth: tuning.tile("weight_gradient", torch.float16, 64, 32, depth, 9)  # noqa: E731
    assert of_depth(1100) == of_depth(1024) == of_depth(1279) == tile
    near, far = of_depth(1280), of_depth(64 * 1100)
    assert replace(near, splits=tile.splits) == tile != replace(far, splits=tile.splits)


def test_tiles_are_for_the_device_of_the_tensors_not_the_current_one(monkeypatch):
    """A process with two kinds of GPU: launchers name the device of their tensors, and each gets its architecture."""
    asked = []
    monkeypatch.setattr(tuning, "target", lambda device=None: asked.append(device) or "sm_90")
    monkeypatch.setattr(backend, "launch", lambda *_, **__: None)
    problem = Problem(4, 8, 16, (9, 9), make_window("conv2d", (3, 3), 2, 1, 1), torch.float32)
    tensors = x, _, _ = problem.tensors("meta")
    for operation in OPERATIONS_OF_A_LAYER:
        problem.run(operation, *tensors)
    pool.max_pool(x, make_window("max_pool2d", (3, 3), 3, 0, 1), (3, 3))
    norm.batch_norm(x, None, None, None, None, None, None, 1e-5, False)
    assert len(asked) >= 5 and set(asked) == {torch.device("meta")}


def test_each_device_has_its_own_architecture(monkeypatch):
    monkeypatch.setattr(backend, "INTERPRETING", False)
    monkeypatch.setattr(tuning, "_architecture", ["sm_80", "sm_90"].__getitem__)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    devices = (None, torch.device("cuda"), torch.device("cuda:0"), torch.device("cuda:1"))
    assert [tuning.target(device) for device in devices] == ["sm_80", "sm_80", "sm_80", "sm_90"]


def test_products_are_what_launchers_ask_for():
    problem = Problem(4, 8, 6, (9, 9), make_window("conv2d", (3, 3), 2, 1, 1, 2, ()), torch.float16)
    with tuning.products_of("sm_90") as products:
        for operation in OPERATIONS_OF_A_LAYER:
            problem.run(operation, *problem.tensors("meta"))
    assert products == [
        Product("forward", "float16", 100, 3, 4, 9, 2),
        Product("transpose", "float16", 100, 4, 3, 9, 2, phases=4),
        Product("weight_gradient", "float16", 3, 4, 100, 9, 2),
    ]


@pytest.mark.parametrize("name", TABLES)
def test_recorded_tiles_are_sound_and_used(name, monkeypatch):
    target = name.removesuffix(".json")
    monkeypatch.setattr(tuning, "target", lambda device=None: target)
    found = table.read(table.path_of(target), target)
    assert found.records and not found.faults
    for record in found.records.values():
        p = record.product
        assert record.source["date"]
        extents = (p.rows, p.columns, p.depth, p.taps, p.groups, p.phases)
        assert tuning.tile(p.operation, getattr(torch, p.dtype), *extents) == record.tile


LAYERS = [
    pytest.param("forward", 3136, 64, 64, 9, 1, id="3x3-64-at-56"),
    pytest.param("forward", 49, 2048, 512, 1, 1, id="1x1-at-7"),
    pytest.param("transpose", 784, 128, 128, 9, 4, id="transpose-of-stride-2"),
    pytest.param("weight_gradient", 196, 256, 256, 9, 1, id="weight-gradient-at-14"),
    pytest.param("forward", 1, 1000, 2048, 1, 1, id="linear"),
]


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize(("operation", "positions", "columns", "depth", "taps", "phases"), LAYERS)
def test_another_batch_or_size_has_the_same_block(
    operation, positions, columns, depth, taps, phases, target, monkeypatch
):
    """A block is a constant of a kernel. How many splits there are is none, but whether there are several is."""
    monkeypatch.setattr(tuning, "target", lambda device=None: target)

    def constants(batch: int, positions: int) -> tuple[object, ...]:
        rows = batch * positions
        extents = (columns, depth, rows) if operation == "weight_gradient" else (rows, columns, depth)
        tile = tuning.tile(operation, torch.float16, *extents, taps, phases=phases, batch=batch)
        return replace(tile, splits=1), tile.splits > 1

    usual = constants(32, positions)
    assert {constants(batch, positions) for batch in (9, 17, 33, 64, 80, 128)} == {usual}
    if positions > 1:
        assert {constants(32, round(positions * factor)) for factor in (0.52, 0.75, 1.3, 1.9)} == {usual}
    assert constants(3, positions) == constants(8, positions)


def test_splits_follow_the_positions():
    product = Product("weight_gradient", "float16", 64, 64, 2**17, 9)
    tile = Tile(64, 64, 32, 4, 4, splits=7)
    many, few = (heuristics.split("sm_90", product.with_positions(count), tile) for count in (2**20, 2**12))
    assert many.splits > few.splits > 1 and replace(many, splits=7) == replace(few, splits=7) == tile
    assert heuristics.split("sm_90", product, replace(tile, splits=1)).splits == 1
    assert heuristics.split("sm_90", product.with_positions(1), tile).splits > 1  # shares of nothing are zeros


@pytest.mark.parametrize("tuned", [32, 128])
def test_a_record_holds_for_other_batches(tuned, monkeypatch, tmp_path):
    product, tile = Product("forward", "float16", tuned * 784, 128, 128, 9), Tile(64, 32, 32, 4, 3)
    monkeypatch.setattr(table, "TUNED", tmp_path)
    (tmp_path / "sm_13.json").write_text(table.dumps("sm_13", [table.Record("", product, tile, {"kind": "estimate"})]))
    monkeypatch.setattr(tuning, "target", lambda device=None: "sm_13")
    of_batch = lambda batch: tuning.tile("forward", torch.float16, batch * 784, 128, 128, 9, batch=batch)  # noqa: E731
    assert {of_batch(batch) for batch in (9, 31, 32, 100, 128)} == {tile}
    assert tile not in (of_batch(2), of_batch(512))
