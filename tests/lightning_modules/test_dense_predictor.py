from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, TensorDataset

from lightning_modules.architectures import RecurrentLabelling, SpatialTransducer
from lightning_modules.dense_predictor import DensePredictor


class Fixed(nn.Module):
    """Scores of three classes, the same for all images; those of an earlier step in training, too."""

    input_shape = (1, 2, 2)
    classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Parameter(
            4 * nn.functional.one_hot(torch.tensor([[0, 1], [1, 1]]), 3).permute(2, 0, 1).float()
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        scores = self.scores.expand(len(images), 3, 2, 2)
        return (scores, 0.5 * scores) if self.training else scores


LABELS = torch.tensor([[[0, 1], [1, 0]], [[0, 0], [0, 0]], [[0, 1], [1, 1]]])


@pytest.fixture
def loader() -> DataLoader:
    return DataLoader(TensorDataset(torch.zeros(3, 1, 2, 2), LABELS), batch_size=2)


def test_metrics_are_those_of_the_whole_split(trainer, loader):
    module = DensePredictor(Fixed(), partial(SGD, lr=0.1))
    (metrics,) = trainer.test(module, loader, verbose=False)
    scores = Fixed().scores.expand(3, 3, 2, 2)
    predicted = scores.argmax(1)
    ious = [
        ((predicted == c) & (LABELS == c)).sum() / ((predicted == c) | (LABELS == c)).sum() for c in (0, 1)
    ]  # nobody has seen class 2
    assert metrics == pytest.approx(
        {
            "test/loss": nn.functional.cross_entropy(scores, LABELS).item(),
            "test/accuracy": 8 / 12,
            "test/mean_iou": sum(ious).item() / 2,
        }
    )


def test_ignored_pixels_count_nowhere(trainer):
    labels = torch.where(LABELS == Fixed().scores.argmax(0), LABELS, 255)  # what is predicted wrongly is ignored
    loader = DataLoader(TensorDataset(torch.zeros(3, 1, 2, 2), labels), batch_size=3)
    (metrics,) = trainer.test(DensePredictor(Fixed(), SGD, ignore_index=255), loader, verbose=False)
    loss = -nn.functional.log_softmax(torch.tensor([4.0, 0.0, 0.0]), 0)[0].item()
    assert metrics == pytest.approx({"test/loss": loss, "test/accuracy": 1, "test/mean_iou": 1}, rel=1e-5)


def test_auxiliary_outputs_weigh_in_training_only():
    module, batch = DensePredictor(Fixed(), SGD, auxiliary_weight=0.3), (torch.zeros(3, 1, 2, 2), LABELS)
    module.log = module.log_dict = lambda *_, **__: None
    scores = Fixed().scores.expand(3, 3, 2, 2)
    main, early = (nn.functional.cross_entropy(s, LABELS) for s in (scores, 0.5 * scores))
    torch.testing.assert_close(module.training_step(batch, 0), main + 0.3 * early)
    torch.testing.assert_close(module.eval().training_step(batch, 0), main)


def test_training_on_schedule_is_saved_as_plain_values(trainer, loader, tmp_path):
    module = DensePredictor(Fixed(), partial(SGD, lr=0.1), partial(ExponentialLR, gamma=0.5))
    trainer.fit(module, loader, loader)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**2)
    names = {f"{split}/{name}" for split in ("train", "val") for name in ("loss", "accuracy", "mean_iou")}
    assert names <= set(trainer.callback_metrics)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    assert list(torch.load(tmp_path / "it.ckpt", weights_only=True)["state_dict"]) == ["network.scores"]
    again = DensePredictor.load_from_checkpoint(tmp_path / "it.ckpt", network=Fixed(), optimizer=SGD, weights_only=True)
    assert torch.equal(again.network.scores, module.network.scores)


def test_predictions(trainer, loader):
    first, second = trainer.predict(DensePredictor(Fixed(), SGD), loader)
    assert torch.equal(torch.cat([first.label, second.label]), LABELS)
    assert torch.equal(first.prediction, torch.tensor([[0, 1], [1, 1]]).expand(2, 2, 2))
    assert first.probability.shape == (2, 2, 2)


@pytest.mark.parametrize(
    ("label", "ignored", "message"),
    [
        (3, None, r"labels must be 0 to 2, for a network with 3 scores, got 3"),
        (-1, 255, r"labels must be 0 to 2, or 255 to be ignored, for a network with 3 scores, got -1"),
    ],
)
def test_a_label_outside_the_classes(trainer, label, ignored, message):
    labels = LABELS.clone()
    labels[2, 1, 0] = label
    loader = DataLoader(TensorDataset(torch.zeros(3, 1, 2, 2), labels), batch_size=3)
    with pytest.raises(ValueError, match=message):
        trainer.test(DensePredictor(Fixed(), SGD, ignore_index=ignored), loader, verbose=False)


def test_labels_of_images_are_not_labels_of_pixels(trainer):
    loader = DataLoader(TensorDataset(torch.zeros(3, 1, 2, 2), torch.zeros(3).long()), batch_size=3)
    with pytest.raises(ValueError, match=r"labels must be \[3, 2, 2\], one a pixel, got \[3\]"):
        trainer.test(DensePredictor(Fixed(), SGD), loader, verbose=False)


def test_data_with_more_classes(trainer, loader):
    class Data(pl.LightningDataModule):
        classes = 11

        def test_dataloader(self) -> DataLoader:
            return loader

    with pytest.raises(ValueError, match=r"the data have 11 classes, but the network only 3 scores"):
        trainer.test(DensePredictor(Fixed(), SGD), datamodule=Data(), verbose=False)


@pytest.mark.parametrize(
    "network",
    [
        SpatialTransducer((1, 8, 8), (8, 8), classes=3),
        RecurrentLabelling((1, 8, 8), (8, 8), steps=2, classes=3),
    ],
    ids=["spatial-transducer", "recurrent-labelling"],
)
def test_learns_which_pixels_lie_in_what(network, tmp_path):
    """Fields of 4x4 pixels, each dark, grey or bright, under noise."""
    labels = torch.randint(3, (96, 2, 2)).repeat_interleave(4, 1).repeat_interleave(4, 2)
    images = labels[:, None] - 1 + 0.3 * torch.randn(96, 1, 8, 8)
    loader = DataLoader(TensorDataset(images, labels), batch_size=16)
    trainer = pl.Trainer(
        max_epochs=10, accelerator="cpu", default_root_dir=tmp_path, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(DensePredictor(network, partial(AdamW, lr=0.02)), loader, loader)
    assert trainer.callback_metrics["val/mean_iou"] > 0.9
