"""Candidates: legal, in a fixed order, the heuristic's tile among them."""

import pytest

from kernels import candidates, heuristics, model
from kernels.candidates import splits_of
from kernels.targets import TARGETS
from kernels.tile import Product, Tile, fault

PRODUCTS = [
    Product("forward", "float16", 25_088, 128, 128, 9),
    Product("forward", "float32", 100, 1000, 512, 1),
    Product("forward", "float16", 401_408, 64, 3, 49),
    Product("transpose", "bfloat16", 6272, 128, 128, 9, 1, 4),
    Product("transpose_tiled", "float64", 100, 5, 4, 9, 1, 4),
    Product("weight_gradient", "float16", 128, 128, 25_088, 9),
    Product("weight_gradient", "float32", 64, 3, 401_408, 49),
    Product("forward", "float16", 25_088, 1, 1, 9, 128),
    Product("weight_gradient", "float16", 1, 1, 25_088, 9, 128),
]


@pytest.mark.parametrize("target", [*TARGETS, "interpreter"])
@pytest.mark.parametrize("product", PRODUCTS, ids=lambda product: f"{product.operation}-{product.dtype}")
def test_candidates_are_legal_different_and_the_same_again(target, product):
    found = candidates.candidates(target, product, 14)
    assert found[0] == heuristics.choose(target, product)
    by_address = [tile for tile in found if not tile.boxes]
    assert 2 <= len(by_address) <= 15 and len(found) == len(set(found)) <= len(by_address) + candidates.BOXED
    assert not any(fault(product, tile) for tile in found)
    assert found == candidates.candidates(target, product, 14)
    assert by_address[:5] == [tile for tile in candidates.candidates(target, product, 4) if not tile.boxes]
    if target != "interpreter":
        assert all(candidates.fits(target, product, tile) for tile in found[1:])


@pytest.mark.parametrize(("target", "some"), [("sm_80", False), ("sm_90", True), ("sm_100", True), ("gfx942", False)])
def test_boxes_are_tried_where_tma_is_and_a_step_is_of_one_tap(target, some):
    boxed = [tile for tile in candidates.candidates(target, PRODUCTS[0], 14) if tile.boxes]
    assert bool(boxed) == some and all(not PRODUCTS[0].folds(tile) and tile.k <= 64 for tile in boxed)
    stem, strided, gradient = PRODUCTS[2], PRODUCTS[3], PRODUCTS[5]
    assert not any(t.boxes for product in (stem, strided, gradient) for t in candidates.candidates(target, product, 14))


def test_more_stages_come_first_where_the_model_cannot_tell_them_apart():
    few, more = Tile(64, 64, 32, stages=2), Tile(64, 64, 32, stages=4)
    assert sorted([few, more], key=lambda tile: candidates.order(PRODUCTS[0], tile)) == [more, few]


def test_an_unknown_target_is_refused():
    with pytest.raises(ValueError, match="target must be one of sm_80, .*, interpreter, got 'sm_1'"):
        candidates.candidates("sm_1", PRODUCTS[0], 4)


def test_what_does_not_fit_is_left_out():
    product = PRODUCTS[0]
    assert candidates.fits("sm_90", product, Tile(256, 128, 64, 8, 4))
    assert not candidates.fits("sm_80", product, Tile(256, 128, 64, 8, 5))  # 196,608 bytes
    assert not candidates.fits("sm_90", product, Tile(256, 128, 64, 4, 2))  # 256 accumulators


def test_splits_fill_whole_waves():
    product = Product("weight_gradient", "float16", 64, 64, 401_408, 9)
    tile = Tile(64, 64, 32)
    assert splits_of("sm_90", product, tile) == [1, 14, 29, 44, 58]  # 9 programs each, 132 multiprocessors
    assert splits_of("sm_90", PRODUCTS[0], tile) == [1]
    assert splits_of("sm_90", Product("weight_gradient", "float16", 64, 64, 100, 9), tile) == [1]  # nothing to split


def test_the_model_counts_programs_and_steps():
    product = Product("forward", "float16", 1000, 100, 64, 9, groups=2)
    assert model.programs(product, Tile(128, 64, 32)) == 8 * 2 * 2 and model.steps(product, Tile(128, 64, 32)) == 18
    product = Product("transpose", "float16", 1000, 64, 64, 9, phases=4)
    assert model.programs(product, Tile(128, 64, 32)) == 8 * 4 and model.steps(product, Tile(128, 64, 32)) == 4.5
    assert model.most_steps(product, Tile(128, 64, 32)) == 8  # four of the nine taps
    product = Product("weight_gradient", "float16", 100, 64, 1000, 9)
    assert model.most_steps(product, Tile(64, 64, 25)) == model.steps(product, Tile(64, 64, 25))
    tile = Tile(64, 64, 25, splits=4)
    assert model.programs(product, tile) == 2 * 9 * 4 and model.steps(product, tile) == 10
