"""How it is trained and measured: the command line, and one commented recipe a YAML file."""

COMMANDS = ("fit", "validate", "test", "predict")  # of Lightning, see cli.py
TOOLS = {  # besides: the module whose main(arguments) -> exit code is the command
    "bench": "experiments.bench",
    "figures": "experiments.gallery",
    "gabor": "experiments.gabor",
    "gpu": "experiments.gpu",
    "inspect": "experiments.inspection",
    "precompile": "experiments.precompile",
    "results": "experiments.results",
    "summary": "experiments.summary",
    "tune": "experiments.tune",
}
