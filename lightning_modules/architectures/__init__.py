"""Classic architectures, one a file: plain modules with the attributes `input_shape` (C, *grid) and `classes`."""

from lightning_modules.architectures.alexnet import AlexNet
from lightning_modules.architectures.all_cnn import AllCNN
from lightning_modules.architectures.cifar_resnet import CifarResNet
from lightning_modules.architectures.classification_heads import ClassificationNet
from lightning_modules.architectures.connectivity import ConnectivityNet
from lightning_modules.architectures.convnet import ConvNet
from lightning_modules.architectures.googlenet import GoogLeNet
from lightning_modules.architectures.lenet import LeNet
from lightning_modules.architectures.lenet5 import LeNet5
from lightning_modules.architectures.maxout import MaxoutNet
from lightning_modules.architectures.plain import plain
from lightning_modules.architectures.recurrent_labelling import RecurrentLabelling
from lightning_modules.architectures.resnet import ResNet18, ResNet50
from lightning_modules.architectures.signal_net import SignalNet
from lightning_modules.architectures.small_inception import SmallInception
from lightning_modules.architectures.sparse_autoencoder import SparseAutoencoder
from lightning_modules.architectures.spatial_transducer import SpatialTransducer
from lightning_modules.architectures.vgg import VGG11
from lightning_modules.architectures.video_net import VideoNet

__all__ = [
    "AlexNet",
    "AllCNN",
    "CifarResNet",
    "ClassificationNet",
    "ConnectivityNet",
    "ConvNet",
    "GoogLeNet",
    "LeNet",
    "LeNet5",
    "MaxoutNet",
    "RecurrentLabelling",
    "ResNet18",
    "ResNet50",
    "SignalNet",
    "SmallInception",
    "SparseAutoencoder",
    "SpatialTransducer",
    "VGG11",
    "VideoNet",
    "plain",
]
