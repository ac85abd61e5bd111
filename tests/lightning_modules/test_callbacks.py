import io
import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_modules import callbacks
from lightning_modules.architectures import LeNet
from lightning_modules.callbacks import CELL, GAP, KernelRecorder, fit_grid, kernel_grid, picture
from lightning_modules.loggers import TolerantTensorBoardLogger


class Small(pl.LightningModule):
    """A large window in colour, then a small one."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(3, 4, 7, padding=3), nn.Conv2d(4, 2, 3))
        self.example_input_array = torch.zeros(1, 3, 8, 8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(tmp_path, recorder: KernelRecorder, epochs: int = 4, module: pl.LightningModule | None = None):
    """Two steps an epoch; what TensorBoard then has to show."""
    logger = TolerantTensorBoardLogger(tmp_path, name="", version="it", log_graph=True)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=logger,
        callbacks=[recorder],
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module or Small(), DataLoader(TensorDataset(torch.randn(4, 3, 8, 8)), batch_size=2))
    assert trainer.current_epoch == epochs
    events = EventAccumulator(str(tmp_path / "it"), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    return events


def test_records_before_the_first_step_and_every_nth_epoch(tmp_path):
    events = train(tmp_path, KernelRecorder(every_n_epochs=2))
    tags = events.Tags()
    assert set(tags["images"]) == {"kernels/0", "kernels/1", "gabor/0/fits"}
    assert {"gabor/0/mean_r2", "gabor/0/fraction"} <= set(tags["scalars"])
    assert tags["graph"]
    for tag in tags["images"]:
        assert [image.step for image in events.Images(tag)] == [0, 3, 7]
    first, *_, last = (
        Image.open(io.BytesIO(image.encoded_image_string)).tobytes() for image in events.Images("kernels/0")
    )
    assert first != last
    assert all(0 <= scalar.value <= 1 for scalar in events.Scalars("gabor/0/mean_r2"))


def test_only_the_named_layers(tmp_path):
    assert train(tmp_path, KernelRecorder(layers=["1"]), epochs=1).Tags()["images"] == ["kernels/1"]


def test_layers_and_epochs_are_checked(tmp_path):
    with pytest.raises(ValueError, match="among 0, 1, got 7"):
        train(tmp_path, KernelRecorder(layers=["1", "7"]))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        KernelRecorder(every_n_epochs=0)


def test_trouble_is_warned_of_once(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no paint left")

    monkeypatch.setattr(callbacks, "picture", fail)
    with pytest.warns(UserWarning) as caught:
        train(tmp_path, KernelRecorder())
    assert sum("no paint left" in str(warning.message) for warning in caught) == 1


def test_a_network_that_cannot_be_traced_has_no_graph(tmp_path):
    class Untraceable(Small):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if torch.jit.is_tracing():
                raise RuntimeError("not while you look")
            return super().forward(images)

    with pytest.warns(UserWarning, match="not while you look"):
        events = train(tmp_path, KernelRecorder(), epochs=1, module=Untraceable())
    assert not events.Tags()["graph"]


def test_the_graph_of_a_network_in_triton_is_drawn(tmp_path, triton_only):
    module = Small()
    module.network = LeNet(input_shape=(3, 8, 8))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "TensorBoard shows no graph")
        events = train(tmp_path, KernelRecorder(), epochs=1, module=module)
    operators = {node.op for node in events.Graph().node}
    assert {"convnets::convolution", "convnets::max_pool"} <= operators


def test_nothing_is_recorded_without_tensorboard():
    pl.Trainer(
        fast_dev_run=1,
        accelerator="cpu",
        callbacks=[KernelRecorder()],
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(Small(), DataLoader(TensorDataset(torch.randn(2, 3, 8, 8))))
    assert issubclass(TolerantTensorBoardLogger, TensorBoardLogger)


def test_zero_is_grey_and_the_largest_weight_white_or_black():
    weight = torch.zeros(2, 1, 7, 7)
    weight[0, 0, 2, 3], weight[1, 0, 0, 0] = 0.01, -5.0
    block = -(-CELL // 7)
    image = kernel_grid(weight)
    first = image[:, GAP : GAP + 7 * block, GAP : GAP + 7 * block]
    second = image[:, GAP : GAP + 7 * block, 2 * GAP + 7 * block : -GAP]
    for kernel, value, (row, column) in ((first, 1.0, (2, 3)), (second, 0.0, (0, 0))):
        expected = torch.full((7, 7), 0.5)
        expected[row, column] = value
        assert torch.equal(kernel, expected.repeat_interleave(block, 0).repeat_interleave(block, 1).expand(3, -1, -1))


def test_three_channels_are_colours():
    weight = torch.zeros(1, 3, 7, 7)
    weight[0, 2] = 1.0
    red, green, blue = kernel_grid(weight)[:, CELL // 2, CELL // 2]
    assert (red, green, blue) == (0.5, 0.5, 1.0)


def test_many_channels_are_columns_and_capped():
    block = -(-CELL // 3)
    assert kernel_grid(torch.randn(5, 20, 3, 3)).shape == (3, 5 * (3 * block + GAP) + GAP, 12 * (3 * block + GAP) + GAP)


def test_a_dead_kernel_is_grey():
    assert (kernel_grid(torch.zeros(1, 1, 7, 7)) == 0.5).all()


def test_a_true_gabor_is_its_own_fit():
    y, x = torch.meshgrid(torch.arange(11.0) - 5, torch.arange(11.0) - 5, indexing="ij")
    weight = (torch.exp(-(x.square() + y.square()) / 12) * torch.cos(1.2 * x + 0.3))[None, None]
    image = fit_grid(weight)  # a single cell has no border
    kernel, fit = image[:, : 11 * 6], image[:, 11 * 6 + GAP // 2 :]
    torch.testing.assert_close(kernel, fit, atol=1e-3, rtol=0)
    _, scalars = picture("it", weight)
    assert scalars["gabor/it/mean_r2"] > 0.99


def test_small_windows_are_not_scored():
    images, scalars = picture("it", torch.randn(4, 1, 5, 9))
    assert list(images) == ["kernels/it"] and not scalars
