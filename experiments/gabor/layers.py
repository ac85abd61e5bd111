"""Which layers a file of weights has, and which of them can be scored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from experiments.checkpoints import check_finite
from lightning_modules.architectures.weights import is_state_dict, read_safely
from lightning_modules.gabor_score import not_measurable

PREFIX = "network."  # of what is a LightningModule's
WEIGHT = "weight"
EXTRA = "_extra_state"  # what a module may add to a state_dict, of any kind
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_state(path: Path) -> dict[str, Tensor]:
    """The state_dict that is in a file, or in the checkpoint in a file, with names relative to the network.

    Raises:
        ValueError: there is no such file, it cannot be read safely, or holds something else.
    """
    if not path.is_file():
        raise ValueError(f"--checkpoint {path}: {'a directory' if path.is_dir() else 'no such file'}")
    content = read_safely(path, "checkpoint")
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if isinstance(state, dict):
        state = {name: value for name, value in state.items() if not str(name).endswith(EXTRA)}
    if not is_state_dict(state):
        raise ValueError(
            f"checkpoint {path} must hold a state_dict, a tensor for each name, by itself or as state_dict"
        )
    return {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}


def convolutions(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights [O, C, kh, kw] of a state_dict, by the name of their layer."""
    return {
        name.removesuffix(f".{WEIGHT}"): tensor
        for name, tensor in state.items()
        if name.split(".")[-1] == WEIGHT and tensor.ndim == 4 and _has_numbers(tensor)
    }


def _has_numbers(tensor: Tensor) -> bool:
    """Whether this is more than a shape, in a dtype to compute with."""
    return tensor.dtype in DTYPES and tensor.layout == torch.strided and not tensor.is_meta and tensor.numel() > 0


def window_of(weight: Tensor) -> tuple[int, int]:
    return weight.shape[2], weight.shape[3]


def first_layer(state: dict[str, Tensor]) -> Tensor:
    """The weight of the first convolution of a network."""
    return next(iter(convolutions(state).values()))


def measurable(state: dict[str, Tensor], names: Sequence[str], path: Path) -> dict[str, Tensor]:
    """The weights [O, C, kh, kw] to score: of the named layers, or of all that can be.

    Args:
        path: the file that they are from, for messages.

    Raises:
        ValueError: there are none, a named layer does not exist or cannot be scored, or a weight is not finite.
    """
    layers = convolutions(state)
    names = [name if name in layers else name.removeprefix(PREFIX) for name in names]
    if not layers:
        raise ValueError(f"checkpoint {path} has no convolution: no weight [outputs, channels, height, width]")
    for name in names:
        _check_layer(name, layers, state)
    reasons = {name: not_measurable(window_of(layers[name])) for name in names or layers}
    chosen = {name: layers[name] for name, reason in reasons.items() if reason is None}
    if not chosen:
        largest = max(layers, key=lambda name: min(window_of(layers[name])))
        raise ValueError(f"checkpoint {path} has no layer that can be scored: {largest} has {reasons[largest]}")
    check_finite({f"{name}.{WEIGHT}": weight for name, weight in chosen.items()}, path)
    return chosen


def _check_layer(name: str, layers: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    known = ", ".join(each for each, weight in layers.items() if window_of(weight) != (1, 1)) or "none"
    if name not in layers and f"{name}.{WEIGHT}" not in state:
        raise ValueError(f"--layer {name}: no such layer; those with a window are {known}")
    if name not in layers or window_of(layers[name]) == (1, 1):
        shape = list(state[f"{name}.{WEIGHT}"].shape)
        raise ValueError(f"--layer {name}: its weight {shape} has no spatial window; those with one are {known}")
    reason = not_measurable(window_of(layers[name]))
    if reason is not None:
        raise ValueError(f"--layer {name} has {reason}")
