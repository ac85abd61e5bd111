"""Public functions, named as in torch.nn.functional: check, normalise, cast once, choose a backend.

Every function raises ValueError or TypeError, naming what was given and what is accepted, before anything runs.
"""

from kernels.functional.convolution import conv1d, conv2d, conv3d, linear
from kernels.functional.normalization import batch_norm
from kernels.functional.pooling import cross_channel_max_pool, max_pool1d, max_pool2d, max_pool3d

__all__ = [
    "batch_norm",
    "conv1d",
    "conv2d",
    "conv3d",
    "cross_channel_max_pool",
    "linear",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
]
