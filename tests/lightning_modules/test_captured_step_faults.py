"""Training that graphs cannot do, or do not replay as captured, stops before the first wrong step."""

import random
import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.optim import SGD

from lightning_modules.captured_step import CaptureSteps
from lightning_modules.classifier import Classifier
from lightning_modules.cuda_graph import Graph
from tests.conftest import NEEDS_GPU
from tests.lightning_modules.captured import LABELS, MODULES, MOMENTUM, Rerun, Small, fit, run
from tests.lightning_modules.test_reproducibility import Plain

WAITS = "--cuda_graph true needs a training step that never waits for the GPU"


class Wrong(Rerun):
    """A stand-in whose replay `number` of the graph `which` (forward, backward, update) goes wrong."""

    which, number, made = 0, 1, 0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.position, self.count = type(self).made, 0
        type(self).made += 1

    def replay(self) -> None:
        self.count += 1
        if (self.position, self.count) != (self.which, self.number):
            super().replay()
        else:
            self.fail()

    def fail(self) -> None:
        raise NotImplementedError


class Stale(Wrong):
    """Leaves the results of the replay before, and does no update."""

    def fail(self) -> None:
        if self.results:
            self.function()


class OneBit(Wrong):
    """Changes the last bit of a result."""

    def fail(self) -> None:
        Rerun.replay(self)
        last = [each for each in self.results if each is not None][-1]
        last.view(torch.int32).flatten()[-1] ^= 1


@pytest.mark.parametrize(
    ("kind", "which", "number", "says"),
    [  # The second replay is the one that trains; the third is compared again, with another batch.
        pytest.param(Stale, 0, 1, "output 0 differs", id="no forward pass"),
        pytest.param(Stale, 0, 3, "output 0 differs", id="the inputs stay those of the capture"),
        pytest.param(Stale, 1, 1, "the gradient of network.one differs", id="no backward pass"),
        pytest.param(Stale, 1, 3, "the gradient of network.one differs", id="gradients of another batch"),
        pytest.param(OneBit, 1, 3, "the gradient of network.scores.bias differs", id="one bit"),
        pytest.param(Stale, 2, 1, "weights differ between a replayed update and an update", id="no update"),
    ],
)
def test_a_wrong_replay_is_noticed(tmp_path, kind, which, number, says):
    kind = type(kind.__name__, (kind,), {"which": which, "number": number})
    with pytest.raises(ValueError, match=f"^--cuda_graph true is wrong for .*{says}"):
        run(tmp_path, kind)


@pytest.mark.parametrize("what", ["running statistics", "draws"])
def test_a_replay_that_leaves_another_state_is_noticed(tmp_path, what):
    class Another(Rerun):
        def replay(self) -> None:
            super().replay()
            if what == "draws":
                torch.rand(1)
            else:
                module.network.norm.running_mean.data.add_(1)

    module = MODULES["classifier"][0](optimizer=MOMENTUM)
    name = {"draws": "the random numbers of torch", "running statistics": "network.norm.running_mean"}[what]
    with pytest.raises(ValueError, match=f"{name} differs between replay and step$"):
        fit(tmp_path, module, LABELS, [CaptureSteps(Another)])


