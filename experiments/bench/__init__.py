"""`convnets bench`: what is asked for; everything heavy is imported after that."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from experiments.arguments import Parser, check_file, positive
from experiments.convolutions import ARCHITECTURES

OPERATIONS = ("forward", "input_gradient", "weight_gradient", "step")
IMPLEMENTATIONS = ("triton", "compile", "torch")  # ratios are to the last one
DTYPES = ("float16", "bfloat16", "float32", "float64")
FIGURES = (".png", ".pdf", ".svg")

DESCRIPTION = """\
Check, then time, the convolutional and linear layers of classic networks: our kernels, torch.compile and ATen (cuDNN).

Every result is first compared with float64, by the rule of the tests: an error of at most twice that of ATen in the
same dtype, up to one rounding. What is wrong gets no time, and the exit code is 1. Each round then times every
implementation once, in turning order, so that what else the machine does cancels in the ratios; shown are the medians
over rounds, with quartiles. On a GPU a round is a run of triton.testing.do_bench, which clears the cache before every
call; cuDNN chooses its fastest algorithm by trying them; float32 is IEEE's. Without a GPU the kernels are interpreted:
this checks them, but says nothing about the speed of a GPU.

Layers are without bias, their tensors channels-last. A network's total counts each layer as often as it occurs, and the
input gradient of the first one too, which training does not need.
"""

EXAMPLES = """\
examples:
  convnets bench --architecture resnet50 --csv resnet50.csv --plot resnet50.png
  convnets bench --architecture alexnet --layer 'features.*' --operation forward step
  convnets bench --architecture allcnn --against main   # our kernels, as they are here and as they are there
"""


def parser() -> Parser:
    parser = Parser("bench", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("--architecture", nargs="+", choices=[*ARCHITECTURES, "all"], default=["all"], metavar="NAME",
        help=f"{', '.join(ARCHITECTURES)} or all, which is the default")  # fmt: skip
    add("--operation", nargs="+", choices=OPERATIONS, default=OPERATIONS, metavar="NAME",
        help=f"{', '.join(OPERATIONS)} (the whole training step of a layer: the public function forward, autograd"
        " backward); default: all")  # fmt: skip
    add("--implementation", nargs="+", choices=IMPLEMENTATIONS, metavar="NAME",
        help="triton (ours), compile (torch.compile) or torch (ATen with its libraries); default: all, on the CPU"
        " without compile")  # fmt: skip
    add("--layer", metavar="PATTERN", help="only layers whose name matches, as in 'layer1.*'")
    add("--limit", type=positive, metavar="N", help="only the first N distinct layers of each network")
    add("--batch", type=positive, metavar="N", help="images; default: 32, on the CPU 1")
    add("--dtype", choices=DTYPES, metavar="NAME", help=f"{', '.join(DTYPES)}; default: float16, on the CPU float32")
    add("--repeats", type=positive, metavar="N", help="rounds; default: 5, on the CPU 3, with --against 10")
    add("--against", metavar="REVISION", help="compare our kernels with those of another git revision, in a process"
        " each, instead of with other implementations")  # fmt: skip
    add("--compile_ahead", choices=("true", "false"), default="true", metavar="true|false",
        help="on a GPU: compile our kernels in parallel before anything is timed; default: true")  # fmt: skip
    add("--csv", type=Path, metavar="FILE", help="write a row for each implementation as soon as it is measured")
    add("--plot", type=Path, metavar="FILE", help="draw the times: .png, .pdf or .svg")
    return parser


def main(arguments: list[str]) -> int:
    """Run `convnets bench` and return its exit code: 0, or 1 where an implementation is wrong.

    Raises:
        ValueError: whatever the user can put right.
        KeyboardInterrupt: after reporting what was measured until then.
    """
    options = parser().parse_args(arguments)
    if options.against is not None and options.implementation not in (None, ["triton"]):
        raise ValueError("--against compares our kernels with themselves: leave out --implementation")
    check_file(options.csv, "--csv")
    check_file(options.plot, "--plot", *FIGURES)
    if find_spec("triton") is None:
        raise ValueError(f"bench needs triton, which is not installed (on {sys.platform})")
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # before the first import of triton
    from experiments.bench.run import run

    return run(options)
