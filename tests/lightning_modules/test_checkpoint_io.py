"""Checkpoints replace each other as whole files, without $TMPDIR."""

import os

import pytest
import torch

from lightning_modules.checkpoint_io import DurableCheckpointIO
from tests.full_disk import full_disk


def test_a_checkpoint_is_written_beside_the_old_one(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "absent"))
    path = tmp_path / "run" / "last.ckpt"
    checkpoints = DurableCheckpointIO()
    for value in (1, 2):
        checkpoints.save_checkpoint({"value": torch.tensor(value)}, path)
        assert checkpoints.load_checkpoint(path, weights_only=True) == {"value": torch.tensor(value)}
    assert os.listdir(path.parent) == ["last.ckpt"]


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    checkpoints = DurableCheckpointIO()
    checkpoints.save_checkpoint({"value": 1}, path)
    before = path.read_bytes()
    with full_disk(10_000), pytest.raises(OSError, match="last.ckpt cannot be written: File too large"):
        checkpoints.save_checkpoint({"value": torch.zeros(10_000)}, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["last.ckpt"]


def test_options_for_storage_are_refused_as_by_lightning(tmp_path):
    with pytest.raises(TypeError, match="storage_options"):
        DurableCheckpointIO().save_checkpoint({}, tmp_path / "last.ckpt", storage_options=1)
