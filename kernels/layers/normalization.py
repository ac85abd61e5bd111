"""Normalisation layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, distributed, nn

from kernels import functional
from kernels.checks import check_activation
from kernels.layers.convolution import fuses_residual

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup  # not every build of torch has it


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    """The base of the batch norm layers: torch's layer, plus a residual and an activation that are fused into it.

    torch.nn.SyncBatchNorm.convert_sync_batchnorm, and so Lightning's Trainer(sync_batchnorm=True), keeps such a layer
    and calls its `synchronise`.
    """

    is_synchronised = False
    process_group: ProcessGroup | None = None

    functional = staticmethod(functional.batch_norm)

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

    def synchronise(self, process_group: ProcessGroup | None = None) -> None:
        """Take the moments of the batches of a group of processes from now on, by default all, in training."""
        self.is_synchronised, self.process_group = True, process_group

    def _peers(self) -> ProcessGroup | None:
        """Return the processes whose batches are normalised together; None for this one alone."""
        if not (self.training and distributed.is_available() and distributed.is_initialized()):
            return None
        group = self.process_group or distributed.group.WORLD
        return group if distributed.get_world_size(group) > 1 else None

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
        return self.functional(
            input, mean, var, self.weight, self.bias, self.training or (mean is None and var is None),
            0.0 if momentum is None else momentum, self.eps, residual=residual, activation=activation,
            process_group=self._peers() if self.is_synchronised else None,
        )  # fmt: skip

    def extra_repr(self) -> str:
        text = super().extra_repr()
        text = text if self.activation is None else f"{text}, activation={self.activation}"
        return f"{text}, synchronised" if self.is_synchronised else text


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """torch.nn.BatchNorm1d by `functional.batch_norm`: input [N, C] or [N, C, L]."""


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """torch.nn.BatchNorm2d by `functional.batch_norm`: input [N, C, H, W]."""


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """torch.nn.BatchNorm3d by `functional.batch_norm`: input [N, C, D, H, W]."""


_convert = nn.SyncBatchNorm.convert_sync_batchnorm.__func__


def _convert_sync_batchnorm(
    cls: type[nn.SyncBatchNorm], module: nn.Module, process_group: ProcessGroup | None = None
) -> nn.Module:
    """Convert as torch does, but keep our layers: a bare SyncBatchNorm in their place has nothing fused into it."""
    if isinstance(module, _BatchNorm):
        module.synchronise(process_group)
        return module
    return _convert(cls, module, process_group)


nn.SyncBatchNorm.convert_sync_batchnorm = classmethod(_convert_sync_batchnorm)  # the method has no hook to override
