"""Training by graphs is held bit for bit to training without. On a GPU the graphs are CUDA's, elsewhere a stand-in."""

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import TensorDataset
from torchvision.transforms.v2 import MixUp

from kernels import layers, use_backend
from lightning_modules.captured_step import CapturedLoss, CapturedUpdate, CaptureSteps
from lightning_modules.classifier import Classifier
from lightning_modules.cuda_graph import Graph, Results, difference, have_same_bits
from lightning_modules.data.loading import loader
from lightning_modules.dense_predictor import DensePredictor
from lightning_modules.finite import FiniteLoss
from lightning_modules.reconstruction import Reconstruction
from lightning_modules.reproducibility import ExactResume, LastCheckpoint, ShareWeights
from tests.conftest import NEEDS_GPU
from tests.lightning_modules.test_reproducibility import Copies, Plain, same

IMAGES, LABELS = torch.randn(22, 2, 6, 6), torch.randint(3, (22,))
MAPS = torch.randint(4, (22, 6, 6))


class Rerun(Graph):
    """Replays by running the function again. What it returns keeps its place, and is NaN until the first replay."""

    device_type = "cpu"

    def __init__(self, function: Callable[[], Results], before: Graph | None = None) -> None:
        self.function = function
        self.results = [each if each is None else each.detach() for each in function()]
        for each in self.results:
            if each is not None:
                each.data.fill_(torch.nan)

    def replay(self) -> None:
        for static, new in zip(self.results, self.function(), strict=True):
            if static is not None:
                static.copy_(new.detach())

    @staticmethod
    def warm_up(function: Callable[[], object]) -> None:
        function()


@pytest.fixture(
    params=[
        pytest.param(Rerun, id="stand-in"),
        pytest.param(Graph, id="CUDA", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason=NEEDS_GPU)),
    ]
)
def graph(request) -> type[Graph]:
    return request.param


class Outside(torch.autograd.Function):
    """Returns its input. Its backward pass must run outside of autocast, as it does without graphs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        assert not torch.is_autocast_enabled(dy.device.type)
        return dy


class Small(nn.Module):
    """What a training step changes or draws besides gradients: batch norm and dropout.

    One layer is used twice, one not at all, and two parameters have the same gradient.
    """

    input_shape = (2, 6, 6)
    classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = layers.Conv2d(2, 4, 3, padding=1), layers.BatchNorm2d(4)
        self.twice, self.drop = layers.Conv2d(4, 4, 3, padding=1), nn.Dropout(0.3)
        self.scores, self.unused = nn.Linear(4, 3), nn.Linear(2, 2)
        self.one, self.other = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.first(images)).relu()
        x = self.drop(self.twice(self.twice(x))).mean((2, 3)) + (self.one + self.other)
        return self.scores(Outside.apply(x))


class Maps(Small):
    """Scores of each pixel, in training with auxiliary ones."""

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        early = self.norm(self.first(images))
        scores = self.twice(early.relu())
        return (scores, early) if self.training else scores

    classes = 4


class Code(Small):
    """A reconstruction and a code."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        code = self.norm(self.first(images)).relu()
        return self.drop(self.twice(code))[:, :2], code


MODULES: dict[str, tuple[Callable[..., Any], Tensor]] = {
    "classifier": (lambda **options: Classifier(Small(), **options), LABELS),
    "mixing classifier": (lambda **options: Classifier(Small(), mix=MixUp(num_classes=3), **options), LABELS),
    "dense predictor": (lambda **options: DensePredictor(Maps(), ignore_index=3, **options), MAPS),
    "reconstruction": (lambda **options: Reconstruction(Code(), **options), LABELS),
}
MOMENTUM = partial(SGD, lr=0.05, momentum=0.9, weight_decay=0.01)


def fit(path: Path, module: pl.LightningModule, targets: Tensor, callbacks: Sequence[pl.Callback], **options):
    options = {"max_epochs": 2, "accelerator": "cpu", "ckpt_path": None, **options}
    resumed = options.pop("ckpt_path")
    trainer = pl.Trainer(
        devices=1, default_root_dir=path, logger=False, num_sanity_val_steps=0, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[FiniteLoss(), ShareWeights(), ExactResume(), *callbacks], **options,
    )  # fmt: skip
    data = TensorDataset(IMAGES, targets)
    trainer.fit(module, loader(data, 5, shuffle=True), loader(data, 22), ckpt_path=resumed, weights_only=True)
    return trainer


