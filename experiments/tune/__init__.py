"""`convnets tune`: what is asked for; everything heavy is imported after that."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

from experiments.arguments import Parser, check_file, natural, positive
from experiments.convolutions import ARCHITECTURES

INTERPRETER = "interpreter"
OPERATIONS = ("forward", "input_gradient", "weight_gradient")
DTYPES = ("float16", "bfloat16", "float32", "float64")
EXTENTS = ("channels", "outputs", "size", "kernel_size", "stride", "padding", "dilation", "groups")

DESCRIPTION = """\
Choose the tiles of convolutions and record them in kernels/tuned/TARGET.json, which every launch looks up.

Candidates that a target cannot hold are left out; of the rest a model picks the most promising, beside the heuristic's
tile. They are compiled, in parallel; what spills registers or exceeds the shared memory falls out, what is left is
ranked by the estimate of its machine code. Where the target is the GPU of this machine, the best few are then checked
against float64, by the rule of the tests, and timed: the fastest that is right wins. With --target interpreter all are
checked and timed, on the CPU.

Each result is written as soon as it is found. A run that is interrupted goes on with the same command: what was
recorded with the same versions and kernels is not tuned again.
"""

EXAMPLES = """\
examples:
  convnets tune --target sm_80 sm_90 --architecture resnet50
  convnets tune --target sm_90 --channels 128 --outputs 128 --size 28 28 --kernel_size 3 --padding 1
  convnets tune --target sm_90 --architecture alexnet --table held.json
  convnets tune --target sm_90 --architecture alexnet --table held.json --compare   # the heuristic with those choices
  convnets tune --target interpreter --architecture lenet --batch 64
"""


def parser() -> Parser:
    parser = Parser("tune", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add(
        "--target", nargs="+", metavar="NAME", help="sm_80, sm_90, ... or interpreter; default: the GPU of this machine"
    )
    add("--architecture", nargs="+", choices=[*ARCHITECTURES, "all"], metavar="NAME",
        help=f"{', '.join(ARCHITECTURES)} or all, which is the default unless a layer is given")  # fmt: skip
    add("--operation", nargs="+", choices=OPERATIONS, default=OPERATIONS, metavar="NAME",
        help=f"{', '.join(OPERATIONS)}; default: all")  # fmt: skip
    add("--dtype", nargs="+", choices=DTYPES, metavar="NAME",
        help=f"{', '.join(DTYPES)}; default: float16, of the interpreter float32")  # fmt: skip
    add("--batch", type=positive, metavar="N", help="images; default: 32, of the interpreter 1")
    layer = parser.add_argument_group("a layer of its own")
    for name, text in (
        ("channels", "input channels, of all groups"), ("outputs", "output channels, of all groups"),
        ("groups", "default: 1"),
    ):  # fmt: skip
        layer.add_argument(f"--{name}", type=positive, metavar="N", help=text)
    layer.add_argument("--size", type=positive, nargs="*", metavar="N", help="of the input, up to 3 axes; none: linear")
    layer.add_argument("--kernel_size", type=positive, nargs="+", metavar="N", help="one number, or one an axis")
    for name, text in (("stride", "default: 1"), ("padding", "default: 0"), ("dilation", "default: 1")):
        layer.add_argument(f"--{name}", type=natural, nargs="+", metavar="N", help=text)
    add("--table", type=Path, metavar="FILE", help="default: kernels/tuned/TARGET.json")
    add("--candidates", type=positive, default=14, metavar="N", help="tiles to try beside the heuristic's; default: 14")
    add(
        "--jobs", type=positive, metavar="N", help="processes that compile; default: one a core. The result is the same"
    )
    add("--limit", type=positive, metavar="N", help="only the first N problems that are left to tune")
    add("--again", action="store_true", help="tune what is recorded already, too")
    add("--compare", action="store_true", help="tune nothing: show the heuristic's tiles beside those of the table")
    return parser


def main(arguments: list[str]) -> int:
    """Run `convnets tune` and return its exit code: 0, or 1 where a problem could not be tuned or a tile is wrong.

    Raises:
        ValueError: whatever the user can put right.
        KeyboardInterrupt: after saying what is kept, and how to go on.
    """
    options = parser().parse_args(arguments)
    check(options)
    if find_spec("triton") is None:
        raise ValueError(f"tune needs triton, which is not installed (on {sys.platform})")
    if options.target == [INTERPRETER]:
        os.environ["TRITON_INTERPRET"] = "1"  # before the first import of triton
    else:
        os.environ.pop("TRITON_INTERPRET", None)  # such a process compiles nothing, and neither would its workers
    options.command = shlex.join(["convnets", "tune", *(arg for arg in arguments if arg != "--again")])
    from experiments.tune.run import run

    return run(options)


def check(options: argparse.Namespace) -> None:
    """Hold options to each other.

    Raises:
        ValueError: they do not go together.
    """
    layer = [f"--{name}" for name in EXTENTS if getattr(options, name) is not None]
    if layer and options.architecture:
        raise ValueError(f"give either --architecture or a layer, not both: got --architecture and {', '.join(layer)}")
    if layer:
        for name in ("channels", "outputs"):
            if getattr(options, name) is None:
                raise ValueError(f"a layer needs --channels and --outputs, got only {', '.join(layer)}")
        if options.size and options.kernel_size is None:
            raise ValueError("a layer with a --size needs a --kernel_size")
        if not options.size and (window := [name for name in EXTENTS[3:7] if getattr(options, name) is not None]):
            raise ValueError(f"--{window[0]} needs a --size: without, it is a linear layer")
        if len(options.size or ()) > 3:
            raise ValueError(f"--size takes up to 3 extents, got {len(options.size)}")
    targets = options.target or []
    if INTERPRETER in targets and len(targets) > 1:
        raise ValueError("the interpreter is tuned by itself, as it cannot compile: give no other --target beside it")
    if options.table is not None and len(targets) > 1:
        raise ValueError(f"--table {options.table} holds one target: got {', '.join(targets)}")
    if not options.compare:
        check_file(options.table, "--table")
