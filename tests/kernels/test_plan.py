"""Plans: remembered for what they follow from, and launched directly as Triton itself would launch."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from kernels import backend, functional, plan
from kernels.tuning import Tile, use_tile
from tests.kernels.problems import lay_out

pytestmark = pytest.mark.skipif(not backend.AVAILABLE, reason="triton is not installed")

CHECKS = (
    "cases misaligned misaligned_anywhere misaligned_box precision blocks hooks pre_run_hooks what_changes_kernels"
    " caches_cleared device_and_stream empty threads speed"
).split()
KERNELS = (
    "forward_kernel transpose_kernel weight_gradient_kernel sum_kernel pool_kernel pool_gradient_kernel"
    " statistics_kernel normalise_kernel gradient_sums_kernel gradient_kernel"
).split()


def direct_launches() -> dict:
    """Return what tests/kernels/direct_launches.py found, in a process that does not interpret."""
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "CONVNETS_BACKEND")}
    result = subprocess.run(
        [sys.executable, "-m", "tests.kernels.direct_launches"],
        env=environment | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc, as Triton's launcher does")
def test_direct_launches_are_those_of_triton():
    """One test of all checks, as they share a process; the name of each that failed comes with its traceback."""
    found = direct_launches()
    assert set(found) == set(CHECKS)
    compared = found["cases"]
    failed = [f"{name}: {text}" for name, text in found.items() if isinstance(text, str)]
    assert not failed, "\n".join(failed)
    assert set(compared) == set(KERNELS) and min(compared.values()) >= 2


def test_another_batch_needs_no_other_kernel_and_another_size_few():
    """A size has its own global average pooling; what widens a window over elements asks if 16 divides their number."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.specialisations"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    pooling = ["_pool_gradient_kernel", "_pool_kernel"]
    over_elements = ["_forward_kernel", *pooling, "_weight_gradient_kernel"]
    for name, found in json.loads(result.stdout).items():
        first = found.pop("first")
        assert len(first) > 20 and first.count("_forward_kernel") > 5, name
        for shape, others in found.items():
            batch, _, side, _ = map(int, shape.split("x"))
            expected = [] if batch != 32 else over_elements if side % 16 else pooling
            assert others == expected, f"{name}, {shape}"


@pytest.fixture
def made(monkeypatch):
    """Calls of a function that plans nothing."""
    calls = []

    @plan.planned
    def planned(*arguments):
        calls.append(arguments)
        return object()

    planned.calls = calls
    return planned


def test_a_plan_is_remembered_for_what_it_follows_from(made):
    x = torch.zeros(2, 4, 6, 6)
    first = made(x, None, 3)
    assert made(torch.ones_like(x), None, 3) is first and len(made.calls) == 1
    others = [
        (x[:1], None, 3),
        (x.transpose(2, 3), None, 3),
        (lay_out(x, "channels_last"), None, 3),
        (lay_out(x, "expanded"), None, 3),
        (x.half(), None, 3),
        (x.bfloat16(), None, 3),
        (x.to("meta"), None, 3),
        (x, x, 3),
        (x, None, 4),
        (None, x, 3),
    ]
    plans = [first, *(made(*other) for other in others)]
    assert len(set(map(id, plans))) == len(made.calls) == len(others) + 1
    assert [made(*other) for other in others] == plans[1:] and len(made.calls) == len(others) + 1


def test_two_functions_with_equal_arguments_have_plans_of_their_own():
    one, two = (plan.planned(lambda x, name=name: name) for name in ("one", "two"))
    x = torch.zeros(3)
    assert [one(x), two(x), one(x)] == ["one", "two", "one"]


def test_plans_are_kept_apart_by_reasons(made):
    x = torch.zeros(3)
    usual = made(x)
    with plan.apart("reason"):
        reason = made(x)
        with plan.apart("other"):
            nested = made(x)
        assert made(x) is reason
    with plan.apart("other"):
        other = made(x)
    assert made(x) is usual and len({id(p) for p in (usual, reason, nested, other)}) == 4
    with plan.apart("reason"):
        assert made(x) is reason
    with pytest.raises(ZeroDivisionError), plan.apart("reason"):
        raise ZeroDivisionError
    assert made(x) is usual


