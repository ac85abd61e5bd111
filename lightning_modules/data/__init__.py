"""LightningDataModules over data that needs no download."""

from lightning_modules.data.digits import DigitsDataModule

__all__ = ["DigitsDataModule"]
