"""`convnets inspect`: what is asked for; everything heavy is imported after that."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from experiments.arguments import Parser, check_file, check_folder, natural, positive
from experiments.convolutions import ARCHITECTURES

TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "gfx90a", "gfx942")
OPERATIONS = ("forward", "input_gradient", "weight_gradient")
DTYPES = ("float16", "bfloat16", "float32", "float64")
FIGURES = (".png", ".pdf", ".svg")
SHAPE = ("channels", "outputs", "size", "kernel_size", "stride", "padding", "dilation", "groups", "tile")

DESCRIPTION = """\
Compile kernels for a GPU that need not be there, and read from the binary what they need and how fast they can be.

Shown are registers, spills, shared memory and the blocks that share a multiprocessor; for NVIDIA's GPUs also the loops
of the machine code: how often each runs, its instructions by pipe, in all and per 1,024 multiply-adds of matrix
products, the cycles that each pipe is busy, and a speed-of-light estimate of the time. The estimate is a model, not a
measurement: kernels/estimate.py says how it is made and what it cannot see. For AMD's GPUs: registers, spills and LDS.

What to inspect is a convolution or a linear layer (--channels and so on), all of an architecture's (--architecture),
or any Triton kernel (--kernel). Layers are without bias, their tensors channels-last.
"""

EXAMPLES = """\
examples:
  convnets inspect --target sm_90 --channels 128 --outputs 128 --size 28 28 --kernel_size 3 3 --padding 1
  convnets inspect --target sm_80 --channels 512 --outputs 1000 --operation forward   # a linear layer
  convnets inspect --target sm_90 --architecture resnet50 --json it.json --plot roofline.png
  convnets inspect --target sm_100 --kernel mine.py:my_kernel --arguments mine.json

a file of --arguments, for my_kernel(x_ptr, rows, BLOCK: tl.constexpr):
  {"arguments": {"x_ptr": {"shape": [4096, 64], "dtype": "float16"}, "rows": 4096, "BLOCK": 128},
   "grid": [32], "num_warps": 4, "num_stages": 3}
with, if need be, the "strides" of a tensor, and the "flops" and "bytes" that the kernel needs; without, they are those
of its tl.dot, and of its tensors once.
"""


def parser() -> Parser:
    parser = Parser("inspect", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("--target", choices=TARGETS, required=True, metavar="NAME", help=", ".join(TARGETS))
    add("--operation", type=operations, nargs="+", metavar="NAME", default=[list(OPERATIONS)],
        help=f"{', '.join(OPERATIONS)}; default: all")  # fmt: skip
    add("--architecture", nargs="+", choices=[*ARCHITECTURES, "all"], metavar="NAME",
        help=f"every layer of {', '.join(ARCHITECTURES)} or all")  # fmt: skip
    add("--limit", type=positive, metavar="N", help="only the first N distinct layers of each architecture")
    add("--kernel", metavar="PATH.PY:FUNCTION", help="a Triton kernel")
    add("--arguments", type=Path, metavar="FILE", help="its arguments, see below")
    add("--batch", type=positive, metavar="N", help="images; default: 32")
    add("--dtype", choices=DTYPES, metavar="NAME", help=f"{', '.join(DTYPES)}; default: float16")
    add("--channels", type=positive, metavar="C", help="input channels")
    add("--outputs", type=positive, metavar="O", help="output channels; default: as many")
    add("--size", type=positive, nargs="+", metavar="N", help="extents of the input grid; none for a linear layer")
    add("--kernel_size", type=positive, nargs="+", metavar="N", help="extents of the window; default: 1")
    add("--stride", type=positive, nargs="+", metavar="N")
    add("--padding", type=natural, nargs="+", metavar="N")
    add("--dilation", type=positive, nargs="+", metavar="N")
    add("--groups", type=positive, metavar="N")
    add("--tile", type=tile, metavar="M,N,K,WARPS,STAGES,SPLITS",
        help="in place of the tile that would be chosen; the last three can be left out")  # fmt: skip
    add("--details", action="store_true", help="the loops of every kernel, as they are shown for a single one")
    add("--json", type=Path, metavar="FILE", help="write all figures")
    add("--plot", type=Path, metavar="FILE", help="draw the kernels on the target's roofline: .png, .pdf or .svg")
    add("--logdir", type=Path, metavar="FOLDER", help="the same figure for TensorBoard")
    return parser


def operations(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in OPERATIONS]:
        raise argparse.ArgumentTypeError(f"must be among {', '.join(OPERATIONS)}, got {unknown[0]!r}")
    return names


def tile(text: str) -> tuple[int, ...]:
    numbers = tuple(map(positive, text.split(",")))
    if not 3 <= len(numbers) <= 6:
        raise argparse.ArgumentTypeError(f"must be 3 to 6 whole numbers, got {text!r}")
    return numbers


def main(arguments: list[str]) -> int:
    """Run `convnets inspect` and return its exit code, 0.

    Raises:
        ValueError: whatever the user can put right.
    """
    options = parser().parse_args(arguments)
    options.operation = list(dict.fromkeys(name for names in options.operation for name in names))
    _check(options)
    if find_spec("triton") is None:
        raise ValueError(f"inspect needs triton, which is not installed (on {sys.platform})")
    from experiments.inspection.run import run

    return run(options)


def _check(options: argparse.Namespace) -> None:
    given = [f"--{name}" for name in ("channels", "architecture", "kernel") if getattr(options, name) is not None]
    if len(given) != 1:
        raise ValueError(f"give one of --channels, --architecture and --kernel, got {' and '.join(given) or 'none'}")
    if (options.kernel is None) != (options.arguments is None):
        raise ValueError("--kernel and --arguments go together: a kernel, and the file of its arguments")
    misplaced = [name for name in SHAPE if getattr(options, name) is not None]
    if options.channels is None and misplaced:
        raise ValueError(f"--{misplaced[0]} is for a single layer, of which --channels is needed, not for {given[0]}")
    if options.size is None and (window := [name for name in SHAPE[3:8] if getattr(options, name) is not None]):
        raise ValueError(f"--{window[0]} needs --size: without, it is a linear layer")
    check_file(options.plot, "--plot", *FIGURES)
    check_file(options.json, "--json")
    check_folder(options.logdir, "--logdir")
