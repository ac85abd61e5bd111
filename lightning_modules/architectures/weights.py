"""Weights that were trained elsewhere: state_dicts of torchvision's models, from a file or from its own store.

A file is read with `weights_only=True`, which refuses whatever is more than tensors and plain values.
"""

from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

COUNTER = "num_batches_tracked"  # of a batch norm; files from before PyTorch 0.4.1 have none


def load_weights(network: nn.Module, weights: str | None, model: str) -> None:
    """Load a state_dict of torchvision's into a network that has its keys.

    Args:
        network: what is to have the weights.
        weights: None, which leaves the network as it is; the path of a file with a state_dict; or the name of one of
            torchvision's weights of this model, as "IMAGENET1K_V1", which is downloaded unless it was before.
        model: torchvision's name of the model.

    Raises:
        ValueError: there are no such weights, they cannot be read or downloaded, or they are of another network.
    """
    if weights is None:
        return
    state = _state_of_file(Path(weights)) if Path(weights).is_file() else _downloaded(weights, model)
    here = network.state_dict()
    state = {key: value for key, value in here.items() if key.endswith(COUNTER)} | state
    difference = first_difference(state, here)
    if difference:
        raise ValueError(f"weights {weights} are not of this network: {difference}")
    network.load_state_dict(state)


def read_safely(path: Path, what: str) -> Any:
    """The content of a file that torch.save wrote, read with `weights_only=True`.

    Args:
        what: what the file is, to begin a message with.

    Raises:
        ValueError: the file cannot be read, is damaged, or would have to run code to be read.
    """
    try:
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # what reading damaged bytes raises depends on the bytes
        unsafe = _unsafe_globals(path)
        if unsafe:
            raise ValueError(
                f"{what} {path} is refused: it holds more than tensors and plain values, "
                f"and reading {', '.join(unsafe)} could run any code (only weights_only=True is accepted)"
            ) from error
        if isinstance(error, OSError) and error.errno is not None:
            raise ValueError(f"{what} {path} cannot be read: {error.strerror}") from error
        raise ValueError(f"{what} {path} is truncated or damaged, or no {what} at all") from error


def first_difference(there: dict[str, Tensor], here: dict[str, Tensor]) -> str | None:
    """What two state_dicts first differ in, a key or a shape, and how often they differ besides; None if they agree."""
    shapes = [{key: list(value.shape) for key, value in state.items()} for state in (there, here)]
    differences = [
        f"{key} is {shapes[0].get(key, 'missing')} there and {shapes[1].get(key, 'missing')} here"
        for key in shapes[1] | shapes[0]
        if shapes[0].get(key) != shapes[1].get(key)
    ]
    if not differences:
        return None
    return differences[0] + (f", and {len(differences) - 1} more differ" if len(differences) > 1 else "")


def is_state_dict(state: object) -> bool:
    """Whether this is a dict of tensors by name."""
    return isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    )


def _state_of_file(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = read_safely(path, "weights")
    if not is_state_dict(state):
        raise ValueError(f"weights {path} must hold a state_dict, which has a tensor for each name, and nothing else")
    return state


def _downloaded(weights: str, model: str) -> dict[str, Tensor]:
    from torchvision.models import get_model_weights  # takes seconds

    known = get_model_weights(model)
    if weights not in known.__members__:
        raise ValueError(
            f"weights must be a file with a state_dict, or one of torchvision's {', '.join(known.__members__)}, "
            f"got {weights!r}, which is neither"
        )
    url = known[weights].url
    try:
        state: dict[str, Tensor] = known[weights].get_state_dict(check_hash=True, map_location="cpu", weights_only=True)
    except OSError as error:
        reason = error.reason if isinstance(error, URLError) else error
        raise ValueError(
            f"weights {weights} cannot be downloaded from {url} ({reason}): where there is no network, give the path "
            f"of that file"
        ) from error
    except Exception as error:  # as in reading a file
        raise ValueError(
            f"weights {weights}: the download of {url} in {torch.hub.get_dir()} is damaged: remove it"
        ) from error
    return state


def _unsafe_globals(path: Path) -> list[str]:
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # as in reading a file
        return []
