"""How far a linear classifier comes with the data of a recipe: the least that a network must beat."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from lightning_modules.data.loading import ResumableLoader
from lightning_modules.module import Batch

PASSES = 3  # over the training data, which a data module may change at random
STRENGTHS = (1e-4, 1e-2, 1.0)  # inverse penalties, of which validation chooses
ITERATIONS = 300  # at most
WINDOW = 5  # side of what the classifier of a pixel sees
PIXELS = 50_000  # at most, of the training scenes, drawn at random

Rows = tuple[NDArray[Any], NDArray[Any]]  # features [N, F] and labels [N]


def linear(data: pl.LightningDataModule) -> dict[str, float]:
    """Figures of the test of a multinomial logistic regression, chosen by validation.

    Labels [N]: `test/accuracy`, of all values of the images, which are resized to those of the first batch where their
    sizes differ. Labels [N, H, W]: `test/mean_iou` and `test/accuracy` of pixels, each by the window around it.
    """
    data.prepare_data()
    data.setup("fit")
    train = list(passes(data))
    val = list(data.val_dataloader())
    data.setup("test")
    test = list(data.test_dataloader())
    if train[0][1].dim() > 1:
        return _of_pixels(train, val, test)
    size = train[0][0].shape[2:]
    held_out = _flat(val, size)
    model = _chosen(_flat(train, size), lambda model: float(model.score(*held_out)))
    return {"test/accuracy": float(model.score(*_flat(test, size)))}


def passes(data: pl.LightningDataModule) -> Iterator[Batch]:
    """The batches of PASSES epochs, each of which is another one, as where Lightning trains."""
    for epoch in range(PASSES):
        loader = data.train_dataloader()
        if isinstance(loader, ResumableLoader):
            loader.sampler.set_epoch(epoch)
        yield from loader


def _flat(batches: Iterable[Batch], size: Sequence[int]) -> Rows:
    images = torch.cat([
        (images if images.shape[2:] == size else F.interpolate(images, tuple(size), mode="area")).flatten(1)
        for images, _ in batches
    ])  # fmt: skip
    return images.numpy(), torch.cat([labels for _, labels in batches]).numpy()


def _of_pixels(train: Sequence[Batch], val: Sequence[Batch], test: Sequence[Batch]) -> dict[str, float]:
    windows, labels = (torch.cat(parts) for parts in zip(*map(_windows, train), strict=True))
    drawn = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:PIXELS]
    model = _chosen((windows[drawn].numpy(), labels[drawn].numpy()), lambda model: _scores(model, val)["test/mean_iou"])
    return _scores(model, test)


def _windows(batch: Batch) -> Batch:
    """The window around each pixel with a label, [pixels, C * WINDOW^2], and its label."""
    images, labels = batch
    columns = F.unfold(images, WINDOW, padding=WINDOW // 2).movedim(1, 2).flatten(0, 1)
    known = labels.flatten() >= 0
    return columns[known], labels.flatten()[known]


def _scores(model: Pipeline, batches: Iterable[Batch]) -> dict[str, float]:
    pairs = [(torch.from_numpy(model.predict(windows.numpy())), labels) for windows, labels in map(_windows, batches)]
    predicted, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    classes = int(max(predicted.max(), labels.max())) + 1
    metrics = {
        "test/mean_iou": MulticlassJaccardIndex(classes), "test/accuracy": MulticlassAccuracy(classes, average="micro")
    }  # fmt: skip
    return {name: float(metric(predicted, labels)) for name, metric in metrics.items()}


def _chosen(rows: Rows, score: Callable[[Pipeline], float]) -> Pipeline:
    """Of one regression for each of STRENGTHS, fitted to the rows, the one with the best score."""
    models = []
    for strength in STRENGTHS:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=ITERATIONS))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the best of a few is good enough
            models.append(model.fit(*rows))
    return max(models, key=score)
