"""`convnets precompile` itself: which network and batches, and what to say of the outcome."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from experiments.precompile.archive import pack, unpack
from experiments.precompile.cache import cache_folder
from experiments.precompile.compiling import compile_ahead
from experiments.precompile.step import Batch, run_batches, types_of
from experiments.precompile.target import NAMES, gpu_target
from experiments.recipe import data_of_recipe, network_of_architecture, network_of_recipe, setting_of_recipe
from kernels import tuning

BATCH = 32
SHOWN = 3


def run(options: argparse.Namespace) -> int:
    """Compile what the options ask for; the exit code is 1 if any kernel does not compile.

    Raises:
        ValueError: whatever the user can put right.
    """
    target = options.target
    if target is None and torch.cuda.is_available():
        target = tuning.target()
    if target is not None:
        gpu_target(target)
    if options.source is not None:
        name, count = unpack(options.source, target)
        target = target or name
        print(f"{options.source}: {count} kernels for {name}, now in {cache_folder()}")
        if options.architecture is None and options.config is None:
            return 0
    if target is None:
        raise ValueError(f"there is no GPU here: name a --target, {NAMES}")
    network, batches, precision = work_of(options)
    outcome = compile_ahead(target, computation(network, batches, precision), options.jobs)
    print(f"{target}: {type(network).__name__}, {describe(batches)}, {precision}: {outcome}")
    for fault in outcome.faults[:SHOWN]:
        print(f"not compiled: {fault}")
    if len(outcome.faults) > SHOWN:
        print(f"and {len(outcome.faults) - SHOWN} more not compiled")
    print(f"cache: {cache_folder()}")
    if options.archive is not None:
        count = pack(options.archive, target, [kernel.key for kernel in outcome.kernels])
        print(f"{options.archive}: {count} kernels, {options.archive.stat().st_size / 2**20:.2f} MiB")
    return int(bool(outcome.faults))


def work_of(options: argparse.Namespace) -> tuple[nn.Module, list[Batch], str]:
    """Return the network, the batches that it is given, and the precision.

    Raises:
        ValueError: there is no such network or precision, or the data of a recipe are not there.
    """
    precision = "float16" if options.dtype is None else options.dtype
    if options.config is not None and options.dtype is None:
        precision = str(setting_of_recipe(options.config, "trainer.precision", "32-true"))
    types_of(precision)
    network, shape = network_of(options, None)
    if options.size is not None:
        if len(options.size) != len(shape) - 1:
            raise ValueError(f"--size takes {len(shape) - 1} extents for {type(network).__name__}, got {options.size}")
        network, _ = network_of(options, (shape[0], *options.size))
        shape = (shape[0], *options.size)
    if options.config is None or options.batch is not None:
        whole = (options.batch or BATCH, *shape)
        return network, [Batch(whole, training=True), Batch(whole, training=False)], precision
    from experiments.precompile.data import batches_of

    data = data_of_recipe(options.config)
    data.prepare_data()
    data.setup("fit")
    batches = batches_of(data, "fit")
    if options.size is not None:
        batches = list(dict.fromkeys(Batch((batch.shape[0], *shape), batch.training) for batch in batches))
    return network, batches, precision


def network_of(options: argparse.Namespace, shape: tuple[int, ...] | None) -> tuple[nn.Module, tuple[int, ...]]:
    """Return the network that is asked for, made for images of `shape` or its own, and the shape of its images."""
    network: Any
    if options.config is not None:
        network = network_of_recipe(options.config, shape)
    else:
        network = network_of_architecture(options.architecture, shape)
    return network, tuple(network.input_shape)


def computation(network: nn.Module, batches: Sequence[Batch], precision: str) -> Callable[[], None]:
    """Return the function that runs a network on batches; what it cannot do with them is a ValueError."""

    def compute() -> None:
        try:
            run_batches(network, batches, precision)
        except RuntimeError as error:  # of an operation whose arguments do not fit
            first, *_ = str(error).splitlines() or [""]
            raise ValueError(f"{type(network).__name__} does not run on {describe(batches)}: {first}") from error

    return compute


def describe(batches: Sequence[Batch]) -> str:
    """Return batches in words: their shapes, of many the first three, in training and in evaluation."""
    parts = []
    for word in ("training", "evaluation"):
        shapes = ["x".join(map(str, batch.shape)) for batch in batches if batch.training == (word == "training")]
        more = f" and {len(shapes) - SHOWN} more" if len(shapes) > SHOWN else ""
        if shapes:
            parts.append(f"{word} on {', '.join(shapes[:SHOWN])}{more}")
    return ", ".join(parts)
