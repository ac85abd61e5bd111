from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, TensorDataset

from lightning_modules.classifier import Classifier


class Constant(nn.Module):
    """Scores that do not depend on the images: class 1 of three always wins."""

    input_shape = (1, 2, 2)
    classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.tensor([0.0, 1.0, 0.5]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.scores.expand(len(images), 3)


LABELS = torch.tensor([1, 1, 2, 0])


@pytest.fixture
def loader() -> DataLoader:
    return DataLoader(TensorDataset(torch.zeros(4, 1, 2, 2), LABELS), batch_size=3)


@pytest.fixture
def trainer(tmp_path) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(max_epochs=2, accelerator="cpu", default_root_dir=tmp_path, **quiet)


def test_metrics_are_those_of_the_whole_split(trainer, loader):
    module = Classifier(Constant(), partial(SGD, lr=0.1))
    (metrics,) = trainer.test(module, loader, verbose=False)
    loss = nn.functional.cross_entropy(module(torch.zeros(4, 1, 2, 2)), LABELS).item()
    assert metrics == pytest.approx({"test/loss": loss, "test/accuracy": 0.5})


def test_training_learns_on_schedule_and_is_saved_as_plain_values(trainer, loader, tmp_path):
    module = Classifier(Constant(), partial(SGD, lr=0.1), partial(ExponentialLR, gamma=0.5))
    trainer.fit(module, loader, loader)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**2)
    assert {f"{split}/{name}" for split in ("train", "val") for name in ("loss", "accuracy")} <= set(
        trainer.callback_metrics
    )

    trainer.save_checkpoint(tmp_path / "it.ckpt")
    state = torch.load(tmp_path / "it.ckpt", weights_only=True)["state_dict"]
    assert list(state) == ["network.scores"]
    assert not torch.equal(state["network.scores"], Constant().scores)
    again = Classifier.load_from_checkpoint(
        tmp_path / "it.ckpt", network=Constant(), optimizer=partial(SGD, lr=0.1), weights_only=True
    )
    assert torch.equal(again.network.scores, module.network.scores)


def test_predictions(trainer, loader):
    batches = trainer.predict(Classifier(Constant(), partial(SGD, lr=0.1)), loader)
    assert torch.equal(torch.cat([batch.label for batch in batches]), LABELS)
    assert all((batch.prediction == 1).all() for batch in batches)
    torch.testing.assert_close(batches[0].probability, Constant().scores.softmax(0)[1].expand(3).detach())


def test_example_is_one_input():
    assert Classifier(Constant(), SGD).example_input_array.shape == (1, 1, 2, 2)
