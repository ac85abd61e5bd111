"""Numbers that can be claimed exactly."""

import torch
import torch.nn.functional as F
from torch import Tensor


def whole_numbers(*shape: int) -> Tensor:
    """Random whole numbers of -3 to 3 as floats: sums of their products are exact, in whatever order they are made."""
    return torch.randint(-3, 4, shape).float()


def differing(one: Tensor, other: Tensor) -> float:
    """How many values of two tensors of one shape are not the same."""
    if one.shape != other.shape:
        raise ValueError(f"shapes must be the same, got {tuple(one.shape)} and {tuple(other.shape)}")
    return float((one != other).sum())


def rounding(images: Tensor, weight: Tensor, padding: int | str = 0) -> float:
    """Return how far two convolutions [N, O, *] can differ that add the same products in another order.

    Each sum of n products is within n EPSILON times the sum of their magnitudes (Higham, "Accuracy and stability of
    numerical algorithms", 2002, section 4.2).
    """
    largest = F.conv2d(images.abs(), weight.detach().abs(), padding=padding).max()
    return 2 * weight[0].numel() * torch.finfo(weight.dtype).eps * float(largest)
