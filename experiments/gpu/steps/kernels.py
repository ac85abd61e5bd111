"""Every kernel once against float64, by the rule of the tests; loads by TMA too. A failure does not stop the others."""

from __future__ import annotations

import functools
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

from experiments.gpu.step import (
    DEVICE,
    REHEARSAL,
    cores,
    device_is_lost,
    go_on,
    interpret_in_rehearsal,
    reason,
    record,
    rest_of,
    unless_it_hangs,
)

interpret_in_rehearsal()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from experiments.closeness import closeness  # noqa: E402
from kernels import boxes, conv, norm, norm_gradient, plan, pool, reference, tuning  # noqa: E402
from kernels.checks import make_window  # noqa: E402
from kernels.shape import POINT, Window  # noqa: E402
from kernels.tile import Tile  # noqa: E402

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
BATCH, SIDE, CHANNELS = (1, 6, 16) if REHEARSAL else (8, 28, 64)
EPS = 1e-5
MOST = 8  # processes: each holds a context of the GPU


class Compared(NamedTuple):
    """A result, what torch makes of the same tensors, the float64 truth, and its sum of absolute terms."""

    ours: Tensor
    torchs: Tensor
    truth: Tensor
    magnitude: Tensor


Case = Callable[[torch.dtype], Iterator[Compared]]


def draw(dtype: torch.dtype, *shape: int) -> Tensor:
    """Return normal numbers, channels-last; in float64 such whose products are exact, as no truth is more exact."""
    x = torch.randn(shape).bfloat16() if dtype == torch.float64 else torch.randn(shape)
    x = x.to(DEVICE, dtype)
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def compared(run: Callable[..., tuple[Tensor, ...]], module: object, tensors: list[Tensor]) -> Iterator[Compared]:
    """Yield each result of run(module, *tensors) beside those of the reference."""
    exact = [tensor.double() for tensor in tensors]
    calls = ((module, tensors), (reference, tensors), (reference, exact), (reference, [t.abs() for t in exact]))
    results = [run(where, *given) for where, given in calls]
    for ours, torchs, truth, magnitude in zip(*results, strict=True):
        if ours.is_floating_point():
            yield Compared(ours, torchs, truth, magnitude)


