"""A disk that fills up stops the logs and not the training."""

import threading

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_modules.loggers import let_caller_report, make_tolerant
from tests.full_disk import full_disk


@pytest.mark.parametrize("kind", [TensorBoardLogger, CSVLogger])
def test_training_goes_on_without_logs(kind, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(threading, "excepthook", let_caller_report)
    logger = kind(tmp_path)
    make_tolerant(logger)
    assert isinstance(logger, kind)
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.save()
    with pytest.warns(UserWarning, match=r"version_0 cannot be written: File too large; training") as warned:
        with full_disk(2000):
            for step in range(1, 300):
                logger.log_metrics({"loss": 1.0}, step)
                logger.save()
        logger.finalize("success")
    assert len(warned) == 1 and capfd.readouterr().err == ""


def test_what_was_logged_before_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", let_caller_report)
    logger = TensorBoardLogger(tmp_path)
    make_tolerant(logger)
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.save()
    with pytest.warns(UserWarning, match="cannot be written"), full_disk(500):
        for step in range(1, 50):
            logger.log_metrics({"loss": 1.0}, step)
            logger.save()
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    steps = [event.step for event in events.Scalars("loss")]
    assert 0 < len(steps) < 50 and steps == list(range(len(steps)))


@pytest.mark.parametrize("kind", [TensorBoardLogger, CSVLogger])
def test_a_directory_that_cannot_be_written_is_an_error_at_once(kind, tmp_path):
    (tmp_path / "file").touch()
    logger = kind(tmp_path / "file", name="")
    make_tolerant(logger)
    for write in (lambda: logger.experiment, lambda: logger.log_metrics({"loss": 1.0}, step=0)):
        with pytest.raises(ValueError, match=r"file/version_0 cannot be written: (Not a directory|File exists)"):
            write()


def test_a_value_that_cannot_be_logged_is_still_an_error(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    make_tolerant(logger)
    with pytest.raises(ValueError, match="not supported"):
        logger.log_metrics({"loss": "text"}, step=0)
