"""Public functions, named as in torch.nn.functional: check, normalise, cast once, choose a backend.

Every function raises ValueError or TypeError, naming what was given and what is accepted, before anything runs.
"""

from kernels.functional.connectivity import local_conv2d, table_conv2d, tiled_conv2d
from kernels.functional.convolution import (
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
)
from kernels.functional.normalization import batch_norm
from kernels.functional.pooling import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    cross_channel_max_pool,
    max_pool1d,
    max_pool2d,
    max_pool3d,
)
from kernels.functional.product import linear, matmul

__all__ = [
    "batch_norm",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "cross_channel_max_pool",
    "linear",
    "local_conv2d",
    "matmul",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "table_conv2d",
    "tiled_conv2d",
]
