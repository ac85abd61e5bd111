"""The one tolerance rule, which `convnets bench` goes by too, as an assertion."""

import math

from torch import Tensor

from experiments.closeness import closeness


def assert_as_exact_as_torch(ours: Tensor, torchs: Tensor, truth: Tensor, magnitude: Tensor) -> None:
    """See `closeness`."""
    reached = closeness(ours, torchs, truth, magnitude)
    assert not math.isnan(reached.error), "a value was never written, or overflowed"
    assert reached.close, str(reached)
