"""How it is trained and measured: the command line, and one commented recipe a YAML file."""

COMMANDS = ("fit", "validate", "test", "predict")  # of Lightning, see cli.py
# For kernels: the module whose main(arguments) -> exit code is the command.
TOOLS = {"bench": "experiments.bench", "inspect": "experiments.inspection"}
