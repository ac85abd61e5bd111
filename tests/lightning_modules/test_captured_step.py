"""Training by graphs is held bit for bit to training without. On a GPU the graphs are CUDA's, elsewhere a stand-in."""

from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import ExponentialLR

from kernels import use_backend
from lightning_modules.captured_step import CapturedLoss, CapturedUpdate, CaptureSteps
from lightning_modules.cuda_graph import Graph, difference, have_same_bits
from tests.conftest import NEEDS_GPU
from tests.lightning_modules.captured import IMAGES, LABELS, MODULES, MOMENTUM, Rerun, fit, run
from tests.lightning_modules.test_reproducibility import Copies, same

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
    capture = CaptureSteps(Rerun)
    trainer = fit(tmp_path, module, LABELS, [capture], max_epochs=1)
    assert "compute" not in vars(module) and trainer.optimizers[0].step == capture.update.uncaptured


def test_a_schedule_may_come_during_training(tmp_path, graph):
    """As weight averaging has one, which wraps the optimizer's step."""
    averaging = partial(StochasticWeightAveraging, 0.01, swa_epoch_start=1, annealing_epochs=1)
    options = {"max_epochs": 3}
    end, logged, _ = run(tmp_path, None, callbacks=[averaging()], **options, on_gpu=graph is Graph)
    again, same_logged, capture = run(tmp_path, graph, callbacks=[averaging()], **options)
    assert same(again["state_dict"], end["state_dict"]) and same_logged == logged
    assert capture.update.replays > 3


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
