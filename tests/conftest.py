"""Every test runs seeded, with deterministic algorithms and NaN in fresh memory; interpreted where there is no GPU."""

import os

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before the first import of triton
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only so

import lightning  # noqa: E402
import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

from kernels import backend  # noqa: E402

settings.register_profile("convnets", deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
settings.load_profile("convnets")


@pytest.fixture
def device() -> str:
    return DEVICE


@pytest.fixture(autouse=True)
def reproducible():
    """torch.empty gives NaN under deterministic algorithms, so that a value never written is seen.

    float32 is IEEE's on both sides: how much TF32 an algorithm of cuDNN uses is its own choice.
    """
    lightning.seed_everything(0, verbose=False)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def triton_only():
    """Run on the Triton backend, and prove that the test launched kernels."""
    before = backend.launch_count()
    with backend.use_backend("triton"):
        yield
    assert backend.launch_count() > before, "no Triton kernel was launched"
