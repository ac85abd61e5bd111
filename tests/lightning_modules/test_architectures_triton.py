"""Five steps of training through the Triton kernels, forward and backward, are those of the torch backend."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels import backend
from tests.determinism import backend_to_compare
from tests.networks import SMALL, outputs_of, small

STEPS = 5


@torch.no_grad()
def stirred(network: nn.Module) -> nn.Module:
    """The network with no bias of exactly 0, which puts a channel that is constant on the corner of its ReLU.

    The last batch norms of ResNet-50's blocks get small weights, as in training: at 1 its first gradients explode.
    """
    for name, parameter in network.named_parameters():
        if parameter.dim() == 1:
            parameter += torch.empty_like(parameter).uniform_(-0.2, 0.2)
        if name.endswith("bn3.weight"):
            parameter *= 0.2
    return network


def train(network: nn.Module, images: Tensor, labels: Tensor, choice: str) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The losses of five steps on one batch, and the state after them."""
    network = copy.deepcopy(network)
    optimizer, losses = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9), []
    with backend_to_compare(choice):
        for _ in range(STEPS):
            scores, *auxiliary = outputs_of(network, images)
            loss = F.cross_entropy(scores, labels) + sum(0.3 * F.cross_entropy(other, labels) for other in auxiliary)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return losses, network.state_dict()


@pytest.mark.parametrize("name", SMALL)
def test_five_steps_of_training(name, device, triton_only):
    """In float64: in float32 some ReLU is within rounding of its corner, and two correct runs part for good there."""
    network = stirred(small(name)).double().to(device)
    images = torch.randn(4, *network.input_shape, device=device, dtype=torch.float64)
    labels = torch.arange(4, device=device)
    layers = sum(type(layer).__module__.startswith("kernels") for layer in network.modules())
    launches = backend.launch_count()
    losses, state = train(network, images, labels, "triton")
    assert backend.launch_count() - launches >= 2 * STEPS * layers  # forward and backward
    torch.testing.assert_close((losses, state), train(network, images, labels, "torch"))
    assert losses[-1] < losses[0]
    assert all(not torch.equal(state[key], value) for key, value in network.state_dict().items() if "table" not in key)
