"""Functions of converted models, which may be given whatever torch takes.

Each calls the function of this name of `kernels.functional`, and leaves to torch.nn.functional what that refuses:
tensors of integers or complex numbers, quantised, sparse or nested ones, shapes that only torch broadcasts. What torch
refuses too, it refuses in its own words, as in the model before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import functional
from kernels.layers.convolution import output_dtype

CHECKING = ("kernels.checks", "kernels.functional", "kernels.shape", __name__)


def _or_torch(name: str) -> Callable[..., Any]:
    ours, theirs = getattr(functional, name), getattr(F, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        residual = kwargs.get("residual")
        if residual is not None and not _is_addend(name, residual, args[0]):
            return _in_steps(ours, *args, **kwargs)
        try:
            return ours(*args, **kwargs)
        except (TypeError, ValueError) as error:
            if kwargs.get("process_group") is not None or not _is_refusal(error):
                raise
        return _in_steps(theirs, *args, **kwargs)

    call.__name__ = call.__qualname__ = name  # to be pickled by name
    call.__doc__ = f"`functional.{name}`, or what torch makes of arguments that it refuses."
    return call


def _is_refusal(error: Exception) -> bool:
    """Return True if `error` was raised where arguments are checked, and not by what a kernel does."""
    if torch.compiler.is_compiling():  # no kernel runs
        return True
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return at is not None and at.tb_frame.f_globals["__name__"].startswith(CHECKING)


def _is_addend(name: str, residual: Any, input: Any) -> bool:
    """Return True if adding `residual` to an output for `input` leaves its dtype as it is."""
    if not isinstance(residual, Tensor) or not isinstance(input, Tensor):
        return False
    return residual.dtype == (input.dtype if name == "batch_norm" else output_dtype(input))


def _in_steps(
    function: Callable[..., Any], *args: Any, activation: str | None = None, residual: Any = None,
    max_pool: dict[str, Any] | None = None, maxout: int = 1, process_group: None = None, **kwargs: Any,
) -> Any:  # fmt: skip
    """Return what `function` makes of the other arguments, followed by what was to be fused into it."""
    y = function(*args, **kwargs)
    if residual is not None:
        y = y + residual
    if activation is not None:
        y = F.relu(y)
    if max_pool is not None:
        y = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[args[1].dim() - 3](y, **max_pool)
    return y


FUNCTIONS = {getattr(F, name): _or_torch(name) for name in functional.__all__ if hasattr(F, name)}
globals().update({function.__name__: function for function in FUNCTIONS.values()})
