"""What a recipe is made of, without a trainer: its data, and its network, or an architecture by its name."""

from __future__ import annotations

import inspect
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import ArgumentParser
from torch import nn

from experiments.config import looked_up, read_config
from lightning_modules import architectures

KEY = ("model", "init_args", "network")
ARCHITECTURES: dict[str, type[nn.Module]] = {
    name: each
    for name in architectures.__all__
    if isinstance(each := getattr(architectures, name), type) and issubclass(each, nn.Module)
}


def data_of_recipe(path: Path, **arguments: Any) -> pl.LightningDataModule:
    """The data module of a recipe; with `arguments` in the place of its own.

    Raises:
        ValueError: it has none, or one that cannot be made.
    """
    config: Any = read_config(str(path)).get("data")
    if arguments and isinstance(config, dict):
        config = {**config, "init_args": {**(config.get("init_args") or {}), **arguments}}
    try:
        data: pl.LightningDataModule = _made(pl.LightningDataModule, config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return data


def setting_of_recipe(path: Path, key: str, default: Any) -> Any:
    """Return what a recipe sets a dotted key to."""
    return looked_up(read_config(str(path)), key, default)


def network_of_recipe(path: Path, input_shape: Sequence[int] | None = None) -> nn.Module:
    """The network of a recipe; with `input_shape` in place of its own, where its class takes one.

    Raises:
        ValueError: the recipe cannot be read, has no network, or one that cannot be made.
    """
    config: Any = read_config(str(path))
    for key in KEY:
        config = config.get(key) if isinstance(config, dict) else None
    if not isinstance(config, dict) or "class_path" not in config:
        raise ValueError(f"--config {path} must have a class_path under {'.'.join(KEY)}")
    network = _checked(_made(nn.Module, config))
    own = config.get("init_args") or {}
    return _resized(
        network, input_shape, lambda shape: _made(nn.Module, {**config, "init_args": {**own, "input_shape": shape}})
    )


def network_of_architecture(name: str, input_shape: Sequence[int] | None = None) -> nn.Module:
    """A class of `lightning_modules.architectures` with its defaults; case does not count.

    Raises:
        ValueError: there is none of this name, or it cannot take images of `input_shape`.
    """
    kind = {known.lower(): each for known, each in ARCHITECTURES.items()}.get(name.lower())
    if kind is None:
        raise ValueError(f"--architecture must be one of {', '.join(ARCHITECTURES)}, got {name!r}")
    return _resized(_checked(kind()), input_shape, lambda shape: kind(input_shape=tuple(shape)))


def _resized(network: Any, input_shape: Sequence[int] | None, make: Callable[[list[int]], Any]) -> nn.Module:
    """Return what `make` makes for another input_shape, or the network itself where its class takes none."""
    if input_shape is None or "input_shape" not in inspect.signature(type(network)).parameters:
        return network
    axes, shape = len(network.input_shape), list(input_shape)
    if len(shape) != axes:
        raise ValueError(f"{type(network).__name__} takes images of {axes} extents, channels first, got {shape}")
    return _checked(make(shape))


def _made(kind: type, config: Any) -> Any:
    """An object of `kind` by its class_path and init_args."""
    parser = ArgumentParser(exit_on_error=False)
    name = "data" if kind is pl.LightningDataModule else "network"
    parser.add_subclass_arguments(kind, name, required=True)
    try:
        parsed = parser.parse_object({name: config})
    except ArgumentError as error:
        raise ValueError(error.message or str(error)) from error
    return parser.instantiate(parsed)[name]


def _checked(network: Any) -> Any:
    if not hasattr(network, "input_shape"):
        raise ValueError(f"{type(network).__name__} has no input_shape: it is needed to make an image for it")
    return network
