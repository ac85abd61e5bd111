"""Five steps of training through the Triton kernels, forward and backward, are those of the torch backend."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels import backend
from tests.closeness import assert_as_exact_as_torch
from tests.networks import SMALL, outputs_of, small

STEPS = 5


def train(network: nn.Module, images: Tensor, labels: Tensor, choice: str) -> tuple[Tensor, Tensor]:
    """The losses of five steps on one batch, and all parameters and running statistics after them, as one vector."""
    network = copy.deepcopy(network)
    optimizer, losses = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9), []
    with backend.use_backend(choice):
        for _ in range(STEPS):
            scores, *auxiliary = outputs_of(network, images)
            loss = F.cross_entropy(scores, labels) + sum(0.3 * F.cross_entropy(other, labels) for other in auxiliary)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    state = [value.flatten() for value in network.state_dict().values() if value.is_floating_point()]
    return torch.stack(losses), torch.cat(state)


@pytest.mark.parametrize("name", SMALL)
def test_five_steps_of_training(name, device, triton_only):
    network = small(name).to(device)
    images, labels = torch.randn(4, *network.input_shape, device=device), torch.arange(4, device=device)
    layers = sum(1 for layer in network.modules() if type(layer).__module__.startswith("kernels"))
    launches = backend.launch_count()
    ours = train(network, images, labels, "triton")
    assert backend.launch_count() - launches > 2 * STEPS * layers  # forward and backward
    theirs = train(network, images, labels, "torch")
    truth = train(network.double(), images.double(), labels, "torch")
    for compared in zip(ours, theirs, truth, strict=True):
        assert_as_exact_as_torch(*compared, compared[-1].abs())
    assert truth[0][-1] < truth[0][0]
