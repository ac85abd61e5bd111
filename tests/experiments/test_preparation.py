import torch
from torch import nn

from experiments.preparation import pack_weights
from kernels import layers
from kernels.shape import is_channels_last


def test_packed_weights_are_read_where_they_lie():
    net = nn.Sequential(layers.Conv2d(4, 8, 3), layers.Conv2d(8, 8, 3))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    pack_weights(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(is_channels_last(net[i].weight) for i in range(2))
    images = torch.randn(2, 4, 9, 9)
    net(images.transpose(2, 3)).sum().backward()
    assert net[1](net[0](images)).is_contiguous(memory_format=torch.channels_last)
    assert net[0].weight.grad.stride() == net[0].weight.stride()
