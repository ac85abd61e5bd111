"""Any Triton kernel: a file of Python, a function of it, and a JSON file of the arguments of a launch."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

KEYS = ("arguments", "grid", "num_warps", "num_stages", "flops", "bytes")
TENSOR_KEYS = {"shape", "dtype", "strides"}


@dataclass(frozen=True)
class Call:
    """A launch of a user's kernel.

    Args:
        path, function: where the kernel is.
        arguments: by name, tensors as in the JSON file.
        grid: programs on up to three axes.
        options: num_warps and num_stages, where given.
        flops, bytes: what it needs; None to find out.
    """

    path: str
    function: str
    arguments: dict[str, Any]
    grid: tuple[int, ...]
    options: dict[str, int]
    flops: int | None
    bytes: int | None


def read_call(kernel: str, file: Path) -> Call:
    """The call that `--kernel PATH.PY:FUNCTION --arguments FILE` asks for.

    Raises:
        ValueError: naming what does not fit.
    """
    path, colon, function = kernel.rpartition(":")
    if not colon or not function.isidentifier() or not path.endswith(".py"):
        raise ValueError(f"--kernel must be PATH.PY:FUNCTION, got {kernel!r}")
    if not Path(path).is_file():
        raise ValueError(f"--kernel {kernel}: there is no file {path}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--arguments {file}: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"--arguments {file} is not JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("arguments"), dict):
        raise ValueError(f'--arguments {file} must hold a mapping with "arguments", itself a mapping')
    if unknown := sorted(set(content) - set(KEYS)):
        raise ValueError(f"--arguments {file}: keys are {', '.join(KEYS)}, got {unknown[0]!r}")
    grid = content.get("grid")
    if not isinstance(grid, list) or not 1 <= len(grid) <= 3 or not all(_is_count(extent) for extent in grid):
        raise ValueError(f'--arguments {file}: "grid" must be a list of 1 to 3 whole numbers, got {grid!r}')
    for name in KEYS[2:]:
        if name in content and not _is_count(content[name]):
            raise ValueError(
                f'--arguments {file}: "{name}" must be a whole number of at least 1, got {content[name]!r}'
            )
    warps = content.get("num_warps", 4)
    if warps & (warps - 1):
        raise ValueError(f'--arguments {file}: "num_warps" must be a power of two, got {warps}')
    for name, value in content["arguments"].items():
        _value(name, value)
    options = {name: content[name] for name in KEYS[2:4] if name in content}
    return Call(
        path, function, content["arguments"], tuple(grid), options, content.get("flops"), content.get("bytes")
    )  # fmt: skip


def launch(call: Call) -> None:
    """Launch the kernel through kernels.backend, which `compiling_for` has compile instead.

    Raises:
        ValueError: there is no such kernel, or it has other arguments.
    """
    from kernels import backend

    kernel = _kernel(call)
    names = list(kernel.arg_names)
    values = {name: _value(name, value) for name, value in call.arguments.items()}
    if unknown := [name for name in values if name not in names]:
        raise ValueError(f"{call.function} has no argument {unknown[0]!r}: it has {', '.join(names)}")
    missing = [each.name for each in kernel.params if each.name not in values and not each.has_default]
    if missing:
        raise ValueError(f"{call.function} needs {', '.join(missing)}, which the file of arguments does not give")
    run_time = [each.num for each in kernel.params if not each.is_constexpr]
    ordered = [
        values[each.name] if each.name in values else each.default for each in kernel.params[: max(run_time) + 1]
    ]
    rest = {name: value for name, value in values.items() if name not in names[: len(ordered)]}
    backend.launch(kernel, call.grid, *ordered, **rest, **call.options)


def _kernel(call: Call) -> Any:
    """The function, below whatever tunes it."""
    from triton.runtime.jit import JITFunction

    path = Path(call.path).resolve()
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.parent))
    try:
        specification.loader.exec_module(module)
    except Exception as error:  # it is the user's code, which may raise anything
        raise ValueError(f"{call.path} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, call.function, None)
    while found is not None and not isinstance(found, JITFunction):
        found = getattr(found, "fn", None)
    if found is None:
        kernels = [
            name for name, value in vars(module).items() if isinstance(value, JITFunction) or hasattr(value, "fn")
        ]
        raise ValueError(f"{call.path} has no Triton kernel {call.function!r}, but {', '.join(kernels) or 'none'}")
    return found


def _value(name: str, value: Any) -> Any:
    """An argument: a tensor without memory, a type as in "tl.float16", or the value itself."""
    if isinstance(value, list):
        return tuple(_value(name, each) for each in value)
    if isinstance(value, str) and value.startswith("tl."):
        import triton.language as tl

        if not isinstance(found := getattr(tl, value.removeprefix("tl."), None), tl.dtype):
            raise ValueError(f"argument {name!r}: {value} is no type of triton.language")
        return found
    if not isinstance(value, dict):
        return value
    if not {"shape", "dtype"} <= set(value) <= TENSOR_KEYS:
        raise ValueError(f'argument {name!r}: a tensor has "shape", "dtype" and perhaps "strides", got {value}')
    dtype = getattr(torch, str(value["dtype"]), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"argument {name!r}: {value['dtype']!r} is no dtype of torch")
    shape, strides = value["shape"], value.get("strides")
    if not isinstance(shape, list) or not all(_is_count(extent) for extent in shape):
        raise ValueError(f"argument {name!r}: the shape must be a list of whole numbers, got {shape!r}")
    if strides is not None and (
        not isinstance(strides, list) or len(strides) != len(shape) or not all(type(each) is int for each in strides)
    ):
        raise ValueError(f"argument {name!r}: the strides must be {len(shape)} whole numbers, got {strides!r}")
    try:
        if strides is None:
            return torch.empty(shape, dtype=dtype, device="meta")
        return torch.empty_strided(shape, strides, dtype=dtype, device="meta")
    except RuntimeError as error:  # of a size that no address reaches, or a stride below 0
        raise ValueError(f"argument {name!r}: {next(iter(str(error).splitlines()))}") from error


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1
