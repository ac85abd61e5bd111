"""The gallery: one HTML file, with every picture in it, that needs neither network nor script."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.gallery.example import Claim, written
from lightning_modules.files import replace

if TYPE_CHECKING:
    from experiments.gallery.run import Run, Shown

STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 0 1rem 4rem; }
nav { columns: 14rem; font-size: .9rem; } nav a { display: block; }
h2 { margin-top: 3.5rem; border-top: 1px solid var(--line); padding-top: 1.5rem; }
img { width: 100%; height: auto; background: white; border-radius: 4px; }
.table, pre { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; min-width: 100%; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid var(--line); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
pre { background: #8881; padding: .7rem; border-radius: 4px; font-size: .8rem; line-height: 1.35; }
@media (max-width: 40rem) { th:nth-child(3), td:nth-child(3) { display: none; } th, td { padding: .25rem; } }
code { font-size: .9em; overflow-wrap: anywhere; }
.fails { color: #d55e00; font-weight: bold; } .small { font-size: .85rem; opacity: .8; }
"""
INTRODUCTION = """
Chapter 9 of the <i>Deep Learning</i> book (Goodfellow, Bengio and Courville, 2016), as experiments: each picture was
drawn from what the convolution kernels computed, interpreted on a CPU, or where its page says so PyTorch's operations;
each number in a table was measured and held to the one expected.
"""


def write_page(path: Path, runs: Sequence[Run], pictures: Path) -> None:
    """Write the page of all runs; `pictures` has the NAME.png of each."""
    contents = "".join(f'<a href="#{run.name}">{html.escape(run.title)}</a>' for run in runs)
    sections = "".join(_section(run, (pictures / f"{run.name}.png").read_bytes()) for run in runs)
    replace(
        path,
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>The lecture, runnable</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>'
        f"<h1>The lecture, runnable</h1><p>{INTRODUCTION}</p><nav>{contents}</nav>{sections}</body></html>\n",
    )


def _section(run: Run, picture: bytes) -> str:
    image = base64.b64encode(picture).decode()
    paragraphs = "".join(f"<p>{html.escape(part)}</p>" for part in run.notice.split("\n\n"))
    rows = "".join(map(_row, run.example.claims))
    computed = (
        f"{run.launches} launches of Triton kernels" if run.backend == "triton" else "computed by PyTorch's operations"
    )
    return (
        f'<section><h2 id="{run.name}">{html.escape(run.title)}</h2>'
        f'<p class="small">{html.escape(run.source)}. <code>{run.command}</code>: {run.seconds:.1f} s, {computed}</p>'
        f'<img alt="{html.escape(run.title)}" src="data:image/png;base64,{image}">{paragraphs}'
        '<div class="table"><table><tr><th>claim</th><th class="number">expected</th><th>from</th>'
        f'<th class="number">measured</th></tr>{rows}</table></div>{"".join(map(_lines, run.shows))}</section>'
    )


def _row(claim: Claim) -> str:
    measured = written(claim.measured) if claim.holds else f'<span class="fails">{written(claim.measured)}</span>'
    return (
        f'<tr><td>{html.escape(claim.text)}</td><td class="number">{html.escape(claim.expectation)}</td>'
        f'<td>{claim.origin}</td><td class="number">{measured}</td></tr>'
    )


def _lines(shown: Shown) -> str:
    return (
        f"<details><summary><code>{shown.path}</code>, from line {shown.first}</summary>"
        f"<pre>{html.escape(shown.text)}</pre></details>"
    )
