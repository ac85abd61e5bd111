"""Every test runs seeded, with deterministic algorithms and NaN in fresh memory; interpreted where there is no GPU.

With CONVNETS_TESTS=compiled in the environment nothing is interpreted, whatever the machine. Where it has no GPU, the
tests that need one are skipped. The others must pass, as they must on a machine with a GPU: there a CPU tensor cannot
run on the Triton backend.
"""

import os
import random
import signal

import numpy as np
import torch

HAS_GPU = torch.cuda.is_available()
# The environment, and not an option of pytest: it is needed before the first import of triton, and in xdist's workers.
INTERPRET = not HAS_GPU and os.environ.get("CONVNETS_TESTS") != "compiled"
DEVICE = "cpu" if INTERPRET else "cuda"
NEEDS_GPU = "needs a GPU"
if INTERPRET:
    os.environ["TRITON_INTERPRET"] = "1"  # before the first import of triton
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only so
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a background job: what is interrupted would not notice
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

from kernels import backend, plan  # noqa: E402

settings.register_profile("convnets", deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
settings.load_profile("convnets")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests on `device` where that is a GPU that the machine lacks."""
    if DEVICE == "cuda" and not HAS_GPU:
        for item in items:
            if "device" in item.fixturenames:
                item.add_marker(pytest.mark.skip(reason=NEEDS_GPU))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the number of tests that were skipped for want of a GPU."""
    skipped = terminalreporter.stats.get("skipped", [])
    if count := sum(NEEDS_GPU in str(report.longrepr) for report in skipped):
        terminalreporter.write_line(f"{count} tests skipped: each {NEEDS_GPU}, and there is none")


@pytest.fixture
def device() -> str:
    return DEVICE


@pytest.fixture(autouse=True)
def reproducible():
    """torch.empty gives NaN under deterministic algorithms, so that a value never written is seen.

    float32 is IEEE's on both sides: how much TF32 an algorithm of cuDNN uses is its own choice.
    """
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.allow_tf32 = False
    with plan.apart(object()):  # a test may replace what a plan is made of
        yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def triton_only():
    """Run on the Triton backend, and prove that the test launched kernels."""
    before = backend.launch_count()
    with backend.use_backend("triton"):
        yield
    assert backend.launch_count() > before, "no Triton kernel was launched"
