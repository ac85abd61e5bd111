"""Whitening of natural images: patches whose pixels are as varied as, and no more alike than, independent noise.

Source: Hyvärinen, Hurri and Hoyer, "Natural Image Statistics" (2009), sections 5.2 to 5.4: the mean of each patch is
removed, and the principal components of largest variance are kept and brought to variance one. What is kept is
rotated back onto the pixels (zero-phase whitening; Bell and Sejnowski, "The independent components of natural scenes
are edge filters", 1997), where a convolution finds neighbours side by side; distances and angles are those of the
components.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Whitening(NamedTuple):
    """Of patches of one shape (C, H, W), with D = C * H * W values.

    Attributes:
        mean: [D], the mean patch.
        matrix: [D, D], symmetric.
    """

    mean: Tensor
    matrix: Tensor

    def __call__(self, patches: Tensor) -> Tensor:
        """Patches [N, C, H, W], whitened."""
        return ((_without_mean(patches) - self.mean) @ self.matrix).view(patches.shape)


def fit_whitening(patches: Tensor, components: int) -> Whitening:
    """The whitening that gives `components` principal components of patches [N, C, H, W] variance one, and no others.

    The mean of each channel of each patch is removed, so that there are at most D - C components.
    """
    values = _without_mean(patches).double()  # [N, D]
    mean = values.mean(0)
    values = values - mean
    variances, axes = torch.linalg.eigh(values.T @ values / len(values))  # in ascending order
    scaled = axes[:, -components:] * variances[-components:].rsqrt()
    return Whitening(mean.float(), (scaled @ axes[:, -components:].T).float())


def whitening_filter(patches: Tensor, components: int) -> Tensor:
    """The row of such a whitening that makes the middle pixel, as the weight [C, C, H, W] of a convolution."""
    _, channels, height, width = patches.shape
    matrix = fit_whitening(patches, components).matrix
    return matrix.view(channels, height, width, *patches.shape[1:])[:, height // 2, width // 2]


def filtered(picture: Tensor, weight: Tensor) -> Tensor:
    """A picture [C, H, W] convolved with a weight [C, C, h, w] of odd height and width; its edges are reflected."""
    down, right = weight.shape[2] // 2, weight.shape[3] // 2
    return F.conv2d(F.pad(picture[None], (right, right, down, down), mode="reflect"), weight)[0]


def _without_mean(patches: Tensor) -> Tensor:
    """Patches [N, C, H, W] as [N, D], the mean of each channel of each removed."""
    return (patches - patches.mean((2, 3), keepdim=True)).flatten(1)
