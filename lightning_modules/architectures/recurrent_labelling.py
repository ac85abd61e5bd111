"""Recurrent labelling of pixels: an estimate of the labels is fed back with the image, and refined step by step.

With the image X [C, H, W], the estimate Y [classes, H, W] and the kernels U, V and W of figure 9.17,

    H(t) = relu(U * X + W * Y(t-1))     without the second term in the first step
    Y(t) = softmax(V * H(t))

Here U and V are stacks of convolutions; U * X, which no step changes, is computed once. All maps are as large as the
image, of which windows with dilation see a large part:

    U   5x5 windows; 3x3 with dilation 2; 3x3 with dilation 4
    W   5x5 windows with dilation 2, over the probabilities of the labels
    V   3x3 windows; 3x3 with dilation 2; 1x1, to the classes

Source: Goodfellow, Bengio and Courville, Deep Learning (2016), figure 9.17; Pinheiro and Collobert, "Recurrent
convolutional neural networks for scene labeling" (2014); Yu and Koltun, "Multi-scale context aggregation by dilated
convolutions" (2016), for the dilation. Weights are initialised as in He, Zhang, Ren and Sun, "Delving deep into
rectifiers" (2015).
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from kernels.layers import BatchNorm2d, Conv2d
from lightning_modules.architectures.shapes import check_any_size, check_input_shape


class RecurrentLabelling(nn.Module):
    def __init__(
        self,
        input_shape: tuple[int, int, int] = (3, 48, 48),
        filters: int = 32,
        steps: int = 3,
        classes: int = 11,
        norm=True, wk=5, wd=2, vdil=(1,2), udil=(1,2,4),
    ) -> None:
        super().__init__()
        self.input_shape = input_shape
        self.classes = classes
        self.steps = steps
        c = input_shape[0]
        def cv(a, b, k, d, relu=True):
            conv = Conv2d(a, b, k, padding=d * (k // 2), dilation=d, bias=not norm, activation=None if norm or not relu else "relu")
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            if not norm: nn.init.zeros_(conv.bias)
            return nn.Sequential(conv, BatchNorm2d(b, activation="relu" if relu else None)) if norm else conv
        layers = []
        for i, d in enumerate(udil):
            layers.append(cv(c if i == 0 else filters, filters, 5 if i == 0 else 3, d, relu=i < len(udil) - 1))
        self.U = nn.Sequential(*layers)
        self.W = Conv2d(classes, filters, wk, padding=wd * (wk // 2), dilation=wd, bias=False)
        self.V = nn.Sequential()
        for d in vdil:
            conv = Conv2d(filters, filters, 3, padding=d, dilation=d, activation="relu")
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu"); nn.init.zeros_(conv.bias)
            self.V.append(conv)
        self.V.append(Conv2d(filters, classes, 1))

    def refinements(self, images):
        seen = self.U(images)
        scores = []
        for step in range(self.steps):
            hidden = self.W(scores[-1].softmax(1), residual=seen, activation="relu") if scores else seen.relu()
            scores.append(self.V(hidden))
        return scores

    def forward(self, images: Tensor):
        *earlier, last = self.refinements(images)
        return (last, *earlier) if self.training else last
