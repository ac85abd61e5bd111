"""The one tolerance rule: no worse than twice torch's own error in the same dtype, up to one rounding."""

import torch
from torch import Tensor


def assert_as_exact_as_torch(ours: Tensor, torchs: Tensor, truth: Tensor, magnitude: Tensor) -> None:
    """error(ours) <= 2 * error(torchs) + tiny, errors as the largest distance from the float64 `truth`.

    tiny is one rounding of the result in its dtype, and one in the accumulator's of the sum it is made of, whose
    terms may cancel: `magnitude` is that sum with the absolute value of every term (Higham, Accuracy and Stability of
    Numerical Algorithms, eq. 3.5, with 1 for the number of terms).
    """
    assert ours.shape == torchs.shape == truth.shape
    assert ours.dtype == torchs.dtype and truth.dtype == torch.float64
    if truth.numel() == 0:
        return
    assert bool(ours.isfinite().all()), "a value was never written, or overflowed"
    error, allowed = error_of(ours, truth), 2 * error_of(torchs, truth)
    accumulator = torch.float64 if ours.dtype == torch.float64 else torch.float32
    tiny = (eps(ours.dtype) * truth.abs().max() + eps(accumulator) * magnitude.max()).item()
    assert error <= allowed + tiny, f"error {error:.3e}, twice torch's own {allowed:.3e} + {tiny:.3e}"


def error_of(result: Tensor, truth: Tensor) -> float:
    return (result.double() - truth).abs().max().item()


def eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps
