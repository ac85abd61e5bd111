"""How much memory a computation takes, in tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class PeakMemory(TorchDispatchMode):
    """Entered, it counts the bytes of tensors that operations give and that still live; `bytes` are the most at once.

    Tensors from before do not count, nor does what an operation needs for itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._living: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, operator: Any, types: Any, arguments: Sequence[Any] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        before = {_storage(tensor)._cdata for tensor in tree_iter((arguments, keywords)) if isinstance(tensor, Tensor)}
        result = operator(*arguments, **(keywords or {}))
        self._living = {key: entry for key, entry in self._living.items() if not entry[0].expired()}
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor) and (storage := _storage(tensor))._cdata not in before:
                self._living[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.bytes = max(self.bytes, sum(size for _, size in self._living.values()))
        return result


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()
