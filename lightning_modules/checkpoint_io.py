"""Checkpoints that an interruption, a power failure or a full disk leaves whole."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lightning_modules.files import replace


class DurableCheckpointIO(TorchCheckpointIO):
    """Lightning's CheckpointIO, which writes a file of a local disk beside the old one and then renames it.

    Lightning writes to $TMPDIR and copies from there where that is another file system: a run that ends meanwhile
    leaves a part of a file. On other than local file systems this is Lightning's own.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            OSError: the file cannot be written; an earlier one is left as it was.
        """
        if storage_options is not None or "file" not in get_filesystem(path).protocol:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = io.BytesIO()
        torch.save(checkpoint, content)
        place = Path(str(path).removeprefix("file://"))
        place.parent.mkdir(parents=True, exist_ok=True)
        replace(place, content.getbuffer())
