"""`convnets gpu`: what a GPU shows of the kernels in a few minutes; everything heavy is imported by the steps."""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.arguments import Parser, check_folder

DESCRIPTION = """\
Collect evidence of the kernels from the GPU of this machine, most valuable first, within a few minutes.

Each step runs in a process of its own, within its own time. A step that fails or runs out of time does not stop the
rest. Results are written as they come: report.json (figures), report.md (tables) with its plot, log.txt (what the steps
printed). The same command goes on where it was stopped: steps that were done are not repeated. The exit code is 1 where
a step failed or found something wrong.

It needs no network, and no packages but torch, triton, numpy, pytest and hypothesis. What else is missing is said.
"""

EXAMPLES = """\
examples:
  convnets gpu                             # nine minutes, results in gpu-report/
  convnets gpu --minutes 3 --step device kernels layers
  convnets gpu --rehearse                  # without a GPU: the same steps, interpreted, on tiny problems
"""


def minutes(text: str) -> float:
    """Return a number of minutes above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of minutes above 0, got {text!r}")
    return value


def parser() -> Parser:
    from experiments.gpu.plan import STEPS

    parser = Parser("gpu", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("--minutes", type=minutes, default=9.0, metavar="M", help="the time for all steps together; default: 9")
    add("--output", type=Path, metavar="DIR", help="where results go; default: gpu-report, of a rehearsal"
        " build/gpu-rehearsal")  # fmt: skip
    names = [step.name for step in STEPS]
    add("--step", nargs="+", choices=names, metavar="NAME", help=f"only these, of {', '.join(names)}")
    add("--again", action="store_true", help="repeat steps that were done; their earlier results are dropped")
    add("--rehearse", action="store_true", help="run every step without a GPU, interpreted, on tiny problems")
    return parser


def main(arguments: list[str]) -> int:
    """Run `convnets gpu` and return its exit code: 0, or 1 where a step failed or found something wrong.

    Raises:
        ValueError: whatever the user can put right.
        KeyboardInterrupt: after writing the report of what was done until then.
    """
    options = parser().parse_args(arguments)
    check_folder(options.output)
    from experiments.gpu.run import run

    return run(options)
