"""Which implementation runs, Triton or PyTorch, and the one door through which every Triton kernel is launched.

The rule of "auto": Triton for tensors on a GPU; on the CPU Triton if it interprets (TRITON_INTERPRET=1), else PyTorch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import os
import threading
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

BACKENDS = ("auto", "triton", "torch")
AVAILABLE = importlib.util.find_spec("triton") is not None

if AVAILABLE:
    import triton
    import triton.language as tl

    INTERPRETING = not isinstance(tl.softmax, triton.JITFunction)
else:
    INTERPRETING = False

if INTERPRETING:
    from triton.runtime import interpreter

    # The interpreter computes an overflow check in 64 bits beside every integer operation, then drops its result.
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)

    _patch_tensor = interpreter._patch_lang_tensor

    def _patch_tensor_index(tensor: Any, *scope: Any) -> None:
        """Patch tl.tensor as the interpreter does, with an index that NumPy 2.4 accepts: Triton before 3.7 has none."""
        _patch_tensor(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = _patch_tensor_index

# Fused multiply-adds: Triton 3.9 warns where neither a launch nor the environment chooses, 3.10 turns them off then.
OPTIONS = {"enable_fp_fusion": True}

_launches = 0
_counting = threading.Lock()
_changing = threading.Lock()
_one_at_a_time = threading.Lock() if INTERPRETING else contextlib.nullcontext()  # the interpreter's state is global


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source} must be one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
    return name


@dataclasses.dataclass(eq=False)
class _Choice:
    """A choice that holds to the end of the block it heads, or to the next one."""

    name: str
    heads_block: bool = False


_first = _checked(os.environ.get("CONVNETS_BACKEND") or "auto", "the environment variable CONVNETS_BACKEND")
_choices = [_Choice(_first, True)]  # whose block is the process
_choice = _first  # the last of them


def _choose(choices: list[_Choice]) -> None:
    global _choices, _choice
    _choices, _choice = choices, choices[-1].name


class use_backend:
    """Choose the backend of `kernels.functional` and `kernels.layers` for the process, or for `with` blocks.

    The choice holds from the call on, and to the end of the block if it heads one. It is no decorator. All threads
    share it, those of torch's backward pass too: of the blocks that are open in any of them, the last one holds.

    Args:
        name: "auto", "triton" or "torch". The environment variable CONVNETS_BACKEND gives the first choice.

    Raises:
        ValueError: for any other name.
    """

    def __init__(self, name: str) -> None:
        self._name = _checked(name, "backend")
        self._blocks: list[_Choice] = []
        self._next: _Choice | None = _Choice(name)
        with _changing:
            _choose([*(_choices if _choices[-1].heads_block else _choices[:-1]), self._next])

    def __enter__(self) -> None:
        choice, self._next = self._next or _Choice(self._name), None
        choice.heads_block = True
        self._blocks.append(choice)
        with _changing:
            _choose([*(other for other in _choices if other is not choice), choice])

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with _changing:
            place = _choices.index(self._blocks.pop())
            later = [choice for choice in _choices[place + 1 :] if choice.heads_block]  # of other threads
            _choose([*_choices[:place], *later])


def uses_triton(x: Tensor) -> bool:
    """Whether an operation on x runs in Triton.

    Raises:
        RuntimeError: "triton" was chosen and cannot run on the device of x, or TRITON_INTERPRET was set too late.
    """
    if _choice == "torch":
        return False
    return _device_uses_triton(_choice, x.device.type)


@torch.compiler.assume_constant_result
def _device_uses_triton(choice: str, device: str) -> bool:
    if device == "cpu" and not INTERPRETING and AVAILABLE and triton.knobs.runtime.interpret:
        raise RuntimeError(
            "TRITON_INTERPRET=1 was set after triton had been imported: set it in the environment before Python starts,"
            " or before the first import of triton (lightning, torchvision and torchmetrics import it too)"
        )
    runs = AVAILABLE and (device == "cuda" or (device == "cpu" and INTERPRETING))
    if choice == "triton" and not runs:
        why = (
            "triton is not installed" if not AVAILABLE
            else "set TRITON_INTERPRET=1 before the first import of triton to interpret its kernels" if device == "cpu"
            else "accepted devices are cuda, and cpu with TRITON_INTERPRET=1"
        )  # fmt: skip
        raise RuntimeError(f"backend 'triton' cannot run on a {device} tensor: {why}; or choose 'auto' or 'torch'")
    return runs


def explain(device: torch.device | str) -> str:
    """One line: the backend that runs for tensors on `device`, and why."""
    kind = torch.device(device).type
    chosen = f"{_choice!r} was asked for" if _choice != "auto" else "auto"
    if _choice == "torch" or not _device_uses_triton(_choice, kind):
        reason = {"torch": chosen}.get(_choice) or (
            f"{chosen}: triton is not installed" if not AVAILABLE
            else f"{chosen}: on the CPU Triton runs only interpreted, with TRITON_INTERPRET=1 or --backend triton"
        )  # fmt: skip
        return f"backend: torch on {kind} ({reason})"
    how = "interpreted" if INTERPRETING else "compiled"
    return f"backend: triton, {how}, on {kind} ({chosen})"


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Return the type that an enclosing torch.autocast asks for on the device of x; None without one.

    A meta tensor stands for one on a GPU.
    """
    if not torch._C._is_any_autocast_enabled():
        return None
    device = "cuda" if x.is_meta else x.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def refuse_forward_mode(*tensors: Tensor | None) -> None:
    """Operators of torch.library have no forward-mode derivative, and drop a tangent without a word; nor torch.func's.

    Raises:
        RuntimeError: and names the backend that has them.
    """
    if torch.compiler.is_compiling():
        return
    transform = torch._C._functorch.peek_interpreter_stack()
    if transform is not None and transform.key() != torch._C._functorch.TransformType.Functionalize:
        raise RuntimeError("torch.func's transforms need the torch backend: use_backend('torch')")
    if forward_ad._current_level < 0:  # no tensor has a tangent
        return
    for t in tensors:
        if t is not None and forward_ad.unpack_dual(t).tangent is not None:
            raise RuntimeError("forward-mode differentiation needs the torch backend: use_backend('torch')")


