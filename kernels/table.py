"""Tables of tuned tiles, kernels/tuned/<target>.json: one record a problem class, one line a record.

    {"format": 1, "target": "sm_90", "records": [
    {"problem": "3x3 64 -> 64 at 56x56, N 32, float16", "operation": "forward", ..., "tile": {...}, "source": {...}},
    ...
    ]}

Reading keeps what is sound and says what is not. A file is replaced, never rewritten (experiments/tune/recording.py):
it is whole for whoever reads it meanwhile, or after an interruption.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.tile import ITEMSIZES, OPERATIONS, Product, Tile, fault

FORMAT = 1
KINDS = ("estimate", "measured")
TUNED = Path(__file__).parent / "tuned"


@dataclass(frozen=True)
class Record:
    """A tile and where it comes from.

    Args:
        problem: a convolution that the product is of, in words.
        product: as it was tuned; the record holds for its class.
        source: the "kind", one of KINDS, and what the choice depends on: device, versions, date, figures.
    """

    problem: str
    product: Product
    tile: Tile
    source: dict[str, Any]


@dataclass(frozen=True)
class Table:
    """What was read: sound records by problem class, and for each that is not what is wrong with it."""

    records: dict[Product, Record]
    faults: tuple[str, ...]


def path_of(target: str) -> Path:
    return TUNED / f"{target}.json"


def read(path: Path, target: str) -> Table:
    """The table in a file; an empty one where there is no file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Table({}, ())
    except (OSError, UnicodeDecodeError) as error:
        return Table({}, (f"it cannot be read: {getattr(error, 'strerror', None) or error}",))
    try:
        head = json.loads(text)
        entries = head["records"]
        assert isinstance(entries, list)
    except (ValueError, KeyError, TypeError, AssertionError):
        head, entries = _by_lines(text)
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        found = head.get("format", "none") if isinstance(head, dict) else "none"
        return Table({}, (f"it has the format {found!r}, this version reads {FORMAT}: none of its records counts",))
    if head.get("target") != target:
        return Table({}, (f"it is of target {head.get('target')!r}, not {target!r}: none of its records counts",))
    records: dict[Product, Record] = {}
    faults = []
    for number, entry in enumerate(entries, 1):
        try:
            record = _record(entry)
            if record.product.problem_class in records:
                raise ValueError("a problem of the same class stands before it")
            records[record.product.problem_class] = record
        except (ValueError, TypeError) as error:
            faults.append(f"record {number}{_name(entry)}: {error}")
    return Table(records, tuple(faults))


def dumps(target: str, records: Iterable[Record]) -> str:
    """Return a table as its file holds it, the records in order of their products."""
    ordered = sorted(records, key=lambda record: dataclasses.astuple(record.product))
    lines = ",\n".join(json.dumps(entry(record)) for record in ordered)
    return f'{{"format": {FORMAT}, "target": {json.dumps(target)}, "records": [\n{lines}\n]}}\n'


def _by_lines(text: str) -> tuple[Any, list[Any]]:
    """Head and records of a file that is no JSON as a whole: each of its lines may still be."""
    first, *rest = text.splitlines() or [""]
    try:
        head = json.loads(first + "]}")
    except ValueError:
        head = None
    entries: list[Any] = []
    for line in (line.strip().removesuffix(",") for line in rest):
        if line in ("", "]}"):
            continue
        try:
            entries.append(json.loads(line))
        except ValueError:
            entries.append(line)
    return head, entries


def entry(record: Record) -> dict[str, Any]:
    """Return a record as JSON has it."""
    tile = {field.name: getattr(record.tile, field.name) for field in dataclasses.fields(Tile)}
    return {"problem": record.problem, **dataclasses.asdict(record.product), "tile": tile, "source": record.source}


def _record(entry: Any) -> Record:
    """A record of its JSON.

    Raises:
        ValueError: it is damaged; the message says how.
    """
    if not isinstance(entry, dict):
        raise ValueError("it is cut off, or no JSON object")
    rest = dict(entry)
    problem, tile, source = (rest.pop(name, None) for name in ("problem", "tile", "source"))
    if not isinstance(problem, str):
        raise ValueError(f"problem must be a text, got {problem!r}")
    if not isinstance(source, dict) or source.get("kind") not in KINDS:
        raise ValueError(f"source must have a kind, {' or '.join(KINDS)}, got {source!r}")
    product, chosen = _fields(Product, "the record", rest), _fields(Tile, "tile", tile)
    if product.operation not in OPERATIONS:
        raise ValueError(f"operation must be one of {', '.join(OPERATIONS)}, got {product.operation!r}")
    if product.dtype not in ITEMSIZES:
        raise ValueError(f"dtype must be one of {', '.join(ITEMSIZES)}, got {product.dtype!r}")
    if wrong := fault(product, chosen):
        raise ValueError(f"tile: {wrong}")
    return Record(problem, product, chosen, source)


def _fields(kind: Any, where: str, values: Any) -> Any:
    """A dataclass of exactly the fields that it has, each of its type."""
    types = {field.name: {"int": int, "str": str, "bool": bool}[field.type] for field in dataclasses.fields(kind)}
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be a JSON object, got {values!r}")
    for names, what in ((types.keys() - values.keys(), "lacks"), (values.keys() - types.keys(), "has an unknown")):
        if names:
            raise ValueError(f"{where} {what} {', '.join(sorted(names))}")
    for name, expected in types.items():
        if type(values[name]) is not expected or (expected is int and values[name] < 0):
            raise ValueError(f"{name} must be of type {expected.__name__}, got {values[name]!r}")
    return kind(**values)


def _name(entry: Any) -> str:
    if not isinstance(entry, dict):
        return ""
    return f" ({entry.get('operation')}, {entry.get('problem')})"
