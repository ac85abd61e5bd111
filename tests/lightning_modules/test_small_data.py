"""Faces, moving digits and waveforms, which are tensors in memory."""

import pytest
import torch

from lightning_modules.data import FacesDataModule, MovingDigitsDataModule, WaveformsDataModule
from lightning_modules.data.waveforms import WAVEFORMS, waves

SMALL = {"train_samples": 90, "eval_samples": 45}


def made(module, **options):
    data = module(**options)
    data.setup("fit")
    return data


def rows(images: torch.Tensor) -> set[tuple[float, ...]]:
    return {tuple(image.flatten().tolist()) for image in images}


@pytest.mark.parametrize(
    "module, options, shape, classes, counts",
    [
        pytest.param(FacesDataModule, {}, (1, 25, 25), 2, [140, 30, 30], id="faces"),
        pytest.param(FacesDataModule, {"image_size": 16, "max_shift": 2}, (1, 16, 16), 2, [140, 30, 30], id="resized"),
        pytest.param(
            FacesDataModule, {"max_shift": 3, "eval_shifts": 4}, (1, 25, 25), 2, [140, 120, 120], id="shifted",
        ),
        pytest.param(MovingDigitsDataModule, SMALL, (1, 8, 20, 20), 8, [90, 45, 45], id="moving digits"),
        pytest.param(
            MovingDigitsDataModule, {"still": True, "frames": 3, "image_size": 12, **SMALL}, (1, 3, 12, 12), 9,
            [90, 45, 45], id="still ones too",
        ),
        pytest.param(WaveformsDataModule, SMALL, (1, 512), 8, [90, 45, 45], id="waveforms"),
        pytest.param(WaveformsDataModule, {"length": 64, **SMALL}, (1, 64), 8, [90, 45, 45], id="short waveforms"),
    ],
)  # fmt: skip
def test_splits(module, options, shape, classes, counts):
    data = made(module, batch_size=10, **options)
    assert data.classes == classes and data.input_shape == shape
    parts = (data.train, data.val, data.test)
    assert [len(part) for part in parts] == counts
    for part in parts:
        assert (
            part.images.shape[1:] == shape and part.images.dtype == torch.float32 and part.labels.dtype == torch.int64
        )
        assert part.images.isfinite().all()
        amounts = part.labels.bincount(minlength=classes)
        assert len(amounts) == classes and amounts.max() - amounts.min() <= 1
    train, val, test = (rows(part.images) for part in parts)
    assert train.isdisjoint(val | test) and val.isdisjoint(test)

    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (10, *shape) and labels.shape == (10,)
    predicted = list(data.predict_dataloader())
    assert torch.equal(torch.cat([images for images, _ in predicted]), data.test.images)

    torch.manual_seed(1)
    again = made(module, **options)
    for one, two in zip(parts, (again.train, again.val, again.test), strict=True):
        assert torch.equal(one.images, two.images)
    assert not torch.equal(made(module, split_seed=1, **options).test.images, data.test.images)


def test_setup_is_done_once():
    data = made(FacesDataModule)
    train = data.train
    data.setup("test")
    assert data.train is train


def test_faces_are_labelled_as_such():
    data = made(FacesDataModule)
    images, labels = data.train.images, data.train.labels
    assert images.min() == -1 and images.max() > 0.9
    assert images[labels == 1].std(0).mean() < images[labels == 0].std(0).mean()  # faces are more like each other


def test_only_training_faces_are_mirrored():
    data = made(FacesDataModule, batch_size=140)
    ((images, labels),) = data.train_dataloader()
    both = rows(torch.cat([data.train.images, data.train.images.flip(3)]))
    assert rows(images) <= both and not rows(images) <= rows(data.train.images)
    ((images, labels),) = data.val_dataloader()
    assert torch.equal(images, data.val.images)


def test_evaluated_faces_are_shifted_for_good():
    still, moved = made(FacesDataModule).val, made(FacesDataModule, max_shift=2, eval_shifts=3).val
    assert torch.equal(moved.labels, still.labels.repeat(3))
    for copy in moved.images.split(len(still)):
        windows = [
            still.images[:, :, 2 + down : 23 + down, 2 + right : 23 + right]
            for down in range(-2, 3)
            for right in range(-2, 3)
        ]
        assert torch.stack([(window == copy[:, :, 2:23, 2:23]).flatten(1).all(1) for window in windows]).any(0).all()


def centres(videos: torch.Tensor) -> torch.Tensor:
    """Circular mean [N, T, 2] of what is bright in videos [N, 1, T, S, S], right and down, in pixels."""
    size = videos.shape[-1]
    turn = torch.exp(2j * torch.pi * torch.arange(size) / size)
    return torch.stack([(videos[:, 0].sum(axis) * turn).sum(-1).angle() for axis in (2, 3)], -1) * size / 6.283185


