import copy
import io
import itertools
import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_modules import callbacks
from lightning_modules.architectures import LeNet
from lightning_modules.callbacks import KernelRecorder, milestone
from lightning_modules.loggers import TolerantTensorBoardLogger
from lightning_modules.reproducibility import LastCheckpoint


class Small(pl.LightningModule):
    """A large window in colour, then a small one."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(3, 4, 7, padding=3), nn.Conv2d(4, 2, 3), nn.Conv2d(2, 2, 1), nn.ReLU())
        self.example_input_array = torch.zeros(1, 3, 8, 8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(
    tmp_path, recorder: KernelRecorder, epochs: int = 4, module: pl.LightningModule | None = None, resumed: int = 0,
    device: str = "cpu",
):  # fmt: skip
    """Train for two steps an epoch, and return what TensorBoard then has to show.

    Args:
        resumed: the epochs of an earlier run, whose checkpoint this one goes on from; 0 for none.
    """
    last = tmp_path / "it" / "checkpoints" / "last.ckpt"
    logger = TolerantTensorBoardLogger(
        tmp_path, name="", version="it", log_graph=True, purge_step=2 * resumed if resumed else None
    )
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator=device,
        devices=1,
        logger=logger,
        callbacks=[recorder, LastCheckpoint()],
        log_every_n_steps=1,
        enable_checkpointing=True,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = DataLoader(TensorDataset(torch.randn(4, 3, 8, 8)), batch_size=2)
    trainer.fit(module or Small(), batches, ckpt_path=last if resumed else None, weights_only=True)
    assert trainer.current_epoch == epochs
    events = EventAccumulator(str(tmp_path / "it"), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    events.Reload()
    return events


def test_records_before_the_first_step_and_every_nth_epoch(tmp_path):
    events = train(tmp_path, KernelRecorder(every_n_epochs=2))
    tags = events.Tags()
    assert set(tags["images"]) == {"kernels/0", "kernels/1", "gabor/0/fits", "gabor/0/shapes"}
    scores = {"mean_r2", "median_r2", "fraction", "fraction_above_null", "growth", "dead"}
    assert {f"gabor/0/{name}" for name in scores} <= set(tags["scalars"])
    assert set(tags["histograms"]) == {f"gabor/0/{name}" for name in ("r2", "orientation", "bandwidth")}
    assert tags["graph"]
    for tag in ("kernels/0", "kernels/1", "gabor/0/fits"):
        assert [image.step for image in events.Images(tag)] == [0, 3, 7]
    assert [image.step for image in events.Images("gabor/0/shapes")] == [3, 7]
    growth, r2 = ([scalar.value for scalar in events.Scalars(f"gabor/0/{name}")] for name in ("growth", "mean_r2"))
    assert growth == pytest.approx([value - r2[0] for value in r2], abs=1e-6)
    first, *_, last = (
        Image.open(io.BytesIO(image.encoded_image_string)).tobytes() for image in events.Images("kernels/0")
    )
    assert first != last
    for tag in ("kernels/0", "gabor/0/fits", "gabor/0/shapes"):
        image = events.Images(tag)[-1]
        assert (image.width, image.height) == Image.open(io.BytesIO(image.encoded_image_string)).size
    assert all(0 <= scalar.value <= 1 for scalar in events.Scalars("gabor/0/mean_r2"))


def test_the_page_of_custom_scalars_shows_what_is_measured(tmp_path):
    events = train(tmp_path, KernelRecorder(), epochs=1)
    (layout,) = events.Tensors("custom_scalars__config__")
    (text,) = events.Tensors("gabor/1/text_summary")
    assert b"^gabor/0/fraction$" in layout.tensor_proto.string_val[0]
    assert b"gabor/1" not in layout.tensor_proto.string_val[0]
    assert b"3x3 window, but Gabor-likeness needs 7x7 or more" in text.tensor_proto.string_val[0]


def test_early_growth_is_recorded_on_a_logarithmic_schedule(tmp_path):
    """At ten times as many steps each; the animation has steps between, too."""
    events = train(tmp_path, KernelRecorder(), epochs=6)
    assert [scalar.step for scalar in events.Scalars("gabor/0/mean_r2")] == [0, 9, 11]
    with Image.open(tmp_path / "it" / "gabor" / "0" / "growth.gif") as growth:
        assert growth.n_frames == 5  # before the first step, after 2, 5, 10 and 12


def test_pictures_are_written_and_the_kernels_grow(tmp_path):
    train(tmp_path, KernelRecorder(every_n_epochs=1), epochs=3)
    directory = tmp_path / "it" / "gabor"
    assert {path.name for path in (directory / "0").iterdir()} == {
        "kernels.png",
        "fits.png",
        "shapes.png",
        "growth.gif",
    }
    assert {path.name for path in (directory / "1").iterdir()} == {"kernels.png", "growth.gif"}
    with Image.open(directory / "0" / "growth.gif") as growth:
        assert growth.n_frames == 5  # after 0, 2, 4, 5 and 6 steps


def test_a_resumed_run_records_nothing_twice(tmp_path):
    train(tmp_path, KernelRecorder(every_n_epochs=1), epochs=2)
    events = train(tmp_path, KernelRecorder(every_n_epochs=1), epochs=4, resumed=2)
    for tag in ("gabor/0/mean_r2", "gabor/0/growth"):
        assert [scalar.step for scalar in events.Scalars(tag)] == [0, 1, 3, 5, 7]
    assert events.Scalars("gabor/0/growth")[3].value != 0
    with Image.open(tmp_path / "it" / "gabor" / "0" / "growth.gif") as growth:
        assert growth.n_frames == 6  # after 0, 2, 4, 5, 6 and 8 steps


def test_a_run_resumed_elsewhere_has_the_page_of_custom_scalars_too(tmp_path):
    fit(KernelRecorder(), LastCheckpoint(), logger=TensorBoardLogger(tmp_path, name="", version="one"))
    trainer = pl.Trainer(
        accelerator="cpu", callbacks=[KernelRecorder()], logger=TensorBoardLogger(tmp_path, name="", version="other"),
        max_epochs=3, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    batches = DataLoader(TensorDataset(torch.randn(4, 3, 8, 8)), batch_size=2)
    trainer.fit(Small(), batches, ckpt_path=tmp_path / "one" / "checkpoints" / "last.ckpt", weights_only=True)
    events = EventAccumulator(str(tmp_path / "other"))
    events.Reload()
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    assert [scalar.step for scalar in events.Scalars("gabor/0/mean_r2")] == [5]


def test_recording_works_on_a_compiled_network(tmp_path):
    class Compiled(Small):
        def on_train_start(self) -> None:
            self.network.compile(backend="eager")

    events = train(tmp_path, KernelRecorder(every_n_epochs=1), epochs=2, module=Compiled())
    assert [image.step for image in events.Images("gabor/0/fits")] == [0, 1, 3]


def test_only_the_named_layers(tmp_path):
    assert train(tmp_path, KernelRecorder(layers=["1"]), epochs=1).Tags()["images"] == ["kernels/1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["1", "7"]}, "among 0, 1, got 7"),
        ({"layers": ["2"]}, "among 0, 1: 2, a Conv2d, has no window"),
        ({"layers": ["3"]}, "among 0, 1: 3, a ReLU, has no window"),
        ({"every_n_epochs": 0}, "every_n_epochs must be at least 1, got 0"),
        ({"scale": "all"}, "scale must be kernel or layer, got 'all'"),
    ],
    ids=["unknown", "pointwise", "no convolution", "epochs", "scale"],
)
def test_wrong_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, KernelRecorder(**options))


def test_trouble_is_warned_of_once(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no paint left")

    monkeypatch.setattr(callbacks, "kernel_grid", fail)
    with pytest.warns(UserWarning) as caught:
        train(tmp_path, KernelRecorder())
    assert sum("no paint left" in str(warning.message) for warning in caught) == 1


def test_a_logger_that_fails_does_not_stop_the_training(tmp_path):
    class Full(TensorBoardLogger):
        full = False

        @property
        def experiment(self):
            if self.full:
                raise OSError("the disk is full")
            return super().experiment

        def save(self) -> None: ...

        def finalize(self, status: str) -> None: ...

    class Fill(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_) -> None:
            trainer.logger.full = True

    with pytest.warns(UserWarning) as caught:
        fit(Fill(), KernelRecorder(every_n_epochs=1), logger=Full(tmp_path))
    assert sum("the disk is full" in str(warning.message) for warning in caught) == 1


def test_where_no_picture_can_be_written_training_goes_on(tmp_path):
    (tmp_path / "it").mkdir()
    (tmp_path / "it" / "gabor").touch()
    with pytest.warns(UserWarning, match="KernelRecorder could not record, training goes on"):
        events = train(tmp_path, KernelRecorder(), epochs=1)
    assert len(events.Scalars("gabor/0/mean_r2")) == 2


def test_a_network_that_cannot_be_traced_has_no_graph(tmp_path):
    class Untraceable(Small):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if torch.jit.is_tracing():
                raise RuntimeError("not while you look")
            return super().forward(images)

    with pytest.warns(UserWarning, match="not while you look"):
        events = train(tmp_path, KernelRecorder(), epochs=1, module=Untraceable())
    assert not events.Tags()["graph"]


def test_the_graph_of_a_network_in_triton_is_drawn(tmp_path, device, triton_only):
    module = Small()
    module.network = LeNet(input_shape=(3, 8, 8))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "TensorBoard shows no graph")
        events = train(tmp_path, KernelRecorder(), epochs=1, module=module, device=device)
    operators = {node.op for node in events.Graph().node}
    assert {"convnets::convolution", "convnets::max_pool"} <= operators


def test_nothing_is_recorded_without_tensorboard(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(KernelRecorder, "_show", lambda *arguments: shown.append(arguments))
    fit(KernelRecorder(every_n_epochs=1), logger=CSVLogger(tmp_path))
    assert not shown and not list(tmp_path.rglob("*.png"))


def fit(*callbacks: pl.Callback, module: pl.LightningModule | None = None, **options) -> None:
    """Two epochs of two steps."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1, "max_epochs": 2}
    trainer = pl.Trainer(accelerator="cpu", callbacks=list(callbacks), **quiet, **options)
    trainer.fit(module or Small(), DataLoader(TensorDataset(torch.randn(4, 3, 8, 8)), batch_size=2))


