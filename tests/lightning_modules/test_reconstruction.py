from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader, TensorDataset

from lightning_modules.architectures import SparseAutoencoder
from lightning_modules.reconstruction import Reconstruction


class Halves(nn.Module):
    """Reconstructs a part of the images; the code is the images doubled."""

    input_shape = (1, 2, 3)

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Parameter(torch.tensor(0.5))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.part * images, 2 * images


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(5, 1, 2, 3)


@pytest.fixture
def trainer(tmp_path) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=3, accelerator="cpu", default_root_dir=tmp_path, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def loader(images: torch.Tensor, batch_size: int = 2) -> DataLoader:
    return DataLoader(TensorDataset(images, torch.zeros(len(images))), batch_size=batch_size)


def test_metrics_are_those_of_the_whole_split(trainer, images):
    module = Reconstruction(Halves(), SGD, sparsity_weight=0.7, error_weight=2.0, softness=0.04)
    (metrics,) = trainer.test(module, loader(images), verbose=False)
    sparsity = ((4 * images.square() + 0.04).sqrt().sum() / 5).item()
    error = (images.square().sum() / 4 / 5).item()
    expected = {
        "test/loss": 0.7 * sparsity + 2 * error,
        "test/sparsity": sparsity,
        "test/error": error,
        "test/explained_variance": 0.75,
    }
    assert metrics == pytest.approx(expected, rel=1e-5)


def test_checkpoints_hold_plain_values(trainer, images, tmp_path):
    module = Reconstruction(Halves(), partial(SGD, lr=0.01))
    trainer.fit(module, loader(images), loader(images))
    assert {f"{split}/explained_variance" for split in ("train", "val")} <= set(trainer.callback_metrics)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    assert list(torch.load(tmp_path / "it.ckpt", weights_only=True)["state_dict"]) == ["network.part"]
    again = Reconstruction.load_from_checkpoint(
        tmp_path / "it.ckpt", network=Halves(), optimizer=SGD, weights_only=True
    )
    assert again.network.part == module.network.part != 0.5


def test_predictions_are_reconstructions_and_codes(trainer, images):
    reconstruction, code = trainer.predict(Reconstruction(Halves(), SGD), loader(images, 5))[0]
    torch.testing.assert_close(reconstruction, images / 2)
    torch.testing.assert_close(code, 2 * images)


def test_learns_to_reconstruct_from_few_components(trainer):
    """Patches of 4x4 that are sums of a few out of eight patterns."""
    patterns = nn.functional.normalize(torch.randn(8, 16))
    images = ((torch.rand(640, 8) < 0.2) * torch.randn(640, 8) @ patterns).view(-1, 1, 4, 4)
    module = Reconstruction(
        SparseAutoencoder((1, 4, 4), 8, 4), partial(Adam, lr=0.02), sparsity_weight=0.05, error_weight=1.0
    )
    trainer.fit(module, loader(images, 32), loader(images, 640))
    assert trainer.callback_metrics["val/explained_variance"] > 0.8


def test_errors():
    with pytest.raises(ValueError, match=r"softness must be positive, got 0"):
        Reconstruction(Halves(), SGD, softness=0)
