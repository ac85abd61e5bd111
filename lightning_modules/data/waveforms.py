"""Waveforms of eight classes, generated: tones, chirps, other shapes of wave, noise.

Each waveform is a burst that begins and ends anywhere in a record of noise, of random loudness, pitch and phase.
"""

import math

import torch
from torch import Tensor

from lightning_modules.data.datasets import BatchedImages
from lightning_modules.data.splits import SplitDataModule, Splits, balanced, check_positive, generators

WAVEFORMS = ("tone", "rising chirp", "falling chirp", "square", "sawtooth", "trill", "tremolo", "noise")
SHORTEST = 64  # samples of a record, half of which is the shortest burst
PITCHES = (0.03, 0.10)  # cycles a sample; the third harmonic of the highest is below half the sampling rate
SWEEP = 2.0  # a chirp's highest pitch to its lowest
MODULATION = (3.0, 6.0)  # cycles of a tremolo and of a trill in a burst
TRILL = 0.3  # of the pitch, to both sides


class WaveformsDataModule(SplitDataModule):
    """Waveforms [N, 1, length] with labels [N], as in `WAVEFORMS`.

    Everything but the label is drawn: the burst takes half to all of the record, its root mean square is 0.5 to 1.5,
    and its pitch 0.03 to 0.1 cycles a sample (uniform in the logarithm). Noise of the given standard deviation is
    added. Training, validation and test come from generators of their own. Prediction runs over the test waveforms.

    Args:
        batch_size: waveforms a step.
        length: of a record in samples.
        noise: standard deviation of the added noise.
        train_samples: waveforms for training.
        eval_samples: waveforms for the validation, and as many for the test.
        num_workers: processes that load batches. The waveforms are in memory: 0 is the quickest.
        split_seed: of the generators.

    Raises:
        ValueError: a size or count is not positive, the length below 64, or the noise negative.
    """

    classes = len(WAVEFORMS)

    def __init__(
        self,
        batch_size: int = 32,
        length: int = 512,
        noise: float = 0.3,
        train_samples: int = 3_200,
        eval_samples: int = 800,
        num_workers: int = 0,
        split_seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, split_seed)
        check_positive(train_samples=train_samples, eval_samples=eval_samples)
        if length < SHORTEST:
            raise ValueError(f"length must be at least {SHORTEST}, got {length}")
        if noise < 0:
            raise ValueError(f"noise must not be negative, got {noise}")
        self.length = length
        self.noise = noise
        self.train_samples = train_samples
        self.eval_samples = eval_samples
        self.input_shape = (1, length)

    def make_splits(self) -> Splits:
        counts = (self.train_samples, self.eval_samples, self.eval_samples)
        train, val, test = (
            self._records(count, generator)
            for count, generator in zip(counts, generators(self.split_seed), strict=True)
        )
        return train, val, test

    def _records(self, count: int, generator: torch.Generator) -> BatchedImages:
        labels = balanced(count, self.classes)

        def drawn(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(count, 1, generator=generator)

        duration = self.length * drawn(0.5, 1)
        onset = (self.length - duration) * drawn(0, 1)
        elapsed = torch.arange(self.length) - onset  # [N, length], in samples
        inside = (elapsed >= 0) & (elapsed < duration)
        bursts = waves(
            labels, elapsed / duration, duration, drawn(math.log(PITCHES[0]), math.log(PITCHES[1])).exp(),
            drawn(0, 1), drawn(*MODULATION), torch.randn(count, self.length, generator=generator),
        )  # fmt: skip
        bursts = bursts * inside
        power = bursts.square().sum(1, keepdim=True) / inside.sum(1, keepdim=True)
        records = drawn(0.5, 1.5) * bursts * power.rsqrt()
        records += self.noise * torch.randn(count, self.length, generator=generator)
        return BatchedImages(records[:, None], labels)


def waves(
    labels: Tensor, time: Tensor, duration: Tensor, pitch: Tensor, phase: Tensor, modulation: Tensor, noise: Tensor
) -> Tensor:
    """Waves [N, length] of the classes `labels` [N].

    Args:
        labels: as in `WAVEFORMS`.
        time: [N, length], 0 to 1 during the burst.
        duration: [N, 1], of the burst in samples.
        pitch: [N, 1], in cycles a sample; the mean of a chirp or a trill, in the logarithm or plainly.
        phase: [N, 1], in cycles.
        modulation: [N, 1], cycles of tremolo or trill in the burst.
        noise: [N, length], what the bursts of noise are made of.
    """
    cycles = phase + pitch * duration * time
    rate = math.log(SWEEP)
    start = pitch * duration / math.sqrt(SWEEP)  # the pitch grows as exp(rate * time); its integral is the phase
    rising = phase + start * torch.expm1(rate * time) / rate
    falling = phase - start * SWEEP * torch.expm1(-rate * time) / rate
    swing = TRILL * pitch * duration / (2 * math.pi * modulation) * (1 - (2 * math.pi * modulation * time).cos())
    tone = _sine(cycles)
    kinds = torch.stack(
        [
            tone,
            _sine(rising),
            _sine(falling),
            tone.sign(),
            2 * (cycles % 1) - 1,
            _sine(cycles + swing),
            tone * (1 + _sine(modulation * time)) / 2,
            noise,
        ],
        dim=1,
    )
    return kinds[torch.arange(len(labels)), labels]


def _sine(cycles: Tensor) -> Tensor:
    return (2 * math.pi * cycles).sin()
