"""Read configuration files, and check what Lightning takes without a look."""

from collections.abc import Callable, Mapping
from typing import Any

NUMBERS: dict[str, tuple[str, Callable[[float], bool]]] = {  # of the trainer, which divides by them or misreads them
    "accumulate_grad_batches": ("at least 1", lambda number: number >= 1),
    "check_val_every_n_epoch": ("at least 1", lambda number: number >= 1),
    "val_check_interval": ("positive", lambda number: number > 0),
    "limit_train_batches": ("positive", lambda number: number > 0),
    "gradient_clip_val": ("at least 0", lambda number: number >= 0),
    "log_every_n_steps": ("at least 0", lambda number: number >= 0),
    "min_epochs": ("at least 0", lambda number: number >= 0),
    "min_steps": ("at least 0", lambda number: number >= 0),
    "num_sanity_val_steps": ("at least 0, or -1 for all", lambda number: number >= -1),
}


def check_numbers(trainer: Mapping[str, Any]) -> None:
    """Hold the numbers of a trainer to what training can take.

    Raises:
        ValueError: one of them is too small; it is named.
    """
    for name, (accepted, is_accepted) in NUMBERS.items():
        number = trainer.get(name)
        if isinstance(number, int | float) and not is_accepted(number):
            raise ValueError(f"--trainer.{name} must be {accepted}, got {number}")


def setting(args: list[str], key: str, default: str | None) -> Any:
    """Return what a command line sets a dotted key to, by an option or in a config file; the last wins.

    Raises:
        ValueError: a config file is missing, or is no YAML mapping.
    """
    value: Any = default
    for position, arg in enumerate(args):
        option, equals, text = arg.partition("=")
        if not equals:
            text = args[position + 1] if position + 1 < len(args) else ""
        if option == f"--{key}":
            value = text
        elif option in ("-c", "--config"):
            value = looked_up(read_config(text), key, value)
    return value


def looked_up(config: Any, key: str, default: Any) -> Any:
    """Return what nested mappings have under a dotted key."""
    for part in key.split("."):
        if not isinstance(config, dict) or part not in config:
            return default
        config = config[part]
    return config


def read_config(path: str) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Raises:
        ValueError: the file cannot be read, is no YAML mapping, has a key twice, or something that contains itself.
    """
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            loader = yaml.SafeLoader(file.read())
        node = loader.get_single_node()
        check_keys(node, path)
        config = None if node is None else loader.construct_document(node)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path}: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path} is not YAML: {error}") from error
    except RecursionError as error:
        raise ValueError(f"--config {path} is nested too deeply") from error
    if not isinstance(config, dict):
        raise ValueError(f"--config {path} must hold a mapping of keys to values, got {type(config).__name__}")
    trainer = config.get("trainer", {})
    if not isinstance(trainer, dict | str):  # or the name of a file
        raise ValueError(f"--config {path}: trainer must be a mapping of keys to values, got {trainer!r}")
    return config


def check_keys(node: Any, path: str) -> None:
    """Refuse a mapping with the same key twice, of which YAML's readers take the last, and what contains itself.

    Args:
        node: of the graph that yaml.compose makes of a file.
        path: the file.

    Raises:
        ValueError: a key stands twice, or an alias within what it stands for; the lines are named.
    """
    is_open: dict[int, bool] = {}  # of the nodes that were seen: an alias is the node that it names

    def check(node: Any) -> None:
        if is_open.get(id(node)):
            line = node.start_mark.line + 1
            raise ValueError(f"--config {path} has an alias within what it stands for, which begins in line {line}")
        if id(node) in is_open or not isinstance(getattr(node, "value", None), list):
            return
        is_open[id(node)] = True
        lines: dict[str, int] = {}
        for item in node.value:
            key, value = item if isinstance(item, tuple) else (None, item)
            name = getattr(key, "value", None)
            if isinstance(name, str):
                line = key.start_mark.line + 1
                if name in lines:
                    raise ValueError(f"--config {path} has the key {name} twice, in lines {lines[name]} and {line}")
                lines[name] = line
            check(value)
        is_open[id(node)] = False

    check(node)