def test_reasons_of_threads_that_overlap_all_end():
    before = plan.reasons()
    one, other = plan.apart("reason"), plan.apart("other")
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert plan.reasons() == (*before, "other")
    other.__exit__(None, None, None)
    assert plan.reasons() == before


def test_what_another_thread_had_decided_is_not_remembered():
    """Its block begins and ends while a plan is made."""

    @plan.planned
    def interrupted(x):
        with plan.apart("reason"):
            return object()

    x = torch.zeros(3)
    assert interrupted(x) is not interrupted(x)


def test_what_fails_to_plan_is_not_remembered():
    calls = []

    @plan.planned
    def failing(x):
        calls.append(x)
        raise ValueError("no plan")

    for _ in range(2):
        with pytest.raises(ValueError, match="no plan"):
            failing(torch.zeros(1))
    assert len(calls) == 2


def test_plans_are_bounded(made, monkeypatch):
    monkeypatch.setattr(plan, "CACHE_SIZE", 8)
    monkeypatch.setattr(plan, "_plans", {})
    for size in range(1, 40):
        made(torch.zeros(size))
        assert len(plan._plans) <= 8
    assert made(torch.zeros(39)) and len(made.calls) == 39


def launches(monkeypatch, call) -> list[plan.Launch]:
    """Return the launches of a call."""
    found = []
    launch = plan.Launch.__call__
    with monkeypatch.context() as patch:
        patch.setattr(plan.Launch, "__call__", lambda self, *tensors: found.append(self) or launch(self, *tensors))
        call()
    return found


def test_launches_follow_from_shapes_and_forced_blocks(device, triton_only, monkeypatch):
    weight = torch.randn(4, 3, 3, 3, device=device)

    def convolve(batch: int) -> plan.Launch:
        x = torch.randn(batch, 3, 6, 6, device=device)
        (launch,) = launches(monkeypatch, lambda: functional.conv2d(x, weight))
        return launch

    usual = convolve(2)
    assert convolve(2) is usual is not convolve(3)
    blocks = [Tile(16, 16, 16), Tile(32, 16, 16)]
    forced = []
    for block in blocks * 2:
        with use_tile(block):
            forced.append(convolve(2))
    assert forced[:2] == forced[2:] and len({usual, *forced}) == 3 and convolve(2) is usual


@pytest.mark.parametrize("training", [True, False], ids=["training", "running"])
def test_a_batch_norm_takes_each_eps_and_momentum(training, device, triton_only):
    x, weight = torch.randn(3, 4, 5, device=device), torch.randn(4, device=device)
    for eps, momentum in ((1e-5, 0.1), (0.5, 0.1), (1e-5, 0.9), (1, 0.1), (1e-5, 1), (1e-5, 0), (1e-5, 0.1)):
        results = []
        for function in (functional.batch_norm, torch.nn.functional.batch_norm):
            running = torch.zeros(4, device=device), torch.ones(4, device=device)
            y = function(x, *running, weight, None, training, momentum, eps)
            results.append((y, *running))
        torch.testing.assert_close(*results)


def test_threads_share_plans_of_many_shapes(device, triton_only):
    """As many plans as threads are made at once, of as many shapes, and the cache overflows all the while."""
    weight = torch.randn(2, 2, 3, 3, device=device)
    inputs = [torch.randn(1, 2, 3 + n % 4, 3 + n // 4, device=device) for n in range(12)]

    def work(number: int) -> list[torch.Tensor]:
        order = [(number + n) % len(inputs) for n in range(len(inputs))]
        results = {n: functional.max_pool2d(functional.conv2d(inputs[n], weight, padding=1), 2) for n in order}
        return [results[n] for n in range(len(inputs))]

    expected = work(0)
    before = backend.launch_count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "CACHE_SIZE", 5)
        with ThreadPoolExecutor(8) as executor:
            results = list(executor.map(work, range(8)))
    assert backend.launch_count() - before == 8 * 2 * len(inputs)
    assert all(torch.equal(y, e) for result in results for y, e in zip(result, expected, strict=True))