def device_function(function: Any) -> Any:
    """triton.jit for a function that kernels call.

    Where Triton interprets, each call of a jitted function patches all of triton.language first, which costs as much as
    ten operations. The kernel that calls it has done so already: it gets the function as rewritten for interpreting.
    """
    jitted = triton.jit(function)
    return jitted.rewrite() if INTERPRETING else jitted


def launch_count() -> int:
    """Number of Triton kernels launched by this process so far."""
    return _launches


def count_launch() -> None:
    global _launches
    with _counting:
        _launches += 1


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> Any:
    """Run a Triton kernel over `grid` on the device of its first argument, and count it; see also `plan.Launch`.

    Returns:
        What Triton compiled; None where it interprets, or where there is nothing to run.
    """
    if 0 in grid:
        return None
    count_launch()
    with _one_at_a_time, torch.cuda.device_of(args[0]):
        return kernel[grid](*args, **OPTIONS | constants)


def upcasts_bfloat16(launcher: Any) -> Any:
    """Where Triton interprets, run a launcher on bfloat16 tensors in float32: NumPy has no bfloat16.

    Products of bfloat16 are exact in float32 and are summed in float32 on a GPU too, so the result is the same.
    """
    if not INTERPRETING:
        return launcher

    @functools.wraps(launcher)
    def upcast(*args: Any, **kwargs: Any) -> Any:
        if args[0].dtype != torch.bfloat16:  # a launcher's first argument has the type of its others, or a narrower one
            return launcher(*args, **kwargs)
        result = launcher(*(_cast(a, torch.bfloat16, torch.float32) for a in args), **kwargs)
        if isinstance(result, tuple):
            return tuple(_cast(r, torch.float32, torch.bfloat16) for r in result)
        return _cast(result, torch.float32, torch.bfloat16)

    return upcast


def _cast(value: Any, source: torch.dtype, target: torch.dtype) -> Any:
    return value.to(target) if isinstance(value, Tensor) and value.dtype == source else value
