"""Training of a few seconds, for the experiments of what a network learns."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from lightning_modules.data import DigitsDataModule
from lightning_modules.data.datasets import BatchedImages, shifted
from lightning_modules.data.loading import loader
from lightning_modules.module import Batch


def train(
    network: nn.Module, data: Dataset[Batch], *, epochs: int, batch_size: int, lr: float, weight_decay: float = 0.01
) -> list[float]:
    """Teach a network by AdamW, whose rate rises to `lr` and falls to nothing, and give the loss of each step.

    The loss is cross entropy, of images or of pixels; where a network has several outputs, that of all, summed.
    """
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr, weight_decay=weight_decay)
    batches = loader(data, batch_size, shuffle=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, epochs=epochs, steps_per_epoch=len(batches))
    losses = []
    for epoch in range(epochs):
        batches.sampler.set_epoch(epoch)
        for images, labels in batches:
            outputs = network(images)
            scores = outputs if isinstance(outputs, tuple) else (outputs,)
            loss = torch.stack([F.cross_entropy(score, labels) for score in scores]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    return losses


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of the images [N, C, *grid], or of their pixels, whose largest score is that of their label."""
    return float((network.eval()(images).argmax(1) == labels).float().mean())


def digits(size: int) -> tuple[BatchedImages, Tensor, Tensor]:
    """Handwritten digits for training, and the images [N, 1, size, size] and labels of all others."""
    module = DigitsDataModule(image_size=size)
    module.setup("fit")
    held_out = (module.val, module.test)
    return module.train, torch.cat([part.images for part in held_out]), torch.cat([part.labels for part in held_out])


def learned(network: nn.Module, size: int) -> tuple[float, float]:
    """Accuracies after training on digits of `size` x `size`: of others, and of others moved by 0 to 2 pixels."""
    data, images, labels = digits(size)
    train(network, data, epochs=5, batch_size=64, lr=0.01)
    moved = shifted(images.repeat(4, 1, 1, 1), 2, torch.Generator().manual_seed(0))
    return accuracy(network, images, labels), accuracy(network, moved, labels.repeat(4))
