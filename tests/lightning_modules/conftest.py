import pytest

from kernels import use_backend


@pytest.fixture(autouse=True)
def torch_backend():
    """These tests are about what surrounds the kernels, which tests/kernels holds to PyTorch."""
    with use_backend("torch"):
        yield
