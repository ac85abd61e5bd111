"""Read and check checkpoints before anything is trained or written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.architectures.weights import first_difference, is_state_dict, read_safely
from lightning_modules.finite import not_finite
from lightning_modules.reproducibility import HYPER_PARAMETERS, KEY, random_state

STATES = {  # what training goes on from
    "global_step": int, "loops": dict, "callbacks": dict, "optimizer_states": list, "lr_schedulers": list
}  # fmt: skip
ANEW = "--resume weights starts anew from its weights"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, read with `weights_only=True`.

    Raises:
        ValueError: there is no such file, it is damaged, would have to run code to be read, or is not Lightning's.
    """
    if not path.is_file():
        raise ValueError(f"--ckpt_path {path}: {'a directory' if path.is_dir() else 'no such file'}")
    checkpoint: dict[str, Any] = read_safely(path, "checkpoint")
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not is_state_dict(state) or "pytorch-lightning_version" not in checkpoint:
        raise ValueError(f"checkpoint {path} was not written by Lightning: it has no version or state_dict of its kind")
    return checkpoint


def check_fits(state: dict[str, Tensor], module: nn.Module, path: Path) -> None:
    """Hold a checkpoint's state_dict to the module that is to load it.

    Raises:
        ValueError: it was saved from another architecture; the first difference is named.
    """
    difference = first_difference(state, module.state_dict())
    if difference:
        raise ValueError(f"checkpoint {path} is of another architecture: {difference}")


def check_finite(state: dict[str, Tensor], path: Path) -> None:
    """Raises ValueError, which names them, if weights of a checkpoint are NaN or infinite."""
    names = list(not_finite(state))
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise ValueError(f"checkpoint {path} holds weights that are not finite: {names[0]}{more}")


def check_resumable(checkpoint: dict[str, Any], path: Path) -> None:
    """Hold a checkpoint to what training goes on from.

    Raises:
        ValueError: it has no state of the optimizer, or one that cannot be.
    """
    if not {"optimizer_states", "lr_schedulers", "loops"} <= checkpoint.keys():
        raise ValueError(f"checkpoint {path} holds weights only: it can be evaluated, and {ANEW}")
    wrong = [name for name, kind in STATES.items() if not isinstance(checkpoint.get(name), kind)]
    states = (
        [] if wrong else [checkpoint["optimizer_states"], *checkpoint["optimizer_states"], *checkpoint["lr_schedulers"]]
    )
    if wrong or not all(states):
        raise ValueError(
            f"checkpoint {path} is damaged: it has no {', '.join(wrong) or 'optimizer or schedule'}; {ANEW}"
        )
    random = random_state(torch.device("cpu"))
    ours = {"random": {name: random[name] for name in random if name != "cuda"}, "logged": {}}
    found = [first_damage(ours, state, f"{KEY}.{rank}") for rank, state in enumerate(checkpoint.get(KEY, ()))]
    found.append(first_damage({}, checkpoint.get(HYPER_PARAMETERS, {}), HYPER_PARAMETERS))
    found.append(first_damage(0, checkpoint["global_step"], "global_step"))
    if damage := next(filter(None, found), None):
        raise ValueError(f"checkpoint {path} is damaged: no {damage}; {ANEW}")


def check_progress(checkpoint: dict[str, Any], loop: Mapping[str, Any], limits: Mapping[str, Any], path: Path) -> None:
    """Hold how far a checkpoint is to what is to be trained.

    Args:
        checkpoint: that `check_resumable` has accepted.
        loop: the state of a training loop of this version of Lightning.
        limits: `max_epochs` and `max_steps` of the trainer; None and -1 for none.
        path: the checkpoint's.

    Raises:
        ValueError: it is damaged, or further than a limit.
    """
    state = checkpoint["loops"].get("fit_loop")
    wrong = first_damage(loop, state, "loops.fit_loop")
    if wrong:
        raise ValueError(f"checkpoint {path} is damaged, or of another version of Lightning: no {wrong}; {ANEW}")
    epochs = state["epoch_progress"]["current"]["processed"]
    for name, done in (("max_epochs", epochs), ("max_steps", checkpoint["global_step"])):
        limit = limits.get(name)
        if limit is not None and 0 <= limit < done:
            unit = name.removeprefix("max_")
            raise ValueError(f"--trainer.{name} must be at least {done}, the {unit} of checkpoint {path}, got {limit}")


def first_damage(expected: Any, given: Any, name: str) -> str | None:
    """Return the name of the first number or mapping that a state lacks or has as something else, or None.

    Lists and what is empty in `expected` may hold anything.
    """
    if isinstance(expected, dict) and isinstance(given, dict):
        parts = (first_damage(each, given.get(key), f"{name}.{key}") for key, each in expected.items())
        return next(filter(None, parts), None)
    is_same_kind = isinstance(given, type(expected)) and (not isinstance(given, int) or given >= 0)
    return None if is_same_kind else name
