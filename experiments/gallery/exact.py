"""Numbers that can be claimed exactly."""

import torch
from torch import Tensor


def whole_numbers(*shape: int) -> Tensor:
    """Random whole numbers of -3 to 3 as floats: sums of their products are exact, in whatever order they are made."""
    return torch.randint(-3, 4, shape).float()


def differing(one: Tensor, other: Tensor) -> float:
    """How many values of two tensors of one shape are not the same."""
    if one.shape != other.shape:
        raise ValueError(f"shapes must be the same, got {tuple(one.shape)} and {tuple(other.shape)}")
    return float((one != other).sum())
