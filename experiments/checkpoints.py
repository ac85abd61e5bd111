"""Finding, reading and checking checkpoints before anything is trained or written."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.finite import not_finite


def find_checkpoint(given: str, runs: Path) -> Path:
    """The file that `--ckpt_path` means.

    Args:
        given: a path, or "best" or "last" for the newest such checkpoint among `runs`.
        runs: directory with a directory for each run.

    Raises:
        ValueError: there is no such file.
    """
    if given not in ("best", "last"):
        if not Path(given).is_file():
            raise ValueError(f"--ckpt_path {given}: {'a directory' if Path(given).is_dir() else 'no such file'}")
        return Path(given)
    found = sorted(runs.glob(f"*/checkpoints/{given}.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ValueError(f"--ckpt_path {given}: no {given}.ckpt among the runs in {runs}")
    return found[-1]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, read with `weights_only=True`.

    Raises:
        ValueError: the file is damaged, would have to run code to be read, or is no checkpoint of Lightning.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what reading damaged bytes raises depends on the bytes
        unsafe = _unsafe_globals(path)
        if unsafe:
            raise ValueError(
                f"checkpoint {path} is refused: it holds more than tensors and plain values, "
                f"and reading {', '.join(unsafe)} could run any code (only weights_only=True is accepted)"
            ) from error
        raise ValueError(f"checkpoint {path} is truncated or damaged, or no checkpoint at all") from error
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    tensors = isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())
    if not tensors or "pytorch-lightning_version" not in checkpoint:
        raise ValueError(f"checkpoint {path} was not written by Lightning: it has no version or state_dict of its kind")
    return checkpoint


def check_fits(state: dict[str, Tensor], module: nn.Module, path: Path) -> None:
    """Hold a checkpoint's state_dict to the module that is to load it.

    Raises:
        ValueError: it was saved from another architecture; the first difference is named.
    """
    here = {key: list(value.shape) for key, value in module.state_dict().items()}
    there = {key: list(value.shape) for key, value in state.items()}
    differences = [
        f"{key} is {there.get(key, 'missing')} there and {here.get(key, 'missing')} here"
        for key in here | there
        if here.get(key) != there.get(key)
    ]
    if differences:
        more = f", and {len(differences) - 1} more differ" if len(differences) > 1 else ""
        raise ValueError(f"checkpoint {path} is of another architecture: {differences[0]}{more}")


def check_finite(state: dict[str, Tensor], path: Path) -> None:
    """Raises ValueError, which names them, if weights of a checkpoint are NaN or infinite."""
    names = list(not_finite(state))
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise ValueError(f"checkpoint {path} holds weights that are not finite: {names[0]}{more}")


def check_resumable(checkpoint: dict[str, Any], path: Path) -> None:
    """Raises ValueError if a checkpoint has no state of the optimizer."""
    if not {"optimizer_states", "lr_schedulers", "loops"} <= checkpoint.keys():
        raise ValueError(f"checkpoint {path} holds weights only: it can be evaluated, but no training resumed from it")


def _unsafe_globals(path: Path) -> list[str]:
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # as above
        return []
