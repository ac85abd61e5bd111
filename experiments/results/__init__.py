"""`convnets results`: what is asked for; everything heavy is imported after that."""

from __future__ import annotations

from pathlib import Path

from experiments.arguments import Parser, check_file, check_folder, seed

RECIPES = Path(__file__).parents[1]

DESCRIPTION = """\
Run recipes with several seeds, and hold them to what they expect.

Each recipe is trained and tested by `convnets fit` on the torch backend, one run after another; once with its layers
replaced by torch.nn's, with the first seed, to see how far the loss curves differ; and a linear classifier is fitted to
the same data: of all values of the input, or, where there is a label for each pixel, of the window around it. Where the
recipe names an ablation, that is trained with all seeds, too. What a recipe expects stands under its key `expect`.
The exit code is 1 where an expectation is not met or a run failed.

Each result is kept as it is found: interrupt at any time, and go on with the same command. What was run is not run
again unless the recipe changes. A Markdown table is printed.
"""

EXAMPLES = """\
examples:
  convnets results                                    # every recipe of experiments/
  convnets results digits --seeds 0 1 2 3 4 --again
  convnets results my.yaml -- --trainer.max_epochs 1  # options of convnets fit
"""


def parser() -> Parser:
    parser = Parser("results", DESCRIPTION, EXAMPLES)
    parser.usage = "convnets results [RECIPE ...] [options] [-- options of convnets fit]"
    add = parser.add_argument
    add(
        "recipes", nargs="*", metavar="RECIPE", help="a file, or the name of one in experiments/; default: all of those"
    )
    add("--seeds", type=seed, nargs="+", default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    add("--json", type=Path, default=Path("logs/results.json"), metavar="FILE",
        help="where results are kept; default: logs/results.json")  # fmt: skip
    add("--markdown", type=Path, metavar="FILE", help="write the table")
    add("--again", action="store_true", help="run what was run already, too")
    return parser


def main(arguments: list[str]) -> int:
    """Run `convnets results` and return its exit code: 0, or 1 where something is not as expected.

    Raises:
        ValueError: whatever the user can put right.
        KeyboardInterrupt: what was found until then is kept.
    """
    place = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser().parse_args(arguments[:place])
    options.recipes = [recipe(name) for name in options.recipes] or sorted(RECIPES.glob("*.yaml"))
    options.fit = tuple(arguments[place + 1 :])
    check_folder(options.json.parent, "--json")
    if options.json.exists():
        check_file(options.json, "--json")
    check_file(options.markdown, "--markdown")
    from experiments.results.run import run

    return run(options)


def recipe(name: str) -> Path:
    """The file of a recipe.

    Raises:
        ValueError: there is none.
    """
    for path in (Path(name), RECIPES / f"{name}.yaml"):
        if path.is_file():
            return path.resolve()
    known = ", ".join(path.stem for path in sorted(RECIPES.glob("*.yaml")))
    raise ValueError(f"RECIPE must be a file or one of {known}, got {name!r}")
