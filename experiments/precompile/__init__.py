"""`convnets precompile`: what is asked for; everything heavy is imported after that."""

from __future__ import annotations

import argparse
import os
import sys
from importlib.util import find_spec
from pathlib import Path

from experiments.arguments import Parser, check_file, positive

DESCRIPTION = """\
Compile all kernels that a training step and an evaluation of a network launch, on all cores and without a GPU.

The network runs on tensors without values, to see what it launches. Kernels go to Triton's cache (TRITON_CACHE_DIR, or
~/.triton/cache), where a launch finds them. With --archive they are also written to a file; on the machine with the GPU
--from puts them into the cache there, if Triton, its build for the same Python, the kernels' code and the GPU agree.
An archive holds code that is run: take one only from whom you trust.

A recipe is compiled for as it trains: its network, precision and batches, the smaller last one of an epoch too, in
training and validation. That needs its data; with --batch it does not.
"""

EXAMPLES = """\
examples:
  convnets precompile --architecture resnet50 --target sm_90 --batch 32 --archive resnet50.tar.xz
  convnets precompile --from resnet50.tar.xz        # on the machine with the GPU
  convnets precompile --config experiments/resnet20.yaml --target gfx942
"""


def parser() -> Parser:
    parser = Parser("precompile", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("--architecture", metavar="NAME", help="a class of lightning_modules.architectures; case does not count")
    add("-c", "--config", type=Path, metavar="RECIPE", help="a recipe")
    add("--target", metavar="NAME", help="sm_90, gfx942, ...; default: the GPU of this machine")
    add("--batch", type=positive, metavar="N", help="images; default: 32, of a recipe its own")
    add("--size", type=positive, nargs="+", metavar="N", help="of an image along each axis; default: the network's own")
    add("--dtype", metavar="NAME", help="float16, bfloat16, float32, float64, 16-mixed or bf16-mixed (autocast);"
        " default: float16, of a recipe its precision")  # fmt: skip
    add("--jobs", type=positive, metavar="N", help="processes that compile; default: one a core")
    add("--archive", type=Path, metavar="FILE.tar.xz", help="write the kernels to this file too")
    add("--from", type=Path, metavar="FILE.tar.xz", dest="source", help="take kernels from such a file first")
    return parser


def main(arguments: list[str]) -> int:
    """Run `convnets precompile` and return its exit code: 0, or 1 where a kernel does not compile.

    Raises:
        ValueError: whatever the user can put right.
    """
    options = parser().parse_args(arguments)
    check(options)
    if find_spec("triton") is None:
        raise ValueError(f"precompile needs triton, which is not installed (on {sys.platform})")
    os.environ.pop("TRITON_INTERPRET", None)  # before the first import of triton: such a process compiles nothing
    from experiments.precompile.run import run

    return run(options)


def check(options: argparse.Namespace) -> None:
    """Hold options to each other.

    Raises:
        ValueError: they do not go together.
    """
    networks = [name for name in ("architecture", "config") if getattr(options, name) is not None]
    if len(networks) > 1:
        raise ValueError("give either --architecture or --config, not both")
    if not networks:
        if options.source is None:
            raise ValueError("give --architecture NAME or --config RECIPE to compile for, or --from FILE to unpack")
        idle = [name for name in ("batch", "size", "dtype", "jobs", "archive") if getattr(options, name) is not None]
        if idle:
            raise ValueError(f"--{idle[0]} needs an --architecture or a --config")
    check_file(options.archive, "--archive", ".tar.xz")
