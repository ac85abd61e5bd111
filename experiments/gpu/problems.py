"""Layers of well-known networks at 224x224, most telling first. A table, since a GPU machine may lack torchvision.

tests/experiments/test_gpu.py holds it to torchvision's networks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from experiments.gpu.step import REHEARSAL
from kernels.checks import make_window
from kernels.problem import Problem
from kernels.shape import Window


class NamedLayer(NamedTuple):
    """A convolution or linear layer (kernel 0) of a network, by torchvision's name of the network."""

    network: str
    channels: int
    outputs: int
    size: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1

    def problem(self, batch: int, dtype: torch.dtype) -> Problem:
        if self.kernel == 0:
            return Problem(batch, self.channels, self.outputs, (), Window((), (), (), ()), dtype)
        window = make_window("conv2d", (self.kernel,) * 2, self.stride, self.padding, 1, self.groups)
        return Problem(batch, self.channels, self.outputs, (self.size,) * 2, window, dtype)


LAYERS = (
    NamedLayer("resnet50", 128, 128, 28, 3, 1, 1),
    NamedLayer("resnet50", 64, 64, 56, 3, 1, 1),
    NamedLayer("resnet50", 3, 64, 224, 7, 2, 3),
    NamedLayer("resnet50", 64, 256, 56, 1),
    NamedLayer("resnet50", 256, 256, 14, 3, 1, 1),
    NamedLayer("mobilenet_v2", 144, 144, 56, 3, 1, 1, 144),
    NamedLayer("convnext_tiny", 96, 96, 56, 7, 1, 3, 96),
    NamedLayer("vgg16", 512, 512, 28, 3, 1, 1),
    NamedLayer("resnext50_32x4d", 128, 128, 56, 3, 1, 1, 32),
    NamedLayer("alexnet", 3, 64, 224, 11, 4, 2),
    NamedLayer("resnet50", 128, 128, 56, 3, 2, 1),
    NamedLayer("resnet50", 256, 512, 56, 1, 2),
    NamedLayer("resnet50", 2048, 1000, 1, 0),
    NamedLayer("vgg16", 64, 64, 224, 3, 1, 1),
    NamedLayer("resnext50_32x4d", 512, 512, 14, 3, 1, 1, 32),
    NamedLayer("mobilenet_v2", 96, 96, 112, 3, 2, 1, 96),
    NamedLayer("convnext_tiny", 3, 96, 224, 4, 4),
    NamedLayer("alexnet", 64, 192, 27, 5, 1, 2),
    NamedLayer("resnet50", 512, 512, 7, 3, 1, 1),
    NamedLayer("resnet50", 256, 64, 56, 1),
    NamedLayer("resnet50", 1024, 256, 14, 1),
    NamedLayer("resnet50", 512, 2048, 7, 1),
    NamedLayer("vgg16", 256, 256, 56, 3, 1, 1),
    NamedLayer("vgg16", 3, 64, 224, 3, 1, 1),
    NamedLayer("mobilenet_v2", 24, 144, 56, 1),
    NamedLayer("mobilenet_v2", 384, 384, 14, 3, 1, 1, 384),
    NamedLayer("convnext_tiny", 96, 192, 56, 2, 2),
    NamedLayer("convnext_tiny", 768, 768, 7, 7, 1, 3, 768),
    NamedLayer("alexnet", 256, 256, 13, 3, 1, 1),
    NamedLayer("resnext50_32x4d", 256, 256, 56, 3, 2, 1, 32),
    NamedLayer("resnet50", 256, 256, 28, 3, 2, 1),
    NamedLayer("resnet50", 512, 128, 28, 1),
    NamedLayer("vgg16", 128, 128, 112, 3, 1, 1),
    NamedLayer("mobilenet_v2", 32, 32, 112, 3, 1, 1, 32),
    NamedLayer("mobilenet_v2", 320, 1280, 7, 1),
    NamedLayer("alexnet", 9216, 4096, 1, 0),
)

REHEARSED = (  # one of each kind, small enough for the interpreter
    NamedLayer("resnet50", 16, 16, 7, 3, 1, 1),
    NamedLayer("resnet50", 3, 8, 14, 7, 2, 3),
    NamedLayer("mobilenet_v2", 16, 16, 7, 3, 1, 1, 16),
)


def layers() -> list[tuple[str, NamedLayer, Problem]]:
    """Return key, layer and problem of what a run measures: float16, N = 32; in a rehearsal float32, N = 1."""
    chosen, batch, dtype = (REHEARSED, 1, torch.float32) if REHEARSAL else (LAYERS, 32, torch.float16)
    problems = [(layer, layer.problem(batch, dtype)) for layer in chosen]
    return [(f"{layer.network}: {problem}", layer, problem) for layer, problem in problems]
