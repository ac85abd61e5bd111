"""A training step of ResNet-50, ours beside torch.nn's: first step, steady step, host time, CUDA graph, memory."""

from __future__ import annotations

import copy
import itertools
import sys
import time
from collections.abc import Callable

from experiments.gpu.step import (
    DEVICE,
    REHEARSAL,
    device_is_lost,
    earlier,
    go_on,
    interpret_in_rehearsal,
    reason,
    record,
)

if __name__ == "__main__":  # not where its kernels are compiled ahead
    interpret_in_rehearsal()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import kernels  # noqa: E402
from experiments.gpu.timing import capture, elapsed, synchronize  # noqa: E402
from lightning_modules.architectures import ResNet18, ResNet50  # noqa: E402
from lightning_modules.architectures.plain import plain  # noqa: E402
from lightning_modules.cuda_graph import copies, have_same_bits, restore  # noqa: E402

BATCHES = (2,) if REHEARSAL else (32, 128)
SIDE = 32 if REHEARSAL else 224
DTYPE = torch.float32 if REHEARSAL else torch.float16
STEPS = 1 if REHEARSAL else 10


def network() -> nn.Module:
    torch.manual_seed(0)
    return ResNet18(classes=10, width=0.125) if REHEARSAL else ResNet50()


def prepared(model: nn.Module, device: str) -> nn.Module:
    """Return a copy of a model as it is trained: channels-last, its parameters in DTYPE."""
    return copy.deepcopy(model).to(device, DTYPE).to(memory_format=torch.channels_last).train()


def step_of(model: nn.Module, batch: int, device: str) -> Callable[[], None]:
    """Return a training step: cross-entropy of random images, SGD. In float16 without scaling, as only time counts."""
    shape = (batch, 3, SIDE, SIDE)
    images = torch.randn(shape, device=device).to(DTYPE).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()

    return step


def measure(name: str, model: nn.Module, batch: int) -> dict[str, object]:
    """Return what a training step takes, in seconds and bytes."""
    model = prepared(model, DEVICE)
    step = step_of(model, batch, DEVICE)
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    synchronize()
    started = time.perf_counter()
    step()
    synchronize()
    found: dict[str, object] = {"first_seconds": time.perf_counter() - started}
    for _ in range(0 if REHEARSAL else 3):
        step()
    steady, host = [], []
    for _ in range(1 if REHEARSAL else 3):
        synchronize()
        started = time.perf_counter()
        step()
        host.append(time.perf_counter() - started)  # of one step: where 1,024 launches wait, the next waits for the GPU
        synchronize()
        started = time.perf_counter()
        for _ in range(STEPS):
            step()
        synchronize()
        steady.append((time.perf_counter() - started) / STEPS)
    found["seconds"], found["host_seconds"] = min(steady), min(host)
    found["images_per_second"] = batch / min(steady)
    if DEVICE == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
        found |= graphed(step, model)
    else:
        found["graph_same_bits"] = leaves_same_bits(step, step, model)
    return found


def graphed(step: Callable[[], None], model: nn.Module) -> dict[str, object]:
    """Return the time of a step as a CUDA graph and whether it does the same, or why there is none."""
    try:
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        graph = capture([step])
        same = leaves_same_bits(graph.replay, step, model)
        return {"graph_same_bits": same, "graph_seconds": min(elapsed(graph.replay) for _ in range(10))}
    except RuntimeError as error:
        return {"graph_fault": reason(error)}


def leaves_same_bits(replay: Callable[[], None], step: Callable[[], None], model: nn.Module) -> bool:
    """Return True if a replay and a step from the same state leave the same gradients, weights and buffers, bitwise."""
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    tensors = [*gradients, *model.parameters(), *model.buffers()]
    before = copies(tensors)
    replay()
    replayed = copies(tensors)
    restore(tensors, before)
    step()
    return all(map(have_same_bits, replayed, tensors))


def main(first: str = "0") -> int:
    """Measure from the combination of number `first` on."""
    done = {(each["implementation"], each["batch"]) for each in earlier("training") if not each["fault"]}
    torch.backends.cudnn.benchmark = True
    work = list(itertools.product(BATCHES, ("torch", "triton")))
    for number, (batch, name) in enumerate(work[int(first) :], int(first)):
        if (name, batch) in done:
            continue
        what = {"implementation": name, "batch": batch}
        try:
            model = plain(network()) if name == "torch" else network()
            with kernels.use_backend(name):
                record(**what, fault="", **measure(name, model, batch))
        except Exception as error:  # a compiler, a driver, or memory: the other measurement can go on
            record(**what, fault=reason(error))
        if device_is_lost():
            return go_on("training", number + 1)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
