"""What the experiments of the lecture share: training, memory, wiring."""

import pytest
import torch
from torch import nn

from experiments.gallery.memory import PeakMemory
from experiments.gallery.training import accuracy, train
from experiments.gallery.wiring import numbers, responses
from kernels import use_backend
from kernels.layers import Linear
from lightning_modules.data.datasets import BatchedImages


def test_peak_memory_counts_what_lives_at_once():
    before = torch.zeros(1000)
    with PeakMemory() as peak:
        first = before + 1
        second = first * 2
        del first
        third = second.view(10, 100)  # the same memory
        third += 1
    assert peak.bytes == 2 * before.nbytes


@pytest.mark.parametrize("outputs", [1, 2])
def test_training_teaches_and_repeats(outputs):
    images = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    labels = (images[:, 0] > 0).long()

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleList(Linear(2, 2) for _ in range(outputs))

        def forward(self, images):
            scores = tuple(head(images) for head in self.heads)
            return scores if self.training and outputs > 1 else scores[0]

    def taught():
        torch.manual_seed(0)
        network = Heads()
        losses = train(network, BatchedImages(images, labels), epochs=20, batch_size=16, lr=0.1)
        return losses, accuracy(network, images, labels)

    with use_backend("torch"):
        losses, share = taught()
        again = taught()
    assert len(losses) == 20 * 4 and losses[-1] < losses[0] and share > 0.9
    assert again == (losses, share)


def test_responses_are_the_matrix_of_a_layer():
    weight = numbers(3, 2)
    assert torch.equal(responses(lambda x: nn.functional.linear(x, weight), (2,)), weight.T)
