"""The choice of a tile for one problem: candidates, their estimates, and where it can be their times."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from experiments.gpu.step import reason
from experiments.tune.compiling import Compilers, Job, Outcome, ranked
from experiments.tune.task import Task
from experiments.tune.timing import MARGIN, Case, fastest
from kernels.candidates import candidates, with_boxes
from kernels.heuristics import INTERPRETER
from kernels.tile import Tile

FINALISTS = 5  # that are timed on a GPU beside the heuristic's tile


class NotTuned(Exception):
    """No candidate can be used; the message says why."""


@dataclass(frozen=True)
class Choice:
    """A tile, the figures that it was chosen by, and of the tiles that gave a wrong result what was wrong."""

    tile: Tile
    figures: dict[str, Any]
    wrong: dict[Tile, str] = field(default_factory=dict)

    def __str__(self) -> str:
        unit = "percent of peak" if "percent of peak" in self.figures else "microseconds"
        usual = self.figures.get(f"heuristic {unit}", "none")
        return f"{self.tile}: {self.figures[unit]} {unit}, the heuristic {usual}"


def estimated(task: Task, compilers: Compilers, most: int, finalists: int) -> tuple[list[Outcome], Outcome]:
    """The best candidates by their estimates, none of which spills whatever is fused into it; and the heuristic's.

    The latter comes first unless it is clearly beaten: no estimate is so exact, and fewer kernels are then compiled.

    Raises:
        NotTuned: there is none.
    """
    outcomes = compilers.outcomes([Job(task, tile) for tile in candidates(task.target, task.product, most)])
    faults = Counter(outcome.fault for outcome in outcomes if outcome.fault)
    best: list[Outcome] = []
    waiting = ranked(task.product, outcomes)
    usual = outcomes[0]
    if not usual.fault and waiting[0].seconds > MARGIN * usual.seconds:
        waiting = [usual, *(outcome for outcome in waiting if outcome is not usual)]
    while waiting and len(best) < finalists:
        few, waiting = waiting[: finalists - len(best)], waiting[finalists - len(best) :]
        for outcome, fused in zip(few, compilers.outcomes([Job(task, o.tile, fused=True) for o in few]), strict=True):
            if fused.fault:
                faults[fused.fault] += 1
            else:
                best.append(outcome)
    if not best:
        raise NotTuned(
            "; ".join(f"{count} of {len(outcomes)} tiles: {fault}" for fault, count in sorted(faults.items()))
        )
    return best, usual


def estimated_choice(task: Task, compilers: Compilers, most: int) -> Choice:
    """The best by its estimate.

    Raises:
        NotTuned: no candidate can be compiled.
    """
    (best, *_), usual = estimated(task, compilers, most, 1)
    return Choice(best.tile, _figures(best.seconds, best.fraction, usual.seconds, usual.fraction))


def measured_choice(task: Task, compilers: Compilers, most: int) -> Choice:
    """The fastest that is right: on a GPU of the best by their estimates, interpreted of all candidates.

    Raises:
        NotTuned: no candidate can be compiled, or none is right.
    """
    interpreted = task.target == INTERPRETER
    if interpreted:
        tiles = candidates(task.target, task.product, most)
    else:
        best, usual = estimated(task, compilers, most, FINALISTS)
        tiles = [usual.tile, *(outcome.tile for outcome in best)]
        twins = with_boxes(task.target, task.product, tiles)  # which no estimate tells from them
        tiles = list(dict.fromkeys(tiles + twins))
    try:
        case = Case(task, "cpu" if interpreted else "cuda")
    except RuntimeError as error:  # of memory
        raise NotTuned(f"its tensors cannot be made: {reason(error)}") from error
    found = fastest(tiles, case.check, case.seconds)
    if found is None:
        raise NotTuned(f"all {len(tiles)} tiles are wrong")
    figures = _figures(found.seconds[found.winner], None, found.seconds.get(tiles[0]), None)
    return Choice(found.winner, figures, found.wrong)


def _figures(
    seconds: float, fraction: float | None, usual: float | None, usual_fraction: float | None
) -> dict[str, Any]:
    """Of the chosen tile and of the heuristic's: microseconds, and of matrix products the percent of the peak."""

    figures = {
        "microseconds": seconds * 1e6,
        "heuristic microseconds": usual * 1e6 if usual is not None and usual < float("inf") else None,
        "percent of peak": 100 * fraction if fraction is not None else None,
        "heuristic percent of peak": 100 * usual_fraction if usual_fraction is not None else None,
    }
    return {name: float(f"{value:.4g}") for name, value in figures.items() if value is not None}
