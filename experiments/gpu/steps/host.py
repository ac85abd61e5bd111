"""Measure the host's time of a launch: launchers, and operators beside torch's. A rehearsal takes the stub driver."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack

from experiments.gpu.step import DEVICE, REHEARSAL, TARGET, record

os.environ.pop("TRITON_INTERPRET", None)  # also in a rehearsal: compiled kernels are launched, on the stub

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import kernels  # noqa: E402
from experiments.gpu.timing import host_seconds  # noqa: E402
from kernels import backend, boxes, conv, functional, norm, pool, tuning  # noqa: E402
from kernels.checks import make_window  # noqa: E402
from kernels.tile import Tile  # noqa: E402

ROUNDS = 20
Call = Callable[[], object]


def draw(*shape: int) -> torch.Tensor:
    x = torch.zeros(shape, device=DEVICE, dtype=torch.float16)
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def launchers() -> dict[str, Call]:
    """Return the launchers of every kernel on next to no data, by name; loads by TMA where the target has it."""
    x, weight, bias = draw(2, 64, 8, 8), draw(64, 64, 3, 3), draw(64)
    window, pooling = make_window("host", (3, 3), 1, 1, 1), make_window("host", (2, 2), 2, 0, 1)
    tma = Tile(128, 64, 64, 4, 3, boxes=True)

    def by_tma() -> object:
        with tuning.use_tile(tma):
            return conv.forward(x, weight, None, None, window, False)

    calls: dict[str, Call] = {
        "convolution": lambda: conv.forward(x, weight, bias, None, window, True),
        "its transpose": lambda: conv.transpose(x, weight, None, None, window, (8, 8), False),
        "weight gradient": lambda: conv.weight_gradient(x, x, None, window, True),
        "max pooling": lambda: pool.max_pool(x, pooling, (4, 4)),
        "batch norm": lambda: norm.batch_norm(x, bias, bias, None, None, None, None, 1e-5, True),
    }
    if boxes.has_tma(tuning.target()):
        calls["convolution by TMA"] = by_tma
    return calls


def operators() -> dict[str, Call]:
    """Return public functions beside torch's, forward and backward, on next to no data."""
    x, weight, bias = draw(2, 64, 8, 8).requires_grad_(), draw(64, 64, 3, 3).requires_grad_(), draw(64)
    dy = draw(2, 64, 8, 8)
    ours = lambda: functional.conv2d(x, weight, None, padding=1)  # noqa: E731
    theirs = lambda: F.conv2d(x, weight, None, padding=1)  # noqa: E731
    return {
        "conv2d": ours,
        "conv2d of torch": theirs,
        "conv2d with gradients": lambda: torch.autograd.grad(ours(), (x, weight), dy),
        "conv2d of torch with gradients": lambda: torch.autograd.grad(theirs(), (x, weight), dy),
        "batch_norm": lambda: functional.batch_norm(x, None, None, bias, bias, training=True),
        "batch_norm of torch": lambda: F.batch_norm(x, None, None, bias, bias, training=True),
    }


def main() -> int:
    with ExitStack() as stack:
        stub = None
        if REHEARSAL:
            from experiments.gpu.stub import stubbed

            stub = stack.enter_context(stubbed(TARGET))
        stack.enter_context(kernels.use_backend("triton"))
        before = backend.launch_count()
        for kind, calls in (("launcher", launchers()), ("operator", operators())):
            for name, call in calls.items():
                call()
                record(what=kind, call=name, host_seconds=host_seconds([call] * 10, rounds=ROUNDS), fault="")
        if stub is not None:
            counted, launched = backend.launch_count() - before, stub.stub_launches()
            fault = "" if counted == launched else f"{counted} launches were counted, {launched} reached the driver"
            if stub.stub_refused() or not stub.stub_descriptors():
                fault = f"{stub.stub_refused()} of {stub.stub_descriptors()} TMA descriptors were refused"
            record(what="stub", launches=launched, descriptors=stub.stub_descriptors(), fault=fault)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
