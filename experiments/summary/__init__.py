"""`convnets summary`: what is asked for; everything heavy is imported after that."""

from __future__ import annotations

from pathlib import Path

from experiments.arguments import Parser, check_file, positive

DESCRIPTION = """\
Show every layer of a network: the volumes that it takes and gives, window, stride and padding, receptive field,
parameters, connections, operations and memory.

Volumes are written H x W x C. What is fused into a layer is named in its row. For one image:
  field        positions of the input along each axis that an output reads, edges apart, and the jump from one output to
               the next; - where it reads all of the input, as from a fully connected layer on
  a kernel     weights and bias of one output
  parameters   weights + biases; of a layer that runs several times they are counted once
  connections  products of a weight and an input: weights times positions
  FLOPs        of products and their sums, by the formulas registered with PyTorch: two for each product computed
  output       bytes that prediction writes; none where a layer writes over its input or gives a view of it
  kept         bytes that training keeps for the backward pass, by PyTorch's operations, where they are made
"""

EXAMPLES = """\
examples:
  convnets summary --config experiments/digits.yaml
  convnets summary --architecture ConvNet --input_shape 3 32 32 --json convnet.json
"""


def parser() -> Parser:
    parser = Parser("summary", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("-c", "--config", type=Path, metavar="RECIPE", help="the network of a recipe")
    add("--architecture", metavar="NAME", help="a class of lightning_modules.architectures, as it is by default")
    add("--input_shape", type=positive, nargs="+", metavar="N",
        help="channels and grid of the image (C H W); default: the network's own")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write all figures")
    return parser


def main(arguments: list[str]) -> int:
    """Run `convnets summary` and return its exit code, 0.

    Raises:
        ValueError: whatever the user can put right.
    """
    options = parser().parse_args(arguments)
    given = [f"--{name}" for name in ("config", "architecture") if getattr(options, name) is not None]
    if len(given) != 1:
        raise ValueError(f"give one of --config and --architecture, got {' and '.join(given) or 'none'}")
    check_file(options.json, "--json")
    from experiments.summary.run import run

    return run(options)