def convolution(window: Window, outputs: int = CHANNELS, channels: int = CHANNELS) -> Case:
    """Compare the three operations, with bias, residual and ReLU where they are fused."""

    def case(dtype: torch.dtype) -> Iterator[Compared]:
        size = (SIDE,) * window.axes
        x = draw(dtype, BATCH, channels, *size)
        residual, dy = (draw(dtype, BATCH, outputs, *window.output_size(size)) for _ in range(2))
        weight = draw(dtype, window.tiles * outputs, channels // window.groups, *window.kernel)
        bias, mask = draw(dtype, window.tiles * outputs), (residual > 0).to(dtype)

        def run(module, x, weight, bias, residual, dy, mask):  # type: ignore[no-untyped-def]
            y = module.forward(x, weight, bias, residual, window, False)
            dx = module.transpose(dy, weight, None, mask, window, size, False)
            return y, dx, *module.weight_gradient(x, dy, mask, window, True)

        yield from compared(run, conv, [x, weight, bias, residual, dy, mask])

    return case


def fused_pooling(dtype: torch.dtype) -> Iterator[Compared]:
    """Compare convolution, ReLU and max pooling in one kernel, and maxout."""
    window, halves = make_window("kernels", (3, 3), 1, 1, 1), make_window("kernels", (2, 2), 2, 0, 1)
    shapes = (BATCH, CHANNELS, SIDE, SIDE), (16, CHANNELS, 3, 3), (16,)
    x, weight, bias = (draw(dtype, *shape) for shape in shapes)

    def run(module, x, weight, bias):  # type: ignore[no-untyped-def]
        pooled, _ = module.forward_max(x, weight, bias, window, True, halves, (SIDE // 2,) * 2, 1)
        largest, _ = module.forward_max(x, weight, bias, window, False, POINT, (SIDE,) * 2, 2)
        return pooled, largest

    yield from compared(run, conv, [x, weight, bias])


def boxed(dtype: torch.dtype) -> Iterator[Compared]:
    """Compare convolution and transpose whose input TMA loads, and check that it did."""
    made = []
    make = boxes.boxes
    tile = Tile(128, 64, boxes.LONGEST // (4 if REHEARSAL else dtype.itemsize), 4, 3, boxes=True)
    window, channels = make_window("kernels", (3, 3), 1, 1, 1), 64
    shapes = (BATCH, channels, SIDE, SIDE), (channels, channels, 3, 3), (BATCH, channels, SIDE, SIDE)
    x, weight, dy = (draw(dtype, *shape) for shape in shapes)

    def run(module, x, weight, dy):  # type: ignore[no-untyped-def]
        y = module.forward(x, weight, None, None, window, False)
        return y, module.transpose(dy, weight, None, None, window, (SIDE, SIDE), False)

    def note(*arguments: Any) -> object:
        made.append(make(*arguments))
        return made[-1]

    with tuning.use_tile(tile), plan.apart(object()), mock.patch.object(boxes, "boxes", note):
        yield from compared(run, conv, [x, weight, dy])
    if len(made) != 2 or None in made:
        raise RuntimeError("the input was loaded by addresses, not by TMA")


def pooling(dtype: torch.dtype) -> Iterator[Compared]:
    """Compare max pooling, its gradient, and average pooling with its own."""
    window, size = make_window("kernels", (3, 3), 2, 1, 1), (SIDE // 2,) * 2
    x, dy = draw(dtype, BATCH, CHANNELS, SIDE, SIDE), draw(dtype, BATCH, CHANNELS, *size)
    largest, taps = reference.max_pool(x, window, size)
    if not all(map(torch.equal, pool.max_pool(x, window, size), (largest, taps))):
        raise RuntimeError("max pooling differs from torch's")

    def run(module, x, dy):  # type: ignore[no-untyped-def]
        average = module.average_pool(x, window, size, 0, False)
        return (
            average, module.max_pool_gradient(dy, taps, window, (SIDE, SIDE)),
            module.average_pool_gradient(dy, window, (SIDE, SIDE), 0, False),
        )  # fmt: skip

    yield from compared(run, pool, [x, dy])


def batch_norm(dtype: torch.dtype) -> Iterator[Compared]:
    """Compare batch norm with a residual, and its gradients."""
    x, residual, dy = (draw(dtype, BATCH, CHANNELS, SIDE, SIDE) for _ in range(3))
    weight, bias = draw(dtype, CHANNELS), draw(dtype, CHANNELS)

    def run(module, gradient, x, weight, bias, residual, dy):  # type: ignore[no-untyped-def]
        y, mean, var = module.batch_norm(x, weight, bias, residual, None, None, None, EPS, False)
        mean, var = (value.to(mean.dtype) for value in moments)
        return y, *gradient.batch_norm_gradient(dy, x, weight, None, mean, var, EPS, True, True, True)

    exact = [t.double() for t in (x, weight, bias, residual, dy)]
    moments = reference.batch_moments(exact[0])
    given = x, weight, bias, residual, dy
    results = run(norm, norm_gradient, *given), *(run(reference, reference, *each) for each in (given, exact))
    for ours, torchs, truth, terms in zip(*results, norm_terms(*exact), strict=True):
        yield Compared(ours, torchs, truth, terms)


def norm_terms(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    """Return the sums of absolute terms of y, dx, dweight, dbias and dresidual: a difference counts as a sum."""
    axes, dy = (0, 2, 3), dy.abs()
    wide = lambda v: v.view(-1, 1, 1)  # noqa: E731
    mean, var = reference.batch_moments(x)
    rstd = wide((var + EPS).rsqrt())
    terms, xhat = (x.abs() + wide(x.abs().mean(axes))) * rstd, ((x - wide(mean)) * rstd).abs()
    average = lambda v: wide(v.mean(axes))  # noqa: E731
    dx = dy + average(dy) + xhat * average(dy * terms) + terms * average(dy * xhat)
    scale = wide(weight).abs()
    return (
        terms * scale + wide(bias).abs() + residual.abs(), dx * rstd * scale, (dy * terms).sum(axes), dy.sum(axes), dy
    )  # fmt: skip


CASES: dict[str, Case] = {
    "convolution 3x3": convolution(make_window("kernels", (3, 3), 1, 1, 1)),
    "convolution 3x3, stride 2": convolution(make_window("kernels", (3, 3), 2, 1, 1)),
    "convolution 7x7 of 3 channels": convolution(
        make_window("kernels", (5, 5) if REHEARSAL else (7, 7), 2, 2, 1), channels=3
    ),
    "convolution, 4 groups": convolution(make_window("kernels", (3, 3), 1, 1, 1, 4)),
    "convolution, depthwise": convolution(make_window("kernels", (3, 3), 1, 1, 1, CHANNELS)),
    "convolution, tiled 2x2": convolution(make_window("kernels", (3, 3), 1, 1, 1, 1, (2, 2))),
    "convolution 3-d": convolution(make_window("kernels", (2, 3, 3), 1, 1, 1), outputs=16, channels=16),
    "convolution, ReLU and max pooling in one": fused_pooling,
    "pooling": pooling,
    "batch norm": batch_norm,
    "convolution by TMA": boxed,
}


def check(what: dict[str, str], name: str, dtype: torch.dtype) -> bool:
    """Record how far the results of a case are from float64, or how it failed, and return False."""
    try:
        reached = [closeness(*each) for each in CASES[name](dtype)]
    except Exception as error:  # a compiler, a driver or an assertion: the other cases can go on
        record(**what, fault=reason(error))
        return False
    worst = max(reached, key=lambda each: each.error / each.allowed if each.allowed else each.error)
    bad = next((each for each in reached if not each.close), None)
    record(**what, results=len(reached), error=worst.error, allowed=worst.allowed, fault=f"wrong: {bad}" if bad else "")
    return True


def cases() -> list[tuple[str, torch.dtype]]:
    has_tma = boxes.has_tma(tuning.target())
    pairs = itertools.product(CASES, DTYPES)
    return [(name, dtype) for name, dtype in pairs if CASES[name] is not boxed or (has_tma and dtype.itemsize < 8)]


def main(share: str | None = None, first: str = "0") -> int:
    """Check the cases of a share, "number/shares", from number `first` on; without one all, in processes beside each
    other, as compiling takes longest."""
    if share is None:
        shares = 1 if REHEARSAL else min(MOST, cores())
        command = [sys.executable, "-m", "experiments.gpu.steps.kernels"]
        running = [subprocess.Popen([*command, f"{number}/{shares}"]) for number in range(shares)]
        return int(any([process.wait() for process in running]))
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False  # so that float32 is IEEE's, with ours as with torch
    number, shares = map(int, share.split("/"))
    own = cases()[number::shares]
    for place in range(int(first), len(own)):
        name, dtype = own[place]
        what = {"case": name, "dtype": str(dtype).removeprefix("torch.")}
        with unless_it_hangs(functools.partial(record, **what), rest_of("kernels", share, place + 1)):
            checked = check(what, name, dtype)
        if not checked and device_is_lost():
            return go_on("kernels", share, place + 1)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
