"""The tile of each launch: the recorded one, else the heuristic's. Nothing is timed when a layer is called.

Every process reads the same table, so that all ranks of a distributed run choose the same tiles; what it has chosen
once, it does not look up again.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch

from kernels import backend, heuristics, plan, table
from kernels.heuristics import INTERPRETED_BLOCK, INTERPRETER
from kernels.targets import TARGETS
from kernels.tile import Product, Tile, block

NEAR = 8  # times more or fewer positions that a record may have: images of another size, and four times as many
SUM_BLOCK = 1024  # elements that a program of the weight gradient's second pass adds up


@contextmanager
def use_tile(tile: Tile) -> Iterator[None]:
    """Launch every kernel with `tile` inside a `with` block: to tune, and to test one tile against another."""
    with plan.apart(tile):
        yield


def _forced() -> Tile | None:
    """Return the tile of the innermost `use_tile`."""
    return next((reason for reason in reversed(plan.reasons()) if isinstance(reason, Tile)), None)


def tile(
    operation: str, dtype: torch.dtype, rows: int, columns: int, depth: int, taps: int, groups: int = 1,
    phases: int = 1, batch: int = 1, device: torch.device | None = None,
) -> Tile:  # fmt: skip
    """Return the tile for one launch of `batch` images on `device`; see `kernels.tile.Product` for other arguments."""
    if (forced := _forced()) is not None:
        return forced
    return _chosen(target(device), batch, operation, dtype, rows, columns, depth, taps, groups, phases)


@functools.lru_cache(maxsize=2**14)
def _chosen(
    target: str, batch: int, operation: str, dtype: torch.dtype, rows: int, columns: int, depth: int, taps: int,
    groups: int, phases: int,
) -> Tile:  # fmt: skip
    product = Product(operation, _name(dtype), rows, columns, depth, taps, groups, phases)
    records = _recorded(target)
    if product.problem_class in records:
        return records[product.problem_class].tile
    if target == INTERPRETER:
        return heuristics.choose(target, product)
    typical = heuristics.typical(product, batch)
    tile = _recorded_near(target, typical) or heuristics.choose(target, typical)
    return heuristics.split(target, product, tile)


def _recorded_near(target: str, typical: Product) -> Tile | None:
    """Return the tile that was tuned for the same product with the nearest number of positions, if it is near."""
    anywhere = typical.with_positions(0)
    same = [record for record in _recorded(target).values() if record.product.with_positions(0) == anywhere]

    def distance(record: table.Record) -> float:
        return abs(math.log(max(1, record.product.positions) / typical.positions))

    nearest = min(same, key=distance, default=None)
    return nearest.tile if nearest is not None and distance(nearest) <= math.log(NEAR) else None


@functools.cache
def _recorded(target: str) -> dict[Product, table.Record]:
    """The tuned records; one warning where some are damaged, which do not count."""
    path = table.path_of(target)
    found = table.read(path, target)
    if found.faults:
        more = f" (and {len(found.faults) - 1} more)" if len(found.faults) > 1 else ""
        warnings.warn(
            f"{path}: {found.faults[0]}{more}; {len(found.records)} records are sound, the heuristic chooses where"
            " there is none: run `convnets tune` to record them again",
            stacklevel=1,
        )
    return found.records


@contextmanager
def products_of(target: str) -> Iterator[list[Product]]:
    """Launch nothing inside a `with` block; gives the list that fills with what tiles were asked for on `target`."""
    asked: list[Product] = []

    def note(
        operation: str, dtype: torch.dtype, rows: int, columns: int, depth: int, taps: int, groups: int = 1,
        phases: int = 1, batch: int = 1, device: torch.device | None = None,
    ) -> Tile:  # fmt: skip
        asked.append(Product(operation, _name(dtype), rows, columns, depth, taps, groups, phases))
        return heuristics.choose(target, asked[-1])

    replaced = (
        mock.patch(f"{__name__}.tile", note),
        mock.patch(f"{__name__}.target", lambda device=None: target),
        mock.patch.object(backend, "launch", lambda *_, **__: None),
    )
    with replaced[0], replaced[1], replaced[2], plan.apart(object()):
        yield asked


def pool_tile(positions: int, channels: int, itemsize: int, device: torch.device | None = None) -> Tile:
    """The block of `positions` x `channels` that one program of a pooling kernel works on (m x n; k counts nothing)."""
    if (forced := _forced()) is not None:
        return forced
    n = block(channels, 64) if channels > 1 else 1
    if target(device) == INTERPRETER:
        return Tile(block(positions, INTERPRETED_BLOCK // n), n, 1)
    return Tile((1024 if itemsize <= 2 else 512) // n, n, 1)


def norm_tile(positions: int, channels: int, itemsize: int, device: torch.device | None = None) -> Tile:
    """The block of `positions` x `channels` that a step of a batch norm kernel works on (m x n; k counts nothing).

    `splits` programs share the positions: enough to fill a GPU, and few enough that adding up their shares, which every
    program does for its channels, reads less than its own part of the input (estimated, not timed).
    """
    if (forced := _forced()) is not None:
        return forced
    if target(device) == INTERPRETER:
        n = block(channels, 64)
        return Tile(block(positions, INTERPRETED_BLOCK // n), n, 1)
    n = block(channels, 32)
    m = (2048 if itemsize == 2 else 1024) // n
    return Tile(m, n, 1, splits=max(1, min(most_norm_splits(channels), positions // (4 * m))))


def most_norm_splits(channels: int) -> int:
    """Return the largest number of splits of a batch norm's positions on a GPU."""
    return max(1, min(128, 512 // -(-channels // block(channels, 32))))


def target(device: torch.device | None = None) -> str:
    """Return what kernels run on for tensors of `device`: "interpreter", or an architecture as "sm_90" or "gfx942".

    Without a device, or with one that has no number, it is the current GPU.
    """
    if backend.INTERPRETING:
        return INTERPRETER
    known = device is not None and device.index is not None
    return _architecture(device.index if known else torch.cuda.current_device())


@functools.cache
def _architecture(device: int) -> str:
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "gcnArchName", "").split(":")[0] or f"sm_{properties.major}{properties.minor}"


def has_tf32(device: torch.device | None = None) -> bool:
    """Return True if `device` can multiply float32 as TF32: NVIDIA's GPUs (which do from sm_80 on) and AMD's gfx942."""
    return target(device) == "gfx942" or target(device).startswith("sm_")


def multiplies_from_shared_memory(device: torch.device | None = None) -> bool:
    """Return True if products read their factors there: to change what was loaded takes it through registers and back.

    So do those of NVIDIA's GPUs from sm_90 on; the interpreter does as they do.
    """
    known = TARGETS.get(target(device))
    return target(device) == INTERPRETER or bool(known and known.rates and known.rates.products["mma"] < 1)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
