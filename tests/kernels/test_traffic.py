"""What a kernel reads and writes, counted access by access as it is interpreted: fusing saves what it should."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from kernels import backend, conv, functional, reference
from kernels.checks import make_window
from kernels.problem import OPERATIONS, Problem
from kernels.shape import Window

counts_accesses = pytest.mark.skipif(not backend.INTERPRETING, reason="accesses are counted by the interpreter")


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


@counts_accesses
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


@counts_accesses
def test_maxout_writes_the_largest_only(layer, monkeypatch, triton_only):
    x, weight, bias = layer
    with counted(monkeypatch) as fused:
        functional.conv2d(x, weight, bias, padding=1, maxout=3)
    assert fused.distinct("written") == Y // 3 + Y // 3 // 4 and fused.distinct("read") == X + W + 12 * 4


@counts_accesses
def test_depthwise_convolution_reads_its_own_channels_only(layer, monkeypatch, triton_only):
    x, *_ = layer
    with counted(monkeypatch) as traffic:
        functional.conv2d(x, torch.randn(8, 1, 3, 3), padding=1, groups=8)
    inside = 2 * 8 * (9 * 16 * 16 - 2 * 3 * (2 * 16) + 4)  # taps that fall on the image
    assert traffic.accessed == {"read": 4 * (inside + 9 * 8), "written": X}


def problem(size, kernel, stride=1, padding=0, dilation=1, groups=1, tile=(), channels=4, outputs=6) -> Problem:
    window = make_window("problem", kernel, stride, padding, dilation, groups, tile)
    return Problem(2, channels, outputs, size, window, torch.float32)


COMPULSORY = {
    "dense": problem((9, 7), (3, 3), padding=1),
    "1x1-strided": problem((9, 8), (1, 1), stride=2),
    "stride-over-window": problem((11, 12), (2, 3), stride=(5, 4), padding=(1, 0)),
    "dilated": problem((9, 9), (3, 3), dilation=2, stride=3),
    "dilation-over-size": problem((5, 5), (3, 3), dilation=6, padding=6),
    "taps-on-both-sides": problem((2,), (2,), dilation=5, padding=3),
    "dilated-and-strided": problem((4, 4), (2, 2), padding=(0, 1), stride=2, dilation=3),
    "tiled": problem((7, 4), (3, 2), padding=1, tile=(3, 7)),
    "groups": problem((6, 6), (1, 3), stride=(2, 4), channels=6, outputs=4, groups=2),
    "3-d": problem((4, 5, 6), (2, 1, 3), stride=(3, 2, 1)),
    "linear": problem((), ()),
    "padding-only": Problem(2, 4, 6, (3, 2), Window((2, 1), (1, 2), ((4, 2), (3, 1)), (2, 1)), torch.float32),
}


@pytest.mark.parametrize("name", COMPULSORY)
def test_compulsory_traffic_is_what_a_result_depends_on(name):
    """By PyTorch's gradients of sums of ones; and each element of the result, once."""
    some = COMPULSORY[name]
    x, weight, dy = (torch.ones(t.shape, dtype=torch.float64, requires_grad=True) for t in some.tensors("meta"))
    y = reference.forward(x, weight, None, None, some.window, False)
    y.sum().backward()
    used = {"x": int(x.grad.count_nonzero()), "w": int(weight.grad.count_nonzero()), "dy": int(y.count_nonzero())}
    results = {"forward": {"dy": dy}, "input_gradient": {"x": x}, "weight_gradient": {"w": weight}}
    for operation in OPERATIONS:
        elements = used | {name: result.numel() for name, result in results[operation].items()}
        assert some.bytes(operation) == 4 * sum(elements.values()), operation


@counts_accesses
@pytest.mark.parametrize("name", ["1x1-strided", "stride-over-window"])
def test_a_kernel_reads_no_inputs_between_windows(name, monkeypatch, triton_only):
    some = COMPULSORY[name]
    x, weight, dy = some.tensors("cpu")
    with counted(monkeypatch) as traffic:
        conv.forward(x, weight, None, None, some.window, False)
    moved = traffic.distinct("read") + traffic.distinct("written")
    assert moved == some.bytes("forward") < x.nbytes + weight.nbytes + dy.nbytes
