"""Layers that subclass torch.nn's, with the same arguments, initialisation and state_dict, on `kernels.functional`."""

from kernels.layers.convolution import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    Linear,
    LocalConv2d,
    TableConv2d,
    TiledConv2d,
)
from kernels.layers.normalization import BatchNorm1d, BatchNorm2d, BatchNorm3d
from kernels.layers.pooling import CrossChannelMaxPool, MaxPool1d, MaxPool2d, MaxPool3d

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "CrossChannelMaxPool",
    "Linear",
    "LocalConv2d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "TableConv2d",
    "TiledConv2d",
]
