"""`convnets precompile` itself: which network and batches, and what to say of the outcome."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch
from torch import nn

from experiments.precompile.archive import pack, unpack
from experiments.precompile.cache import cache_folder
from experiments.precompile.compiling import Outcome, compile_ahead
from experiments.precompile.step import PRECISIONS, Batch, run_batches
from experiments.precompile.target import NAMES, gpu_target
from experiments.recipe import data_of_recipe, network_of_architecture, network_of_recipe, setting_of_recipe
from kernels import tuning

BATCH = 32


def run(options: argparse.Namespace) -> int:
    """Compile what the options ask for; the exit code is 1 if any kernel does not compile.

    Raises:
        ValueError: whatever the user can put right.
    """
    target = options.target or (tuning.target() if torch.cuda.is_available() else None)
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
    print(f"{target}: {type(network).__name__}, {described(batches)}, {precision}: {summary(outcome)}")
    for fault in outcome.faults:
        print(f"not compiled: {fault}")
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
    precision = options.dtype
    if options.config is not None:
        network = network_of_recipe(options.config)
        precision = precision or str(setting_of_recipe(options.config, "trainer.precision", "32-true"))
    else:
        network = network_of_architecture(options.architecture)
    if options.size is not None:
        shape = (network.input_shape[0], *options.size)  # type: ignore[index]
        if len(shape) != len(network.input_shape):  # type: ignore[arg-type]
            raise ValueError(
                f"--size takes {len(network.input_shape) - 1} extents for {type(network).__name__}, got {len(options.size)}"
            )
        if options.config is not None:
            network = network_of_recipe(options.config, shape)
        else:
            network = network_of_architecture(options.architecture, shape)
    precision = precision or "float16"
    if precision not in PRECISIONS:
        raise ValueError(f"--dtype must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if options.config is not None and options.batch is None and options.size is None:
        from experiments.precompile.data import batches_of

        data = data_of_recipe(options.config)
        data.prepare_data()
        data.setup("fit")
        return network, batches_of(data, "fit"), precision
    shape = shape if options.size is not None else tuple(network.input_shape)  # type: ignore[arg-type]
    whole = (options.batch or BATCH, *shape)
    return network, [Batch(whole, True), Batch(whole, False)], precision


def computation(network: nn.Module, batches: Sequence[Batch], precision: str) -> Callable[[], None]:
    """Return the function that runs a network on batches; what it cannot do with them is a ValueError."""

    def compute() -> None:
        try:
            run_batches(network, batches, precision)
        except RuntimeError as error:  # of an operation whose arguments do not fit
            first, *_ = str(error).splitlines() or [""]
            raise ValueError(f"{type(network).__name__} does not run on {described(batches)}: {first}") from error

    return compute


def described(batches: Sequence[Batch]) -> str:
    """Return batches in words: the shape of an image, and the numbers of images in training and evaluation."""
    grid = "x".join(map(str, batches[0].shape[1:]))
    sizes = {
        word: ", ".join(str(batch.shape[0]) for batch in batches if batch.training is training)
        for word, training in (("training", True), ("evaluation", False))
    }
    return f"{grid}, batches of " + " and ".join(f"{size} ({word})" for word, size in sizes.items() if size)


def summary(outcome: Outcome) -> str:
    """Return an outcome in words."""
    parts = [f"{outcome.compiled} compiled", f"{outcome.cached} found in the cache"]
    if outcome.faults:
        parts.append(f"{len(outcome.faults)} not compiled")
    return f"{len(outcome.kernels)} kernels, {', '.join(parts)}, in {outcome.seconds:.1f} s"