def run(path: Path, graph: type[Graph] | None, kind: str = "classifier", callbacks: Sequence[Any] = (), **options):
    """Train, and return the last checkpoint, what was logged, and the callback that captured."""
    configured = {"optimizer": MOMENTUM, **{key: options.pop(key) for key in list(options) if key in CONFIGURED}}
    make, targets = MODULES[kind]
    for seed in (torch.manual_seed, random.seed):
        seed(3)
    options["accelerator"] = "gpu" if options.pop("on_gpu", graph is Graph) else "cpu"
    capture = CaptureSteps(graph or Rerun)
    trainer = fit(path, make(**configured), targets, [LastCheckpoint(1), *[capture][: graph is not None], *callbacks],
                  **options)  # fmt: skip
    end = torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)
    return end, dict(trainer.callback_metrics), capture


CONFIGURED = ("optimizer", "lr_scheduler", "lr_scheduler_interval")
PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "processes")
BY_EPOCH = {"lr_scheduler": partial(ExponentialLR, gamma=0.5)}


@pytest.mark.parametrize(
    ("kind", "options", "batches", "updates"),
    [
        # Each epoch has 4 batches of 5 and one of 2. An update is replayed from the third with the same rate on.
        pytest.param("classifier", {}, 8, 8, id="classifier"),
        pytest.param("mixing classifier", {}, 8, 8, id="mixing"),
        pytest.param("dense predictor", {}, 8, 8, id="dense predictor"),
        pytest.param("reconstruction", {"gradient_clip_val": 0.1}, 8, 8, id="reconstruction, clipped"),
        pytest.param("classifier", {"accumulate_grad_batches": 2}, 8, 4, id="accumulation"),
        pytest.param("classifier", {"accumulate_grad_batches": 3, "max_epochs": 3}, 12, 4, id="an odd batch is added"),
        pytest.param("classifier", {"precision": "bf16-mixed"}, 8, 8, id="bf16-mixed"),
        pytest.param("classifier", {"precision": "64-true"}, 8, 8, id="float64"),
        pytest.param("classifier", {"val_check_interval": 2, "gradient_clip_val": 0.1}, 8, 8, id="validation, clipped"),
        pytest.param("classifier", BY_EPOCH, 8, 6, id="a schedule by epochs"),
        pytest.param("classifier", {**BY_EPOCH, "lr_scheduler_interval": "step"}, 8, 0, id="a schedule by steps"),
        pytest.param("classifier", {"optimizer": AdamW}, 8, 0, id="AdamW"),
        pytest.param("classifier", {"limit_train_batches": 1, "max_epochs": 4}, 4, 2, id="one batch an epoch"),
    ],
)
def test_all_is_as_without_graphs(tmp_path, graph, kind, options, batches, updates):
    end, logged, _ = run(tmp_path, None, kind, **options, on_gpu=graph is Graph)
    again, same_logged, capture = run(tmp_path, graph, kind, **options)
    for part in PARTS:
        assert same(again[part], end[part]), part
    assert same_logged == logged and "train/loss" in logged
    assert capture.replays == f"{batches} batches and {updates} updates replayed"


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, BY_EPOCH], ids=["", "accumulation", "rates"])
def test_a_resumed_run_captures_again(tmp_path, graph, options):
    """From each checkpoint, also before the odd batch: the first batch is then smaller than those after it."""
    copies = Copies(tmp_path)
    end, logged, _ = run(tmp_path, None, callbacks=[copies], **options, on_gpu=graph is Graph)
    paths = list({path.read_bytes(): path for path in copies.kept}.values())
    assert len(paths) > 3
    for path in paths:
        again, same_logged, capture = run(tmp_path / "again", graph, ckpt_path=path, **options)
        for part in PARTS:
            assert same(again[part], end[part]), part
        assert same_logged == logged
        if "accumulate_grad_batches" not in options:
            done = torch.load(path, weights_only=True)["global_step"]
            assert capture.loss.replays == 8 - (done - done // 5) + (done % 5 == 4)


def test_weights_that_move_are_captured_again(tmp_path, graph):
    class Move(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
            if trainer.global_step == 3:
                pl_module.network.scores.weight.data = pl_module.network.scores.weight.data.clone()
            if trainer.global_step == 5:
                pl_module.network.norm.eval()
                pl_module.network.first.requires_grad_(False)

    end, *_ = run(tmp_path, None, callbacks=[Move()], on_gpu=graph is Graph)
    again, _, capture = run(tmp_path, graph, callbacks=[Move()])
    assert same(again["state_dict"], end["state_dict"]) and capture.loss.replays == 8


def test_outputs_stay_and_casts_do_not():
    """Autocast keeps the weights that it has cast; those of a graph are of no use to what runs uncaptured."""
    module = MODULES["classifier"][0](optimizer=MOMENTUM)
    module.network.drop.p = 0.0
    captured, weight = CapturedLoss(module, Rerun), module.network.scores.weight.data
    steps = [(IMAGES[each : each + 5], LABELS[each : each + 5], torch.randn(3, 4)) for each in (0, 5, 10, 15)]
    expected, found = [], []
    for images, labels, weights in steps:
        weight.copy_(weights)
        with torch.autocast("cpu", torch.bfloat16):
            expected.append(module.compute(images, labels))
    with torch.autocast("cpu", torch.bfloat16):
        for compute, (images, labels, weights) in zip((*[captured] * 3, module.compute), steps, strict=True):
            weight.copy_(weights)
            found.append(compute(images, labels))
    for one, other in zip(found, expected, strict=True):
        assert all(map(have_same_bits, one, other))


def test_nothing_is_left_in_module_and_optimizer(tmp_path):
    module = MODULES["classifier"][0](optimizer=MOMENTUM)
    trainer = fit(tmp_path, module, LABELS, [CaptureSteps(Rerun)], max_epochs=1)
    assert "compute" not in vars(module) and not isinstance(trainer.optimizers[0].step, CapturedUpdate)


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

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(images) * (self.calls if self.way == "counts" else random.random())


@pytest.mark.parametrize(
    ("way", "says"),
    [
        ("draws on the CPU", "needs a network that draws its random numbers on the GPU, not on the CPU"),
        ("counts", "which is not deterministic: use --trainer.deterministic true"),
    ],
)
def test_networks_that_no_graph_holds_are_refused_before_the_first_step(tmp_path, graph, way, says):
    module = Classifier(Odd(way), MOMENTUM)
    before = [each.clone() for each in module.state_dict().values()]
    with pytest.raises(ValueError, match=f"^--cuda_graph true .*{says}"):
        fit(tmp_path, module, LABELS, [CaptureSteps(graph)], accelerator="gpu" if graph is Graph else "cpu")
    after = [each.cpu() for each in module.state_dict().values()]
    assert all(map(torch.equal, before, after)) and "compute" not in vars(module)


def test_what_waits_for_the_gpu_is_refused_in_one_line(tmp_path, graph):
    class Waits(Rerun):
        """Fails as CUDA does: with an error at the end of the capture, too."""

        def __init__(self, *_: Any) -> None:
            try:
                raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nMore\nlines")
            finally:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture\nMore")

    class Branches(Small):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * (1 if images.sum() > 0 else 2)

    with pytest.raises(ValueError, match="^--cuda_graph true needs a training step that never waits for") as error:
        fit(tmp_path, Classifier(Branches(), MOMENTUM), LABELS, [CaptureSteps(Waits if graph is Rerun else graph)],
            accelerator="gpu" if graph is Graph else "cpu")  # fmt: skip
    assert "\n" not in str(error.value)
    if graph is Rerun:
        assert str(error.value).endswith("GPU: CUDA error: operation not permitted when stream is capturing")


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


def test_updates_that_a_graph_can_hold():
    parameters = [nn.Parameter(torch.ones(1))]
    assert CapturedUpdate.can_capture(SGD(parameters)) and not CapturedUpdate.can_capture(AdamW(parameters))
    assert CapturedUpdate.can_capture(AdamW(parameters, capturable=True))
    hooked = SGD(parameters)
    hooked.register_step_post_hook(lambda *_: None)
    assert not CapturedUpdate.can_capture(hooked)


def test_bits():
    zero, nan = torch.zeros(2), torch.tensor([torch.nan, 1.0])
    assert have_same_bits(nan, nan.clone()) and have_same_bits(None, None) and have_same_bits(torch.empty(0), zero[:0])
    assert have_same_bits(torch.tensor(2), torch.tensor(2)) and have_same_bits(zero == 0, zero == 0)
    for other in (-zero, zero.double(), zero[:1], zero.view(2, 1), None):
        assert not have_same_bits(zero, other)
    assert difference({"a": zero, "b": nan, "c": zero}, {"a": zero, "b": zero, "c": nan}) == "b"


@pytest.mark.skipif(not torch.cuda.is_available(), reason=NEEDS_GPU)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("optimizer", [MOMENTUM, partial(AdamW, capturable=True)], ids=["SGD", "AdamW"])
def test_kernels_train_by_graphs_as_without(tmp_path, precision, optimizer):
    options = {"precision": precision, "optimizer": optimizer, "on_gpu": True}
    with use_backend("triton"):
        end, logged, _ = run(tmp_path, None, **options)
        again, same_logged, capture = run(tmp_path, Graph, **options)
    assert same(again["state_dict"], end["state_dict"]) and same_logged == logged
    scaled = precision == "16-mixed"
    assert capture.replays == f"8 batches and {0 if scaled else 8} updates replayed"
