"""LightningDataModules: `vision` for data sets that torchvision reads, the others over data that need no download."""

from lightning_modules.data.digit_scenes import DigitScenesDataModule
from lightning_modules.data.digits import DigitsDataModule
from lightning_modules.data.faces import FacesDataModule
from lightning_modules.data.moving_digits import MovingDigitsDataModule
from lightning_modules.data.patches import PatchesDataModule
from lightning_modules.data.textures import TexturesDataModule
from lightning_modules.data.vision import (
    CIFAR10DataModule,
    CIFAR100DataModule,
    FashionMNISTDataModule,
    ImageFolderDataModule,
    MNISTDataModule,
)
from lightning_modules.data.waveforms import WaveformsDataModule

__all__ = [
    "CIFAR100DataModule",
    "CIFAR10DataModule",
    "DigitScenesDataModule",
    "DigitsDataModule",
    "FacesDataModule",
    "FashionMNISTDataModule",
    "ImageFolderDataModule",
    "MNISTDataModule",
    "MovingDigitsDataModule",
    "PatchesDataModule",
    "TexturesDataModule",
    "WaveformsDataModule",
]
