"""Five steps of training, which Triton must take as PyTorch does, by the rule of `tests.closeness`.

Both take them in float64, where they may differ by no more than float32 would make a difference in PyTorch: a wrong sum
or a gradient that is left out differs by far more. In float32 two correct runs may drift apart without limit, since
batch norm over few values amplifies the rounding of each step; tests/kernels hold each kernel to the rule there.
"""

import copy
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from tests.closeness import assert_as_exact_as_torch
from tests.determinism import backend_to_compare

STEPS = 5
RATE = 0.02  # of gradient descent


def assert_trains_as_in_torch(
    network: nn.Module, loss_of: Callable[..., Tensor], images: Tensor, *targets: Tensor
) -> None:
    """Five steps of gradient descent end at the same weights, running means and variances, on Triton and on PyTorch.

    Each is a sum, of what it was at first and its five changes: the sum of their absolute values is its magnitude.

    Args:
        network: to be trained, in float32; it is left as it is.
        loss_of: takes the network's output in training and the targets.
        images, targets: one batch, of which each step takes another half.
    """
    torchs, _ = trained(copy.deepcopy(network), loss_of, images, targets, "torch")
    exact, images = copy.deepcopy(network).double(), images.double()
    truth, magnitude = trained(copy.deepcopy(exact), loss_of, images, targets, "torch")
    ours, _ = trained(exact, loss_of, images, targets, "triton")
    for name, start in network.state_dict().items():
        if start.is_floating_point():
            assert not torch.equal(truth[name], start.double()), f"{name} was not trained"
            assert_as_exact_as_torch(ours[name].float(), torchs[name], truth[name], magnitude[name])


def trained(
    network: nn.Module, loss_of: Callable[..., Tensor], images: Tensor, targets: tuple[Tensor, ...], backend: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state of a network after training, and the magnitude of the sum that it is."""
    torch.manual_seed(0)  # of the dropout, whose draws do not depend on the dtype
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), RATE)
    states = [copy.deepcopy(network.state_dict())]
    with backend_to_compare(backend):
        for step in range(STEPS):
            half = slice(step % 2, None, 2)
            optimizer.zero_grad()
            loss_of(network(images[half]), *(target[half] for target in targets)).backward()
            optimizer.step()
            states.append(copy.deepcopy(network.state_dict()))
    magnitude = {
        name: start.abs() + sum((after[name] - before[name]).abs() for before, after in pairwise(states))
        for name, start in states[0].items()
    }
    return states[-1], magnitude
