"""Classic architectures, one a file: plain modules with the attributes `input_shape` (C, H, W) and `classes`."""

from lightning_modules.architectures.all_cnn import AllCNN
from lightning_modules.architectures.convnet import ConvNet
from lightning_modules.architectures.lenet import LeNet

__all__ = ["AllCNN", "ConvNet", "LeNet"]
