"""One implementation of an operation on one problem: held to float64, then timed.

Of `kernels` this uses what stands still, since `convnets bench --against` runs it on other revisions of them, too:
problems, the public functions and the choice of a backend.
"""

from __future__ import annotations

import functools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.closeness import Closeness, closeness
from kernels import functional, use_backend
from kernels.problem import Problem

Results = tuple[Tensor, ...]
Call = Callable[[], Results]
MILLISECONDS = 40  # for which a round repeats a call; half of that to warm up


class Contender:
    """An implementation in this process.

    Args:
        implementation: "triton", "compile" or "torch".
        device: "cuda", or "cpu" where the kernels are interpreted.
    """

    def __init__(self, implementation: str, device: str) -> None:
        self._device = device
        self._implementation = implementation
        self._call: Call

    def prepare(self, problem: Problem, operation: str) -> Closeness:
        """Run an operation once: how close its results are to the truth, by the worst of them."""
        case = _case(problem, self._device)
        self._call = call_of(self._implementation, problem, operation, *case.tensors)
        compared = zip(self._call(), case.torchs(operation), *case.truth(operation), strict=True)
        reached = [closeness(*tensors) for tensors in compared]
        return next((c for c in reached if not c.close), max(reached, key=lambda c: c.error - c.allowed))

    def seconds(self) -> float:
        """The median time of a call of what was prepared last."""
        if self._device == "cpu":
            return _median_on_cpu(self._call)
        from triton.testing import do_bench

        median = do_bench(self._call, warmup=MILLISECONDS // 2, rep=MILLISECONDS, return_mode="median")
        return float(median) / 1e3


class _Case:
    """A problem's tensors on a device, and what each operation should make of them, computed once."""

    def __init__(self, problem: Problem, device: str) -> None:
        self.tensors = problem.tensors(device)
        self.torchs = functools.cache(lambda operation: _aten(problem, operation, *self.tensors)())
        self._problem = problem
        self.truth = functools.cache(self._truth)

    def _truth(self, operation: str) -> tuple[Results, Results]:
        """In float64, of the tensors and of their absolute values, with cuDNN's usual algorithm: some take long."""
        exact = [t.double() for t in self.tensors]
        of = functools.partial(_aten, self._problem, operation)
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
            return of(*exact)(), of(*(t.abs() for t in exact))()


def call_of(implementation: str, problem: Problem, operation: str, x: Tensor, weight: Tensor, dy: Tensor) -> Call:
    """Return an implementation's call of an operation on tensors that a problem gave; see Contender."""
    bind = {"triton": _ours, "compile": _compiled, "torch": _aten}[implementation]
    return bind(problem, operation, x, weight, dy)


@functools.lru_cache(maxsize=1)
def _case(problem: Problem, device: str) -> _Case:
    return _Case(problem, device)


def _ours(problem: Problem, operation: str, x: Tensor, weight: Tensor, dy: Tensor) -> Call:
    """The kernels by their launchers; the step as a user has it, by the public function and autograd."""
    if operation != "step":
        return lambda: (problem.run(operation, x, weight, dy),)
    window = problem.window

    def layer(x: Tensor, weight: Tensor) -> Tensor:
        with use_backend("triton"):
            if window.axes == 0:
                return functional.linear(x, weight)
            convolution = getattr(functional, f"conv{window.axes}d")
            return convolution(x, weight, None, window.stride, _padding(problem), window.dilation, window.groups)

    return _step(layer, x, weight, dy)


def _aten(problem: Problem, operation: str, x: Tensor, weight: Tensor, dy: Tensor) -> Call:
    function = _aten_function(problem, operation)
    return _step(function, x, weight, dy) if operation == "step" else lambda: (function(x, weight, dy),)


def _compiled(problem: Problem, operation: str, x: Tensor, weight: Tensor, dy: Tensor) -> Call:
    torch.compiler.reset()  # at the limit of recompilations it would run eagerly
    function = torch.compile(_aten_function(problem, operation), fullgraph=True, dynamic=False)
    return _step(function, x, weight, dy) if operation == "step" else lambda: (function(x, weight, dy),)


def _aten_function(problem: Problem, operation: str) -> Callable[..., Tensor]:
    """y, dx or dw of (x, weight, dy) by PyTorch's own operations; for the step y, of (x, weight)."""
    window = problem.window
    if window.axes == 0:
        if operation == "input_gradient":
            return lambda x, weight, dy: dy @ weight
        if operation == "weight_gradient":
            return lambda x, weight, dy: dy.t() @ x
        return lambda x, weight, dy=None: F.linear(x, weight)
    transposed, no_padding = False, [0] * window.axes
    rest = (window.stride, _padding(problem), window.dilation, transposed, no_padding, window.groups)
    if operation in ("forward", "step"):
        return lambda x, weight, dy=None: torch.convolution(x, weight, None, *rest)
    wanted = 0 if operation == "input_gradient" else 1
    mask = [wanted == 0, wanted == 1, False]
    backward = torch.ops.aten.convolution_backward
    return lambda x, weight, dy: backward(dy, x, weight, None, *rest, mask)[wanted]


def _step(layer: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, dy: Tensor) -> Call:
    """A layer forward and, by autograd, backward: y, dx, dw."""
    x, weight = (t.detach().requires_grad_() for t in (x, weight))

    def call() -> Results:
        y = layer(x, weight)
        return y.detach(), *torch.autograd.grad(y, (x, weight), dy)

    return call


def _padding(problem: Problem) -> tuple[int, ...]:
    assert problem.window.symmetric, f"{problem}: torch takes no padding that differs between sides"
    return tuple(before for before, _ in problem.window.padding)


def _median_on_cpu(call: Call) -> float:
    times: list[float] = []
    while sum(times) * 1e3 < MILLISECONDS:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


@contextmanager
def fair_conditions(device: str) -> Iterator[None]:
    """cuDNN at its best, float32 as IEEE has it; on the CPU one thread, unless the environment says more."""
    if device == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        from threadpoolctl import threadpool_limits

        torch.set_num_threads(1)  # threads that contend for the cores halve the speed of NumPy's small products
        threadpool_limits(1)
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, benchmark_limit=0, allow_tf32=False):
        yield
