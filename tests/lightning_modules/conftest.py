import lightning.pytorch as pl
import pytest

from kernels import use_backend


@pytest.fixture(autouse=True)
def torch_backend():
    """These tests are about what surrounds the kernels, which tests/kernels holds to PyTorch."""
    with use_backend("torch"):
        yield


@pytest.fixture
def trainer(tmp_path) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(max_epochs=2, accelerator="cpu", default_root_dir=tmp_path, **quiet)