class Failing(Small):
    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        raise RuntimeError("no more")


def test_a_training_that_fails_ends_and_another_can_follow(tmp_path):
    """Where a checkpoint is saved on the way out, too, which asks for the recorder's state."""
    recorder = KernelRecorder()
    with pytest.raises(RuntimeError, match="no more"):
        fit(recorder, OnExceptionCheckpoint(tmp_path), module=Failing(), logger=TensorBoardLogger(tmp_path))
    assert list(tmp_path.glob("*.ckpt"))
    fit(recorder, logger=TensorBoardLogger(tmp_path, version="after"))
    assert list(tmp_path.rglob("after/gabor/0/fits.png"))


def test_a_second_training_starts_anew(tmp_path):
    recorder = KernelRecorder()
    for version in ("first", "second"):
        fit(recorder, logger=TensorBoardLogger(tmp_path, name="", version=version))
        events = EventAccumulator(str(tmp_path / version))
        events.Reload()
        assert events.Scalars("gabor/0/growth")[0].value == 0
    copy.deepcopy(recorder)


def test_two_recorders_in_one_training(tmp_path):
    one, other = KernelRecorder(layers=["0"]), KernelRecorder(layers=["1"], every_n_epochs=1)
    fit(one, other, LastCheckpoint(), logger=TensorBoardLogger(tmp_path))


