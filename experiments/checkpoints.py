"""Finding, reading and checking checkpoints before anything is trained or written."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_modules.architectures.weights import first_difference, is_state_dict, read_safely


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
