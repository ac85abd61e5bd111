"""`convnets gabor --checkpoint` itself: the scores of the layers in a file, and where the report goes."""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from experiments.gabor.layers import convolutions, measurable, read_state, window_of
from experiments.gabor.table import figures_of, print_table
from experiments.output import png, strict_json, write
from experiments.summary.table import WIDTH
from lightning_modules.gabor_figures import report
from lightning_modules.gabor_score import Likeness, likeness, not_measurable


def score(checkpoint: Path, names: list[str], output: Path) -> int:
    """Print the table of a file's layers, all or those named, and write a figure of each and `gabor.json`.

    Raises:
        ValueError: whatever the user can put right; nothing is written then.
    """
    state = read_state(checkpoint)
    weights = measurable(state, names, checkpoint)
    found: dict[str, Likeness] = {}
    pictures = _files(list(weights))
    files: dict[str, bytes] = {}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for name in progress.track(weights, description="layers"):
            found[name] = likeness(weights[name])
            files[pictures[name]] = png(report(found[name], name))
    too_small = {name: weight for name, weight in convolutions(state).items() if not_measurable(window_of(weight))}
    figures = {
        "checkpoint": str(checkpoint),
        "layers": {name: figures_of(each) | {"figure": pictures[name]} for name, each in found.items()},
        "not_measured": {name: not_measurable(window_of(weight)) for name, weight in too_small.items()},
    }
    write(output, files | {"gabor.json": strict_json(figures)})
    console = Console(width=None if sys.stdout.isatty() else WIDTH, markup=False)
    print_table(console, str(checkpoint), found, {} if names else too_small)
    print(f"figures and gabor.json: {output}", flush=True)
    return 0


def _files(layers: list[str]) -> dict[str, str]:
    """The name of each layer's figure; the layers' come from a file that others may have written."""
    found: dict[str, str] = {}
    for layer in layers:
        plain = re.sub(r"[^\w.-]", "_", layer)
        numbered = (plain if number == 1 else f"{plain}-{number}" for number in itertools.count(1))
        found[layer] = next(name for name in numbered if f"{name}.png" not in found.values()) + ".png"
    return found
