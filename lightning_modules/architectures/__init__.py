"""Classic architectures, one a file: plain modules with the attributes `input_shape` (C, H, W) and `classes`."""

from lightning_modules.architectures.alexnet import AlexNet
from lightning_modules.architectures.all_cnn import AllCNN
from lightning_modules.architectures.cifar_resnet import CifarResNet
from lightning_modules.architectures.convnet import ConvNet
from lightning_modules.architectures.googlenet import GoogLeNet
from lightning_modules.architectures.lenet import LeNet
from lightning_modules.architectures.lenet5 import LeNet5
from lightning_modules.architectures.plain import plain
from lightning_modules.architectures.resnet import ResNet18, ResNet50
from lightning_modules.architectures.small_inception import SmallInception
from lightning_modules.architectures.vgg import VGG11

__all__ = [
    "AlexNet",
    "AllCNN",
    "CifarResNet",
    "ConvNet",
    "GoogLeNet",
    "LeNet",
    "LeNet5",
    "ResNet18",
    "ResNet50",
    "SmallInception",
    "VGG11",
    "plain",
]
