"""Normalisation layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kernels import functional
from kernels.checks import check_activation
from kernels.layers.convolution import fuses_residual


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    """What the batch norm layers share: torch's layer, plus a residual and an activation that are fused into it."""

    def __init__(self, *args: Any, activation: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation = check_activation(type(self).__name__, activation)

    def forward(self, input: Tensor, residual: Tensor | None = None, *, activation: str | None = None) -> Tensor:
        """activation(batch_norm(input) + residual), fused where the sum has the shape and dtype of input."""
        activation = check_activation(type(self).__name__, activation or self.activation)
        if residual is None or fuses_residual(residual, input.shape, input.dtype):
            return self._normalise(input, residual, activation)
        y = self._normalise(input, None, None) + residual
        return y.relu() if activation else y

    def _normalise(self, input: Tensor, residual: Tensor | None, activation: str | None) -> Tensor:
        self._check_input_dim(input)
        tracking = self.training and self.track_running_stats
        momentum = self.momentum
        if tracking and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if momentum is None:  # the mean over all batches; as a tensor, so that nothing waits for a GPU
                momentum = self.num_batches_tracked.double().reciprocal()
        known = tracking or not self.training
        mean, var = (self.running_mean, self.running_var) if known else (None, None)
        return functional.batch_norm(
            input, mean, var, self.weight, self.bias, self.training or (mean is None and var is None),
            0.0 if momentum is None else momentum, self.eps, residual=residual, activation=activation,
        )  # fmt: skip

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.activation is None else f"{text}, activation={self.activation}"


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """torch.nn.BatchNorm1d by `functional.batch_norm`: input [N, C] or [N, C, L]."""


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """torch.nn.BatchNorm2d by `functional.batch_norm`: input [N, C, H, W]."""


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """torch.nn.BatchNorm3d by `functional.batch_norm`: input [N, C, D, H, W]."""
