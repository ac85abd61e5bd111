"""What a call costs before its kernel runs: how many of our functions it enters, a number that no machine changes.

The time that they take is measured by tests/host_cost.py.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
import torch

import kernels
from kernels import backend, functional, layers

PACKAGE = str(Path(kernels.__file__).parent)


def functions_entered(call: Callable[[], object]) -> int:
    """Functions of our own in the second of two calls."""
    entered = 0

    def note(frame: FrameType, event: str, _: object) -> None:
        nonlocal entered
        entered += event == "call" and frame.f_code.co_filename.startswith(PACKAGE)

    call()
    previous = sys.getprofile()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(previous)
    return entered


@pytest.mark.parametrize(
    ("name", "layer", "most"),
    [
        pytest.param("torch", layers.Conv2d(4, 4, 3, padding=1), 20, id="conv-torch"),
        pytest.param("torch", layers.MaxPool2d(2), 8, id="pool-torch"),
        pytest.param("torch", layers.Linear(8, 4), 13, id="linear-torch"),
        pytest.param("triton", layers.Conv2d(4, 4, 3, padding=1), 110, id="conv-triton"),
        pytest.param("triton", layers.MaxPool2d(2), 70, id="pool-triton"),
    ],
)
def test_a_call_enters_few_functions(name, layer, most, device, monkeypatch):
    monkeypatch.setattr(backend, "launch", lambda *_, **__: None)
    x = torch.randn(2, 4, 8, 8, device=device)
    layer = layer.to(device)
    with kernels.use_backend(name):
        assert functions_entered(lambda: layer(x)) <= most


@pytest.mark.parametrize("name", ["torch", "triton"])
def test_what_is_remembered_lets_nothing_in_that_equals_it(name, device):
    x, weight = torch.randn(1, 2, 5, 5, device=device), torch.randn(3, 2, 3, 3, device=device)
    with kernels.use_backend(name):
        functional.conv2d(x, weight, stride=(1, 1), dilation=1)
        functional.max_pool2d(x, (1, 1))
        for refused in ({"stride": (1.0, 1.0)}, {"stride": 1.0}, {"dilation": True}, {"dilation": (True, True)}):
            with pytest.raises(ValueError, match="must be an int or 2 ints"):
                functional.conv2d(x, weight, **refused)
        with pytest.raises(ValueError, match="must be an int or 2 ints"):
            functional.max_pool2d(x, (1.0, 1.0))


@pytest.mark.parametrize("name", ["torch", "triton"])
def test_tensors_on_two_devices_are_refused(name, device):
    x, weight, bias = (torch.randn(shape, device=device) for shape in ((1, 2, 5, 5), (3, 2, 3, 3), (3,)))
    with kernels.use_backend(name):
        for tensors in ((x, weight.to("meta")), (x, weight, bias.to("meta"))):
            with pytest.raises(ValueError, match="tensors must be on one device"):
                functional.conv2d(*tensors)
