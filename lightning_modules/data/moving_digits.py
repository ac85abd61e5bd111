"""Videos of a moving digit, no download: each of one real digit that wanders over a noisy ground.

The digit starts anywhere and what leaves on one side comes back on the other, so that no single frame, nor where the
digit is in it, says anything about where it goes.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.data.datasets import BatchedImages
from lightning_modules.data.digits import DigitsDataModule
from lightning_modules.data.splits import SplitDataModule, Splits, balanced, check_positive, generators

DIRECTIONS = 8
CHUNK = 500  # videos that are drawn at once


class MovingDigitsDataModule(SplitDataModule):
    """Videos [N, 1, frames, image_size, image_size] with the direction of motion as labels [N].

    Directions 0 to 7 are right, right and down, down, and so on clockwise by 45 degrees; 8 is no motion. Noise has
    mean zero and a digit adds 2 to it. No digit is in two splits. Prediction runs over the test videos.

    Args:
        batch_size: videos a step.
        frames: length of a video.
        image_size: side of a frame in pixels.
        digit_size: side of a digit in pixels.
        speeds: slowest and fastest motion, in pixels a frame.
        still: whether there is the class of digits that stand still, too.
        noise: standard deviation of the noise, independent in each pixel of each frame.
        train_samples: videos for training.
        eval_samples: videos for the validation, and as many for the test.
        num_workers: processes that load batches. The videos are in memory: 0 is the quickest.
        split_seed: which of the possible splits, and which videos.

    Raises:
        ValueError: a size or count is not positive, the digit is larger than a frame, the noise negative, or the speeds
            are not in order or so fast that a digit could have come from either side.
    """

    def __init__(
        self,
        batch_size: int = 32,
        frames: int = 8,
        image_size: int = 20,
        digit_size: int = 10,
        speeds: tuple[float, float] = (0.75, 2.0),
        still: bool = False,
        noise: float = 0.5,
        train_samples: int = 2_400,
        eval_samples: int = 800,
        num_workers: int = 0,
        split_seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, split_seed)
        check_positive(
            frames=frames, image_size=image_size, digit_size=digit_size, train_samples=train_samples,
            eval_samples=eval_samples,
        )  # fmt: skip
        if digit_size > image_size:
            raise ValueError(f"digit_size must be at most image_size, {image_size}, got {digit_size}")
        slowest, fastest = speeds
        if not 0 < slowest <= fastest < image_size / 2:
            raise ValueError(f"speeds must be in order, above 0 and below {image_size / 2}, got {speeds}")
        if noise < 0:
            raise ValueError(f"noise must not be negative, got {noise}")
        self.frames = frames
        self.image_size = image_size
        self.digit_size = digit_size
        self.speeds = (slowest, fastest)
        self.noise = noise
        self.train_samples = train_samples
        self.eval_samples = eval_samples
        self.classes = DIRECTIONS + still
        self.input_shape = (1, frames, image_size, image_size)

    def make_splits(self) -> Splits:
        digits = DigitsDataModule(split_seed=self.split_seed)
        digits.setup("fit")
        train, val, test = (
            self._videos(images.images + 1, count, generator)
            for images, count, generator in zip(
                (digits.train, digits.val, digits.test),
                (self.train_samples, self.eval_samples, self.eval_samples),
                generators(self.split_seed),
                strict=True,
            )
        )
        return train, val, test

    def _videos(self, ink: Tensor, count: int, generator: torch.Generator) -> BatchedImages:
        """So many videos of digits with `ink` [digits, 1, h, w]."""
        labels = balanced(count, self.classes)
        chosen = torch.randint(len(ink), (count,), generator=generator)
        start = self.image_size * torch.rand(count, 2, generator=generator)
        slowest, fastest = self.speeds
        speed = slowest + (fastest - slowest) * torch.rand(count, generator=generator)
        speed = torch.where(labels < DIRECTIONS, speed, 0)
        angle = labels * (2 * math.pi / DIRECTIONS)
        step = speed[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)  # [N, 2] to the right and down
        path = start[:, None] + step[:, None] * torch.arange(self.frames)[:, None]  # [N, frames, 2]

        videos = self.noise * torch.randn(count, *self.input_shape, generator=generator)
        for video, digit, centres in zip(
            videos.split(CHUNK), ink[chosen].split(CHUNK), path.split(CHUNK), strict=True
        ):  # fmt: skip
            video += self._moving(digit, centres)
        return BatchedImages(videos, labels)

    def _moving(self, digits: Tensor, centres: Tensor) -> Tensor:
        """Digits [N, 1, h, w] in all frames [N, 1, frames, image_size, image_size], at `centres` [N, frames, 2]."""
        half = self.image_size / 2
        pixels = torch.arange(self.image_size) + 0.5
        right, down = ((pixels - centres[..., axis, None] + half) % self.image_size - half for axis in (0, 1))
        shape = (*centres.shape[:2], self.image_size, self.image_size)
        places = torch.stack([right[:, :, None, :].expand(shape), down[:, :, :, None].expand(shape)], dim=-1)
        places = places.flatten(1, 2) * (2 / self.digit_size)  # [N, frames * H, W, 2], the digit from -1 to 1
        return F.grid_sample(digits, places, align_corners=False).view(len(digits), *self.input_shape)
