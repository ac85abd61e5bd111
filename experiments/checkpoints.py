"""Finding, reading and checking checkpoints before anything is trained or written."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_modules.architectures.weights import first_difference, is_state_dict, read_safely
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
    """Raises ValueError if a checkpoint has no state of the optimizer."""
    if not {"optimizer_states", "lr_schedulers", "loops"} <= checkpoint.keys():
        raise ValueError(f"checkpoint {path} holds weights only: it can be evaluated, but no training resumed from it")
