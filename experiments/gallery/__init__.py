"""`convnets figures`: what is asked for; everything heavy is imported after that."""

from __future__ import annotations

import os
from pathlib import Path

from experiments.arguments import Parser, check_folder
from experiments.figures import NAMES

DESCRIPTION = """\
Run the lecture: each figure of it is a short experiment under experiments/figures/, which draws a picture out of what
the kernels compute, and checks the numbers that it claims.

Without names the experiments are listed. A run writes NAME.png and NAME.json, with each claim, the number expected, the
number measured, and the seconds taken; --all also makes a gallery of them, one page that works without a network.
The exit code is 1 where a claim does not hold.
"""

EXAMPLES = """\
examples:
  convnets figures
  convnets figures zero-padding stride
  convnets figures --all --output gallery     # then open gallery/index.html
"""


def parser() -> Parser:
    parser = Parser("figures", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="what to run; default: list what there is")
    add("--all", action="store_true", help="run everything, and make the gallery")
    add("--output", type=Path, default=Path("figures"), metavar="DIRECTORY", help="default: figures")
    add("--logdir", type=Path, metavar="DIRECTORY", help="log to TensorBoard, too")
    return parser


def main(arguments: list[str]) -> int:
    """Run `convnets figures` and return its exit code: 0, or 1 where a claim does not hold.

    Raises:
        ValueError: whatever the user can put right.
        KeyboardInterrupt: what was written until then stays.
    """
    options = parser().parse_args(arguments)
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        raise ValueError(f"NAME must be one of {', '.join(NAMES)}, got {', '.join(unknown)}")
    if options.all and options.names:
        raise ValueError("give either names or --all")
    if options.all or options.names:
        check_folder(options.output)
        check_folder(options.logdir, "--logdir")
    os.environ["TRITON_INTERPRET"] = "1"  # before the first import of triton
    from experiments.gallery.run import listed, run

    return run(options) if options.all or options.names else listed()
