"""How long an epoch takes."""

import time

import lightning.pytorch as pl

TAG = "time/epoch"


class EpochTime(pl.Callback):
    """Logs the seconds of each epoch, its validation included, as `time/epoch`."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for logger in trainer.loggers:
            logger.log_metrics({TAG: time.perf_counter() - self._started}, step=trainer.global_step)
