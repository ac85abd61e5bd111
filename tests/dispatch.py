"""What a call of a convolution costs beyond ATen's, on a problem of next to no work: python -m tests.dispatch

On a GPU the whole call is timed, as the host sees it. Without one everything up to the launch is, which then does
nothing: to interpret a kernel is not to dispatch it.
"""

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from unittest import mock

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before the first import of triton

from torch import nn  # noqa: E402

import kernels  # noqa: E402
from kernels import backend, layers  # noqa: E402

LIMIT = 60  # us
CALLS = 50
ROUNDS = 150


def over_aten(name: str = "triton") -> dict[str, float]:
    """Microseconds that the backend `name` takes for a call, less those of torch.nn.Conv2d, in one run.

    Of each the least over many short rounds, in which the two take turns: what else the machine does only adds.
    """
    ours, theirs = (kind(4, 4, 3, padding=1, device=DEVICE) for kind in (layers.Conv2d, nn.Conv2d))
    x = torch.randn(2, 4, 8, 8, device=DEVICE)
    interpreting = DEVICE == "cpu" and name == "triton"
    stub = mock.patch.object(backend, "launch", lambda *_, **__: None) if interpreting else nullcontext()
    with kernels.use_backend(name), stub:
        return {
            "forward": _difference(*(_evaluation(layer, x) for layer in (ours, theirs))),
            "forward in training": _difference(*(_call(layer, x) for layer in (ours, theirs))),
            "backward": _difference(*(_backward(layer, x) for layer in (ours, theirs))),
        }


def _evaluation(layer: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    return torch.no_grad()(lambda: layer(x))


def _call(layer: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    return lambda: layer(x)


def _backward(layer: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    x = x.clone().requires_grad_()
    y, inputs = layer(x), (x, *layer.parameters())
    dy = torch.ones_like(y)
    return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)


def _difference(ours: Callable[[], object], theirs: Callable[[], object]) -> float:
    for call in (ours, theirs):
        _microseconds(call)  # what the first calls look up, build or compile
    rounds = [(_microseconds(ours), _microseconds(theirs)) for _ in range(ROUNDS)]
    least, their_least = map(min, zip(*rounds, strict=True))
    return least - their_least


def _microseconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    for _ in range(CALLS):
        call()
    seconds = time.perf_counter() - started
    if DEVICE == "cuda":
        torch.cuda.synchronize()  # the next are not to wait for these
    return seconds / CALLS * 1e6


def report() -> bool:
    """Print the figures; whether the forward calls stay within LIMIT."""
    for name in ("triton", "torch"):
        figures = over_aten(name)
        text = ", ".join(f"{what} {value:.0f}" for what, value in figures.items())
        print(f"dispatch on the {name} backend: {text} us over ATen")
        if name == "triton":
            reached = max(figures["forward"], figures["forward in training"]) <= LIMIT
    return reached


if __name__ == "__main__":
    raise SystemExit(0 if report() else 1)
