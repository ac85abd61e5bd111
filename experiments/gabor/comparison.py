"""`convnets gabor --compare` itself: what different ways to learn give, by the same score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

from experiments.gabor.figure import draw
from experiments.gabor.learners import RECIPES, learners
from experiments.gabor.table import figures_of, summary_of
from experiments.interruption import termination_interrupts
from experiments.output import png, strict_json, write
from experiments.results.report import lines_of, spread
from experiments.results.run import conditions
from lightning_modules.gabor_score import Likeness, likeness

COLUMNS = {
    "mean R2": "mean_r2",
    "above the null": "fraction_above_null",
    "strictly Gabor-like": "fraction",
    "orientation entropy": "orientation_entropy",
}


def compare(seeds: Sequence[int], output: Path) -> int:
    """Print the table of all learners, and write `comparison.png` and `comparison.json`.

    Raises:
        ValueError: whatever the user can put right, or a training failed; nothing is written then.
        KeyboardInterrupt: when interrupted; nothing is written.
    """
    makers = learners()
    weights: dict[str, Tensor] = {}  # of the first seed
    found: dict[str, list[Likeness]] = {name: [] for name in makers}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with termination_interrupts(), Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=len(makers) * len(seeds))
        for name, maker in makers.items():
            for seed in seeds:
                progress.update(bar, description=f"{name}, seed {seed}")
                weight = maker(seed)
                weights.setdefault(name, weight)
                found[name].append(likeness(weight))
                progress.advance(bar)
    figures = {
        "recipes": RECIPES,
        "conditions": conditions(),
        "learners": {
            name: [{"seed": seed} | figures_of(each) for seed, each in zip(seeds, likenesses, strict=True)]
            for name, likenesses in found.items()
        },
    }
    write(output, {"comparison.png": png(draw(weights, found)), "comparison.json": strict_json(figures)})
    print(markdown(found))
    print(f"comparison.png and comparison.json: {output}", flush=True)
    return 0


def markdown(found: Mapping[str, Sequence[Likeness]]) -> str:
    """A row for each learner: of each score the average over seeds, the least and the most."""
    table = Table(box=box.MARKDOWN)
    for place, title in enumerate(("learner", *COLUMNS)):
        table.add_column(title, justify="left" if place == 0 else "right")
    for name, likenesses in found.items():
        summaries = [summary_of(each) for each in likenesses]
        values = [[summary[score] for summary in summaries] for score in COLUMNS.values()]
        table.add_row(name, *(spread([value for value in each if math.isfinite(value)]) for each in values))
    return "\n".join(lines_of(table)) + "\n"
