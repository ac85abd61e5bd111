"""The one tolerance rule: no worse than twice torch's own error in the same dtype, up to one rounding."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Closeness(NamedTuple):
    """The largest distance of a result from the truth, and the largest that the rule allows."""

    error: float
    allowed: float

    @property
    def close(self) -> bool:
        return self.error <= self.allowed  # not where the error is NaN

    def __str__(self) -> str:
        return f"error {self.error:.3e}, allowed {self.allowed:.3e}"


def closeness(ours: Tensor, torchs: Tensor, truth: Tensor, magnitude: Tensor) -> Closeness:
    """error(ours) <= 2 * error(torchs) + tiny, errors as the largest distance from the float64 `truth`.

    tiny is one rounding of the result in its dtype, and one in the accumulator's of the sum it is made of, whose
    terms may cancel: `magnitude` is that sum with the absolute value of every term (Higham, Accuracy and Stability of
    Numerical Algorithms, eq. 3.5, with 1 for the number of terms). A result that is not finite has the error NaN.
    """
    assert ours.shape == torchs.shape == truth.shape
    assert ours.dtype == torchs.dtype and truth.dtype == torch.float64
    if truth.numel() == 0:
        return Closeness(0.0, 0.0)
    accumulator = torch.float64 if ours.dtype == torch.float64 else torch.float32
    tiny = (eps(ours.dtype) * truth.abs().max() + eps(accumulator) * magnitude.max()).item()
    error = error_of(ours, truth) if bool(ours.isfinite().all()) else float("nan")
    return Closeness(error, 2 * error_of(torchs, truth) + tiny)


def error_of(result: Tensor, truth: Tensor) -> float:
    return (result.double() - truth).abs().max().item()


def eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps
