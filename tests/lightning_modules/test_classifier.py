from functools import partial

import pytest
import torch
from lightning.pytorch.cli import ReduceLROnPlateau as PlateauOf
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau
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


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_images_to_evaluate_must_be_finite(trainer, stage):
    images = torch.zeros(4, 1, 2, 2)
    images[3, 0, 1, 1] = torch.inf
    loader = DataLoader(TensorDataset(images, LABELS), batch_size=3)
    with pytest.raises(ValueError, match="the images of batch 1 to evaluate hold NaN or infinity"):
        getattr(trainer, stage)(Classifier(Constant(), partial(SGD, lr=0.1)), loader)


class Scores(nn.Module):
    """Scores of seven classes that are the images; while training, twice these and thrice as from auxiliary ones."""

    input_shape = (7, 1, 1)
    classes = 7

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        scores = self.weight * images.flatten(1)
        return (scores, 2 * scores, 3 * scores) if self.training else scores


SEVEN = torch.arange(7.0).expand(4, 7)[..., None, None]  # class 6 is the first, and 2 the fifth


def seven(labels: list[int]) -> DataLoader:
    return DataLoader(TensorDataset(SEVEN, torch.tensor(labels)), batch_size=4)


def test_top_five_where_there_are_more_classes(trainer):
    (metrics,) = trainer.test(Classifier(Scores(), SGD), seven([6, 2, 1, 5]), verbose=False)
    assert metrics["test/accuracy"] == 0.25 and metrics["test/top5_accuracy"] == 0.75


def test_auxiliary_scores_smoothing_and_mixing_while_training(trainer):
    def swapped(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images.flip(1), nn.functional.one_hot(labels, 7) * 0.75 + nn.functional.one_hot(labels - 1, 7) * 0.25

    labels = [1, 2, 3, 6]
    module = Classifier(Scores(), partial(SGD, lr=0.0), label_smoothing=0.2, mix=swapped, auxiliary_weight=0.5)
    trainer.fit(module, seven(labels), seven(labels))
    images, mixed = swapped(SEVEN, torch.tensor(labels))
    scores = images.flatten(1)
    main, *auxiliary = (nn.functional.cross_entropy(k * scores, mixed, label_smoothing=0.2) for k in (1, 2, 3))
    torch.testing.assert_close(trainer.callback_metrics["train/loss"], main + 0.5 * sum(auxiliary))
    assert trainer.callback_metrics["train/accuracy"] == 0, "class 0 has the largest score of the swapped"
    plain = nn.functional.cross_entropy(SEVEN.flatten(1), torch.tensor(labels))
    torch.testing.assert_close(trainer.callback_metrics["val/loss"], plain)


@pytest.mark.parametrize(("interval", "steps"), [("epoch", 2), ("step", 4)])
def test_interval_of_the_schedule(trainer, loader, interval, steps):
    module = Classifier(
        Constant(), partial(SGD, lr=0.1), partial(ExponentialLR, gamma=0.5), lr_scheduler_interval=interval
    )
    trainer.fit(module, loader)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**steps)


@pytest.mark.parametrize("label", [-1, 7])
def test_labels_are_checked(trainer, label):
    with pytest.raises(ValueError, match=f"labels must be 0 to 6, for a network with 7 scores, got {label}"):
        trainer.validate(Classifier(Scores(), SGD), seven([0, 6, label, 1]))


def test_example_is_one_input():
    assert Classifier(Constant(), SGD).example_input_array.shape == (1, 1, 2, 2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"label_smoothing": 2.0}, "label_smoothing must be from 0 to 1, got 2.0"),
        ({"label_smoothing": -1.0}, "label_smoothing must be from 0 to 1, got -1.0"),
        ({"auxiliary_weight": -0.1}, "auxiliary_weight must be at least 0, got -0.1"),
    ],
)
def test_weights_of_the_loss_are_checked(options, says):
    with pytest.raises(ValueError, match=says):
        Classifier(Constant(), partial(SGD, lr=0.1), **options)


@pytest.mark.parametrize("name", ["input_shape", "classes"])
def test_a_network_must_say_what_it_takes_and_gives(name):
    network = nn.Linear(3, 3)
    network.input_shape = (3,)
    network.classes = 3
    delattr(network, name)
    with pytest.raises(ValueError, match=f"--model.network must have the attribute {name}, .*: Linear has none"):
        Classifier(network, partial(SGD, lr=0.1))


def test_a_schedule_that_follows_a_metric(trainer, loader):
    """Lightning's own says which one; of torch's it is not known."""
    module = Classifier(Constant(), partial(SGD, lr=0.1), partial(PlateauOf, monitor="train/loss", threshold=100.0))
    trainer.fit_loop.max_epochs = 12
    trainer.fit(module, loader)
    assert module.optimizers().param_groups[0]["lr"] == pytest.approx(0.01), "after ten epochs without much less"
    torchs = Classifier(Constant(), partial(SGD, lr=0.1), ReduceLROnPlateau)
    with pytest.raises(ValueError, match="--model.lr_scheduler must be lightning.pytorch.cli.ReduceLROnPlateau with"):
        torchs.configure_optimizers()


class Changed(Constant):
    """A network whose scores a function makes of the right ones."""

    def __init__(self, change) -> None:
        super().__init__()
        self.change = change

    def forward(self, images):
        return self.change(super().forward(images))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda scores: scores[:, :2], r"must give scores \[3, 3, ...\], .*: Changed gives \[3, 2\] of torch.float32"),
        (lambda scores: scores[None], r"gives \[1, 3, 3\]"),
        (lambda scores: scores.long(), r"gives \[3, 3\] of torch.int64"),
        (lambda scores: (scores, None), "gives NoneType"),
        (lambda scores: None, "gives NoneType"),
        (
            torch.Tensor.detach,
            "--model.network has nothing to train: the loss depends on no trainable weight of Changed",
        ),
    ],
)
def test_a_network_must_give_scores_that_can_be_trained(trainer, loader, change, says):
    with pytest.raises(ValueError, match=says):
        trainer.fit(Classifier(Changed(change), partial(SGD, lr=0.1)), loader)


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        (
            (torch.zeros(4, 1, 2, 2), LABELS.float()),
            r"labels must be \[4\] whole numbers, .* got \[4\] of torch.float32",
        ),
        ((torch.zeros(4, 1, 2, 2), LABELS[:, None]), r"got \[4, 1\] of torch.int64"),
        ({"images": torch.zeros(4, 1, 2, 2), "labels": LABELS}, "batches of two tensors, images and labels, got dict"),
        ((torch.zeros(4, 1, 2, 2), LABELS, LABELS), "got list"),
    ],
)
def test_batches_are_images_and_labels(trainer, batch, says):
    for run in (trainer.fit, trainer.validate):
        with pytest.raises(ValueError, match=says):
            run(Classifier(Constant(), partial(SGD, lr=0.1)), DataLoader([batch], batch_size=None))
