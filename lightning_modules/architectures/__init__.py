"""Classic architectures, one a file: plain modules with the attributes `input_shape` (C, *grid) and `classes`."""

from lightning_modules.architectures.all_cnn import AllCNN
from lightning_modules.architectures.classification_heads import ClassificationNet
from lightning_modules.architectures.connectivity import ConnectivityNet
from lightning_modules.architectures.convnet import ConvNet
from lightning_modules.architectures.lenet import LeNet
from lightning_modules.architectures.maxout import MaxoutNet
from lightning_modules.architectures.recurrent_labelling import RecurrentLabelling
from lightning_modules.architectures.signal_net import SignalNet
from lightning_modules.architectures.sparse_autoencoder import SparseAutoencoder
from lightning_modules.architectures.spatial_transducer import SpatialTransducer
from lightning_modules.architectures.video_net import VideoNet

__all__ = [
    "AllCNN",
    "ClassificationNet",
    "ConnectivityNet",
    "ConvNet",
    "LeNet",
    "MaxoutNet",
    "RecurrentLabelling",
    "SignalNet",
    "SparseAutoencoder",
    "SpatialTransducer",
    "VideoNet",
]
