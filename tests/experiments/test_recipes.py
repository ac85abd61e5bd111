from pathlib import Path

import pytest

RECIPES = sorted((Path(__file__).parents[2] / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_runs(convnets, recipe):
    short = [f"--trainer.limit_{split}_batches=2" for split in ("train", "val", "test")]
    run = convnets("fit", "--config", str(recipe), "--trainer.accelerator=cpu", "--trainer.max_epochs=1", *short)
    assert run.code == 0, run.err
    assert "test/" in run.out


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_says_what_to_expect(recipe):
    comment = [line for line in recipe.read_text().splitlines() if line.startswith("#")]
    for entry in ("command", "expected", "time", "hardware", "source"):
        assert any(line.split()[1:2] == [entry] for line in comment), entry
