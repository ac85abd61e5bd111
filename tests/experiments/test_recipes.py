from pathlib import Path

import pytest
import yaml

from experiments.results.run import expectation_of

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
EMBEDDED = sorted(EXPERIMENTS.glob("*.yaml"))
PAPER = sorted((EXPERIMENTS / "paper").glob("*.yaml"))


def name_of(recipe: Path) -> str:
    return recipe.relative_to(EXPERIMENTS).with_suffix("").as_posix()


@pytest.mark.parametrize("recipe", EMBEDDED, ids=name_of)
def test_recipe_runs(convnets, recipe):
    short = [f"--trainer.limit_{split}_batches=2" for split in ("train", "val", "test")]
    run = convnets("fit", "--config", str(recipe), "--trainer.accelerator=cpu", "--trainer.max_epochs=1", *short)
    assert run.code == 0, run.err
    assert f"\n{expectation_of(recipe).metric}: " in run.out


@pytest.mark.parametrize("recipe", PAPER, ids=name_of)
def test_recipe_of_a_paper_is_complete(convnets, recipe, capfd):
    with pytest.raises(SystemExit) as stop:
        convnets("fit", "--config", str(recipe), "--print_config")
    assert stop.value.code == 0
    assert yaml.safe_load(capfd.readouterr().out)["expect"]["metric"] == expectation_of(recipe).metric


@pytest.mark.parametrize("recipe", PAPER, ids=name_of)
def test_recipe_of_a_paper_says_what_data_it_lacks(convnets, recipe):
    """Network and data module are made before that."""
    run = convnets("fit", "--config", str(recipe), "--trainer.accelerator=cpu")
    assert run.error.startswith("root must be a directory with ") and not Path("logs").exists()


@pytest.mark.parametrize("recipe", EMBEDDED + PAPER, ids=name_of)
def test_recipe_says_what_to_expect(recipe):
    comment = [line for line in recipe.read_text().splitlines() if line.startswith("#")]
    for entry in ("command", "expected", "time", "hardware", "source"):
        assert any(line.split()[1:2] == [entry] for line in comment), entry
    expectation = expectation_of(recipe)
    assert expectation.metric.startswith("test/")
    if recipe in EMBEDDED:
        assert expectation.minutes is not None and expectation.minutes <= 5
    else:
        assert any("not run" in line for line in comment), "that of a paper is marked as such"