def test_what_is_recorded_are_the_weights_of_the_moment(tmp_path, monkeypatch):
    drawn, draw, module = [], callbacks.kernel_grid, Small()

    def remember(weight: torch.Tensor, scale: str) -> torch.Tensor:
        drawn.append(weight.clone())
        return draw(weight, scale)

    monkeypatch.setattr(callbacks, "kernel_grid", remember)
    before = module.network[0].weight.detach().clone()
    fit(KernelRecorder(layers=["0"]), module=module, logger=TensorBoardLogger(tmp_path))
    assert torch.equal(drawn[0], before)
    assert torch.equal(drawn[-1], module.network[0].weight)


def test_a_long_animation_is_thinned_evenly():
    """Of 1,000 moments at most 64 have a frame, as far apart from each other as can be."""
    recorder, module = KernelRecorder(), Small()
    for moment in range(1000):
        nn.init.constant_(module.network[0].weight, -1.0)
        module.network[0].weight.data[0, 0, 0, 0] = moment / 1000
        recorder._add_frames(moment, module)
    values = [round((int(each[0, 0, 0, 0]) / 255 - 0.5) * 2000) for each in recorder._frames["0"]]
    gaps = {later - earlier for earlier, later in itertools.pairwise(values)}
    assert 32 <= len(values) <= 64 and max(gaps) - min(gaps) <= 16 and values[0] < 8 and values[-1] > 950


def test_milestones_are_met_in_strides_too():
    """As with several optimizers, which each count a step."""
    assert [milestone(steps) for steps in (0, 1, 2, 4, 5, 9, 10, 19, 20, 49, 50, 99, 1000, 2000, 70_000)] == [
        1, 1, 2, 2, 5, 5, 10, 10, 20, 20, 50, 50, 1000, 2000, 50_000,
    ]  # fmt: skip


def test_the_last_moment_has_a_frame_once():
    recorder, module = KernelRecorder(), Small()
    for moment in range(66):  # 33 frames are left, and moment 65 has none
        recorder._add_frames(moment, module)
    counts = [len(recorder._frames["0"])]
    for _ in range(2):
        recorder._add_frames(66, module)
        recorder._add_frames(66, module, certainly=True)
        counts.append(len(recorder._frames["0"]))
    recorder._add_frames(67, module)
    recorder._add_frames(67, module, certainly=True)
    assert [*counts, len(recorder._frames["0"])] == [33, 34, 34, 35]


def test_a_resumed_recorder_does_not_repeat_a_frame():
    recorder, other, module = KernelRecorder(), KernelRecorder(), Small()
    for moment in (0, 2, 5):
        recorder._add_frames(moment, module)
    other._add_frames(10, module)  # of a training before
    other.load_state_dict(recorder.state_dict())
    other._add_frames(5, module)
    other._add_frames(10, module)
    assert len(other._frames["0"]) == 4
