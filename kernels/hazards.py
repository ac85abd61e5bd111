"""Lines in the text of a function that do what a graph of its trace would not do again."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from types import CodeType
from typing import NamedTuple

# Names of what reads or changes more than tensors.
NAMES = {
    "_base", "apply", "callable", "checkpoint", "eval", "getattr", "grad", "grad_fn", "hasattr", "id",
    "is_autocast_enabled", "is_grad_enabled", "is_tensor", "load_state_dict", "next", "np", "numpy", "print", "random",
    "register_hook", "requires_grad_", "set_grad_enabled", "setattr", "train", "type", "vars", "warnings",
}  # fmt: skip
STATEMENTS = {
    ast.With: "a context", ast.Try: "try", ast.Await: "await", ast.Match: "match",
    ast.Global: "a global", ast.Nonlocal: "a name of another function",
}  # fmt: skip
MUTATORS = {"append", "appendleft", "clear", "extend", "insert", "pop", "popitem", "popleft", "setdefault", "update"}
NEW = (ast.BinOp, ast.Call, ast.Dict, ast.DictComp, ast.List, ast.ListComp, ast.Set, ast.SetComp, ast.Subscript)


class Hazard(NamedTuple):
    """A reason not to trace a function, which holds if one of its lines from `first` to `last` is executed."""

    first: int
    last: int
    reason: str


@functools.lru_cache(maxsize=4096)
def hazards_in(code: CodeType) -> tuple[Hazard, ...]:
    """Return the hazards in the text of a function.

    Raises:
        ValueError: its text cannot be read.
    """
    tree = _parse(code)
    questions = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call) and _are_of_self(node.args)}
    new = _names_of_new_values(tree)
    found = []
    for node in ast.walk(tree):
        reason = None if id(node) in questions else _reason(node, new)
        if reason is not None:
            first, last = node.lineno, node.end_lineno or node.lineno
            if isinstance(node, ast.Global | ast.Nonlocal):  # no line event tells of these
                first, last = 0, 1 << 30
            found.append(Hazard(first, last, f"its function {code.co_name!r} {reason}"))
    return tuple(found)


@functools.lru_cache(maxsize=4096)
def names_compared_by_identity(code: CodeType) -> dict[int, list[tuple[str, bool]]]:
    """Return the variables that each line of a function compares by `is`, and if it is with None."""
    names: dict[int, list[tuple[str, bool]]] = {}
    for node in ast.walk(_parse(code)):
        for value in (node.left, *node.comparators) if _compares_identity(node) else ():
            if isinstance(value, ast.Name):
                for line in range(node.lineno, node.end_lineno + 1):
                    names.setdefault(line, []).append((value.id, _is_none(node.comparators[0])))
    return names


@functools.lru_cache(maxsize=4096)
def lines_of_assertions(code: CodeType) -> set[int]:
    """Return the lines of a function's calls of torch._assert, whose text is for whoever reads that it failed."""
    calls = [node for node in ast.walk(_parse(code)) if isinstance(node, ast.Call)]
    found = [call for call in calls if "_assert" in (getattr(call.func, "id", ""), getattr(call.func, "attr", ""))]
    return {line for call in found for line in range(call.lineno, (call.end_lineno or call.lineno) + 1)}


@functools.lru_cache(maxsize=4096)
def _parse(code: CodeType) -> ast.AST:
    """Return the tree of a function's text, with the line numbers of its file."""
    try:
        lines, first = inspect.getsourcelines(code)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, SyntaxError, TypeError):
        raise ValueError(f"the code of {code.co_name!r} in {code.co_filename} cannot be read") from None
    return ast.increment_lineno(tree, first - 1)


def _names_of_new_values(tree: ast.AST) -> set[str]:
    """Return the variables that are only assigned values made there: to change one of these changes nothing else."""
    new: dict[str, bool] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):  # a default is made once for all calls
            given = len(node.posonlyargs + node.args) - len(node.defaults)
            new |= {argument.arg: place < given for place, argument in enumerate(node.posonlyargs + node.args)}
        for target in node.targets if isinstance(node, ast.Assign) else ():
            if isinstance(target, ast.Name):
                new[target.id] = new.get(target.id, True) and isinstance(node.value, NEW)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            new[node.target.id] = new.get(node.target.id, True) and isinstance(node.value, NEW)
    return {name for name, is_new in new.items() if is_new}


def _reason(node: ast.AST, new: set[str]) -> str | None:
    if type(node) in STATEMENTS:
        return f"has {STATEMENTS[type(node)]}"
    if isinstance(node, ast.Name) and node.id in NAMES:
        return f"uses {node.id!r}"
    if isinstance(node, ast.Attribute):
        if node.attr in NAMES or (node.attr in MUTATORS and not _is_named([node.value], *new)):
            return f"uses {node.attr!r}"
        if node.attr == "__class__" and not _are_of_self([node.value]):
            return "uses '__class__'"
        if not isinstance(node.ctx, ast.Load):
            return "changes an attribute"
    if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load) and not _is_named([node.value], *new):
        return "changes a part of something"
    if _compares_identity(node) and not isinstance(node.left, ast.Name | ast.Attribute):
        return "asks what a result is"
    return None


def _is_named(values: list[ast.expr], *names: str) -> bool:
    """True if the first of `values` is a variable with one of `names`."""
    return bool(values) and isinstance(values[0], ast.Name) and values[0].id in names


def _are_of_self(values: list[ast.expr]) -> bool:
    """True if the first of `values` is self, an attribute of it, or one of these."""
    if not values:
        return False
    if isinstance(values[0], ast.Attribute):
        return _are_of_self([values[0].value])
    if isinstance(values[0], ast.Call) and _is_named([values[0].func], "getattr"):
        return _are_of_self(values[0].args)
    return _is_named(values, "self")


def _compares_identity(node: ast.AST) -> bool:
    return isinstance(node, ast.Compare) and any(isinstance(operator, ast.Is | ast.IsNot) for operator in node.ops)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