class Odd(Small):
    """A network that computes something else each time, in a way that a replay would not repeat."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.calls = way, 0
        self.factors = iter(range(1, 100))

    def forward(self, images: Tensor) -> Tensor:
        if self.way == "counts":
            self.calls += 1
            return super().forward(images) * self.calls
        return super().forward(images) * (next(self.factors) if "not" in self.way else random.random())


@pytest.mark.parametrize(
    ("way", "says"),
    [
        ("draws on the CPU", "needs a network that draws its random numbers on the GPU, not on the CPU"),
        ("counts", "counts in Python: output 0 differs between replay and step, which changes network.calls; a graph"),
        ("is not deterministic", "which is not deterministic: use --trainer.deterministic true"),
    ],
)
def test_networks_that_no_graph_holds_are_refused_before_the_first_step(tmp_path, graph, way, says):
    module = Classifier(Odd(way), MOMENTUM)
    before = [each.clone() for each in module.state_dict().values()]
    with pytest.raises(ValueError, match=f"^--cuda_graph true .*{says}"):
        fit(tmp_path, module, LABELS, [CaptureSteps(graph)], accelerator="gpu" if graph is Graph else "cpu")
    after = [each.cpu() for each in module.state_dict().values()]
    assert all(map(torch.equal, before, after)) and "compute" not in vars(module)


def test_what_waits_for_the_gpu_is_refused_in_one_line(tmp_path):
    class Waits(Rerun):
        """Fails as CUDA does: with an error at the end of the capture, too."""

        def __init__(self, *_: Any) -> None:
            try:
                raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nMore\nlines")
            finally:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture\nMore")

    with pytest.raises(ValueError, match=f"{WAITS}: CUDA error: operation not permitted when stream is capturing$"):
        run(tmp_path, Waits)


class Branches(Small):
    """A network that looks at its images on the CPU."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * (1 if images.sum() > 0 else 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason=NEEDS_GPU)
def test_a_network_that_waits_for_the_gpu_is_refused(tmp_path):
    """In a process of its own, which a failed capture may leave unable to do another."""
    with ProcessPoolExecutor(1, get_context("spawn")) as executor:
        module = Classifier(Branches(), MOMENTUM)
        failed = executor.submit(fit, tmp_path, module, LABELS, [CaptureSteps()], accelerator="gpu").exception()
    assert isinstance(failed, ValueError) and re.fullmatch(WAITS + ": .*", str(failed))


def test_want_of_memory_stays_what_it_is(tmp_path):
    class Full(Rerun):
        def __init__(self, *_: Any) -> None:
            raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")

    with pytest.raises(torch.OutOfMemoryError):
        run(tmp_path, Full)


def test_what_cannot_be_captured_is_refused(tmp_path):
    with pytest.raises(ValueError, match="^--cuda_graph true needs a GPU, got --trainer.accelerator cpu$"):
        fit(tmp_path, Classifier(Small(), SGD), LABELS, [CaptureSteps()])
    with pytest.raises(ValueError, match="^--cuda_graph true needs a NetworkModule, got Plain$"):
        fit(tmp_path, Plain(), LABELS, [CaptureSteps(Rerun)])
    module = Classifier(Small(), SGD)
    module.network.norm.weight.register_hook(lambda gradient: 2 * gradient)
    with pytest.raises(ValueError, match="needs parameters without hooks, got one on network.norm.weight$"):
        fit(tmp_path, module, LABELS, [CaptureSteps(Rerun)])
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy=DDPStrategy(), logger=False)
    with pytest.raises(ValueError, match="needs --trainer.devices 1 and no strategy, got DDPStrategy$"):
        CaptureSteps(Rerun).setup(trainer, module, "fit")


class Hooks(pl.Callback):
    """Halves a gradient from an epoch on."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            pl_module.network.norm.weight.register_hook(lambda gradient: gradient / 2)


@pytest.mark.parametrize("epoch", [0, 1])
def test_hooks_that_come_later_are_refused(tmp_path, graph, epoch):
    with pytest.raises(ValueError, match="needs parameters without hooks, got one on network.norm.weight$"):
        run(tmp_path, graph, callbacks=[Hooks(epoch)])


class Replaces(pl.Callback):
    """Puts in another parameter in the second epoch."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            pl_module.network.scores.weight = torch.nn.Parameter(pl_module.network.scores.weight.detach().clone())


def test_a_parameter_that_is_replaced_is_refused(tmp_path, graph):
    says = "^--cuda_graph true needs the parameters that training started with: network.scores.weight is new$"
    with pytest.raises(ValueError, match=says):
        run(tmp_path, graph, callbacks=[Replaces()])
