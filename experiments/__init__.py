"""How it is trained: the command line, and one commented recipe a YAML file."""

COMMANDS = ("fit", "validate", "test", "predict")
