import lightning.pytorch as pl
import pytest
import torch

from kernels import use_backend
from lightning_modules.cuda_graph import Graph
from tests.conftest import NEEDS_GPU
from tests.lightning_modules.captured import Rerun


@pytest.fixture(autouse=True)
def torch_backend():
    """These tests are about what surrounds the kernels, which tests/kernels holds to PyTorch."""
    with use_backend("torch"):
        yield


@pytest.fixture
def trainer(tmp_path) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(max_epochs=2, accelerator="cpu", default_root_dir=tmp_path, **quiet)


@pytest.fixture(
    params=[
        pytest.param(Rerun, id="stand-in"),
        pytest.param(Graph, id="CUDA", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason=NEEDS_GPU)),
    ]
)
def graph(request) -> type[Graph]:
    return request.param
