"""What a kernel reads and writes, counted access by access as it is interpreted: fusing saves what it should."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from kernels import backend, functional

pytestmark = pytest.mark.skipif(not backend.INTERPRETING, reason="accesses are counted by the interpreter")


class Traffic:
    """Bytes that launches load and store: every access, and each address once."""

    def __init__(self) -> None:
        self.accessed = {"read": 0, "written": 0}
        self._touched: dict[str, set[int]] = {"read": set(), "written": set()}

    def add(self, kind: str, addresses: np.ndarray, mask: np.ndarray, itemsize: int) -> None:
        own = np.broadcast_to(addresses, mask.shape)[mask]
        self.accessed[kind] += own.size * itemsize
        self._touched[kind].update((np.unique(own)[:, None] + np.arange(itemsize, dtype=own.dtype)).ravel().tolist())

    def distinct(self, kind: str) -> int:
        return len(self._touched[kind])


@contextmanager
def counted(monkeypatch):
    from triton.runtime import interpreter

    traffic, builder = Traffic(), type(interpreter.interpreter_builder)
    load, store = builder.create_masked_load, builder.create_masked_store

    def counted_load(self, ptrs, mask, *rest):
        traffic.add("read", ptrs.data, mask.data, ptrs.get_element_ty().primitive_bitwidth // 8)
        return load(self, ptrs, mask, *rest)

    def counted_store(self, ptrs, value, mask, *rest):
        traffic.add("written", ptrs.data, mask.data, ptrs.get_element_ty().primitive_bitwidth // 8)
        return store(self, ptrs, value, mask, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(builder, "create_masked_load", counted_load)
        patch.setattr(builder, "create_masked_store", counted_store)
        yield traffic


X, W, Y = 2 * 8 * 16 * 16 * 4, 12 * 8 * 9 * 4, 2 * 12 * 16 * 16 * 4  # bytes of float32


@pytest.fixture
def layer():
    x = torch.randn(2, 8, 16, 16).to(memory_format=torch.channels_last)
    return x, torch.randn(12, 8, 3, 3), torch.randn(12)


def test_the_map_before_pooling_is_neither_written_nor_read(layer, monkeypatch, triton_only):
    x, weight, bias = layer
    with counted(monkeypatch) as fused:
        pooled = functional.conv2d(x, weight, bias, padding=1, activation="relu", max_pool=2)
    with counted(monkeypatch) as apart:
        full = functional.conv2d(x, weight, bias, padding=1, activation="relu")
        expected = functional.max_pool2d(full, 2)
    torch.testing.assert_close(pooled, expected)
    bias_bytes, taps = 12 * 4, Y // 4 // 4  # a byte each
    assert fused.distinct("read") == X + W + bias_bytes and fused.distinct("written") == Y // 4 + taps
    assert apart.distinct("read") == X + W + bias_bytes + Y
    assert apart.distinct("written") == Y + Y // 4 + taps
    assert fused.accessed["written"] == fused.distinct("written")
    assert fused.accessed["read"] < apart.accessed["read"]  # each candidate reads the weights again


def test_maxout_writes_the_largest_only(layer, monkeypatch, triton_only):
    x, weight, bias = layer
    with counted(monkeypatch) as fused:
        functional.conv2d(x, weight, bias, padding=1, maxout=3)
    assert fused.distinct("written") == Y // 3 + Y // 3 // 4 and fused.distinct("read") == X + W + 12 * 4


def test_depthwise_convolution_reads_its_own_channels_only(layer, monkeypatch, triton_only):
    x, *_ = layer
    with counted(monkeypatch) as traffic:
        functional.conv2d(x, torch.randn(8, 1, 3, 3), padding=1, groups=8)
    inside = 2 * 8 * (9 * 16 * 16 - 2 * 3 * (2 * 16) + 4)  # taps that fall on the image
    assert traffic.accessed == {"read": 4 * (inside + 9 * 8), "written": X}
