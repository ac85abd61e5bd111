"""Layers that subclass torch.nn's, with the same arguments, initialisation and state_dict, on `kernels.functional`."""

from kernels.layers.convolution import Conv1d, Conv2d, Conv3d, Linear
from kernels.layers.normalization import BatchNorm1d, BatchNorm2d, BatchNorm3d
from kernels.layers.pooling import CrossChannelMaxPool, MaxPool1d, MaxPool2d, MaxPool3d

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "CrossChannelMaxPool",
    "Linear",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
]