def test_digits_move_as_labelled():
    data = made(MovingDigitsDataModule, noise=0.0, still=True, speeds=(1.0, 1.0), train_samples=180)
    path = centres(data.train.images)
    steps = (path.diff(dim=1) + 10) % 20 - 10  # [N, T - 1, 2]
    mean = steps.mean(1)
    angle = data.train.labels * (torch.pi / 4)
    expected = torch.stack([angle.cos(), angle.sin()], 1) * (data.train.labels < 8)[:, None]
    assert (mean - expected).abs().max() < 0.1


def test_no_frame_tells_the_direction():
    data = made(MovingDigitsDataModule, noise=0.0, train_samples=4000)
    frame = data.train.images[:, 0, 0]
    overall = frame.mean(0)
    for label in range(8):
        mean = frame[data.train.labels == label].mean(0)
        assert (mean - overall).abs().max() < 5 * frame.std() / 500**0.5


def test_no_digit_moves_in_two_splits(monkeypatch):
    given = []
    drawn = MovingDigitsDataModule._videos
    monkeypatch.setattr(
        MovingDigitsDataModule, "_videos", lambda self, ink, *rest: given.append(rows(ink)) or drawn(self, ink, *rest)
    )
    made(MovingDigitsDataModule, **SMALL)
    train, val, test = given
    assert train.isdisjoint(val | test) and val.isdisjoint(test)
    assert [len(part) for part in given] == [1257, 270, 270]


def test_waves_are_what_they_are_called():
    count, length = len(WAVEFORMS), 600
    time = torch.arange(length).expand(count, -1) / length
    constant = torch.ones(count, 1)
    noise = torch.randn(count, length)
    tone, rising, falling, square, sawtooth, trill, tremolo, burst = waves(
        torch.arange(count), time, length * constant, 0.05 * constant, 0.13 * constant, 4 * constant, noise
    )

    def crossings(wave: torch.Tensor) -> list[int]:
        return [int((third[1:] * third[:-1] < 0).sum()) for third in wave.split(length // 3)]

    assert crossings(tone) == crossings(square) == [20, 20, 20] and sum(crossings(sawtooth)) == 60
    assert crossings(rising)[0] < 18 and crossings(rising)[2] > 22 and crossings(falling)[2] < 18
    assert sum(crossings(rising)) in (60, 61, 62) and abs(sum(crossings(trill)) - 60) <= 1  # 0.05 is the geometric mean
    assert set(square.unique().tolist()) == {-1, 1}
    assert ((sawtooth.diff() > 0).float().mean() - 0.95).abs() < 0.01
    peaks = tremolo.view(24, 25).abs().amax(1)
    assert peaks.max() > 0.9 and peaks.min() < 0.2 and tone.view(24, 25).abs().amax(1).min() > 0.95
    assert torch.equal(burst, noise[7])


def test_bursts_have_an_onset_and_a_loudness():
    images = made(WaveformsDataModule, noise=0.0, **SMALL).train.images[:, 0]
    silent = (images == 0).float().mean(1)
    assert silent.max() < 0.55 and silent.min() < 0.1 and silent.mean() > 0.15
    loudness = (images.square().sum(1) / (images != 0).sum(1)).sqrt()
    assert 0.49 < loudness.min() < 0.7 and 1.3 < loudness.max() < 1.6


@pytest.mark.parametrize(
    "module, options, message",
    [
        (FacesDataModule, {"image_size": 0}, "image_size must be positive, got 0"),
        (FacesDataModule, {"max_shift": -1}, "max_shift must not be negative, got -1"),
        (FacesDataModule, {"eval_shifts": -1}, "eval_shifts must not be negative, got -1"),
        (MovingDigitsDataModule, {"frames": 0}, "frames must be positive, got 0"),
        (MovingDigitsDataModule, {"digit_size": 21}, "digit_size must be at most image_size, 20, got 21"),
        (MovingDigitsDataModule, {"speeds": (2.0, 1.0)}, r"speeds must be in order, above 0 and below 10.0, got"),
        (MovingDigitsDataModule, {"speeds": (1.0, 10.0)}, r"speeds must be in order, above 0 and below 10.0, got"),
        (MovingDigitsDataModule, {"noise": -1.0}, "noise must not be negative, got -1.0"),
        (WaveformsDataModule, {"length": 63}, "length must be at least 64, got 63"),
        (WaveformsDataModule, {"noise": -1.0}, "noise must not be negative, got -1.0"),
        (WaveformsDataModule, {"eval_samples": 0}, "eval_samples must be positive, got 0"),
    ],
)
def test_arguments_are_checked(module, options, message):
    with pytest.raises(ValueError, match=message):
        module(**options)
