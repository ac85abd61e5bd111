"""`convnets gabor`: what is asked for; everything heavy is imported after that."""

from __future__ import annotations

from pathlib import Path

from experiments.arguments import Parser, check_folder, seed

SEEDS = (3, 4, 5)  # none of them has a part in choosing the recipes

DESCRIPTION = """\
Score how closely the kernels of convolutions resemble Gabor functions: those in a file, or what different ways to learn
give.

With --checkpoint, FILE is a checkpoint of convnets fit, or a state_dict that torch.save wrote, as torchvision's are.
Its layers are the weights [outputs, channels, height, width], by name. Scored are windows of 7x7 and more: smaller ones
fit noise. Beside a table, a figure of each layer is written, and gabor.json with all that was found of each kernel.
  R2           of the closest Gabor functions, over the kernels that are not dead
  above null   of all kernels, those with an R2 that 95 % of noise stays below: the null R2
  Gabor-like   of all kernels, those which are strictly so: by R2, bandwidth, extent and place
  entropy      of orientations: 1 where all are equally frequent, 0 where there is one only
  octaves      bandwidth; n_x and n_y, the envelope along and across the wave, in wavelengths. Medians, and the entropy,
               are over the kernels above the null
  dead         kernels with next to no weight
  share        of the kernels' energy in their first principal component over the channels, which is what is scored

With --compare, two recipes are trained with each seed on the torch backend: the sparse autoencoder, which is ICA-like,
and a supervised network. Their first layers are compared with what they were before, and with the principal components
of the autoencoder's photographs. A Markdown table is printed, and comparison.png and comparison.json are written.
"""

EXAMPLES = """\
examples:
  convnets gabor --checkpoint logs/autoencoder/version_0/checkpoints/last.ckpt
  convnets gabor --checkpoint alexnet-owt-7be5be79.pth --layer features.0 --output alexnet
  convnets gabor --compare
"""


def parser() -> Parser:
    parser = Parser("gabor", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("--checkpoint", type=Path, metavar="FILE", help="score the layers of a checkpoint or state_dict")
    add("--layer", action="append", metavar="NAME",
        help="a layer to score, may be repeated; default: all that can be")  # fmt: skip
    add("--compare", action="store_true", help="compare what different ways to learn give")
    add("--seeds", type=seed, nargs="+", metavar="N", help=f"default: {' '.join(map(str, SEEDS))}")
    add("--output", type=Path, metavar="DIRECTORY",
        help="where figures and JSON go; default: gabor-NAME, of the file, or gabor-comparison")  # fmt: skip
    return parser


def main(arguments: list[str]) -> int:
    """Run `convnets gabor` and return its exit code, 0.

    Raises:
        ValueError: whatever the user can put right.
        KeyboardInterrupt: when interrupted; nothing is written.
    """
    options = parser().parse_args(arguments)
    if (options.checkpoint is not None) == options.compare:
        raise ValueError(f"give one of --checkpoint and --compare, got {'both' if options.compare else 'none'}")
    if options.layer and options.compare:
        raise ValueError("--layer is for --checkpoint: --compare scores first layers")
    if options.seeds and not options.compare:
        raise ValueError("--seeds is for --compare: a checkpoint is trained already")
    output = options.output or Path("gabor-comparison" if options.compare else f"gabor-{options.checkpoint.stem}")
    check_folder(output)
    if options.compare:
        from experiments.gabor.comparison import compare

        return compare(list(dict.fromkeys(options.seeds or SEEDS)), output)
    from experiments.gabor.run import score

    return score(options.checkpoint, options.layer or [], output)
