"""The backend rule, in this process and in fresh ones: interpreted, compiled, without triton, interpreted too late."""

import os
import subprocess
import sys
import textwrap
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import kernels
from kernels import backend, functional

needs_triton = pytest.mark.skipif(not backend.AVAILABLE, reason="triton is not installed")


def python(code: str, **environment: str) -> str:
    """Output of a fresh interpreter that runs `code`, in an environment without this process's choices."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "CONVNETS_BACKEND")}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=inherited | {"CUDA_VISIBLE_DEVICES": ""} | environment, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_choice_holds_for_a_block_and_is_restored():
    assert backend.uses_triton(torch.zeros(1)) == backend.INTERPRETING
    with kernels.use_backend("torch"):
        assert not backend.uses_triton(torch.zeros(1))
        with kernels.use_backend("auto"):
            assert backend.uses_triton(torch.zeros(1)) == backend.INTERPRETING
        assert not backend.uses_triton(torch.zeros(1))
    assert backend.uses_triton(torch.zeros(1)) == backend.INTERPRETING


def test_a_choice_can_head_two_blocks():
    choice = kernels.use_backend("torch")
    for _ in range(2):
        with choice:
            assert not backend.uses_triton(torch.zeros(1))
        assert backend.uses_triton(torch.zeros(1)) == backend.INTERPRETING


def test_a_choice_without_a_block_ends_with_the_block_around_it():
    choices = len(backend._choices)
    with kernels.use_backend("torch"):
        for name in ("triton", "torch", "auto"):
            kernels.use_backend(name)
            assert backend._choice == name
        assert len(backend._choices) == choices + 2
    assert backend._choice == "auto" and len(backend._choices) == choices


def test_blocks_of_threads_that_overlap_leave_no_choice_behind():
    first, second = kernels.use_backend("torch"), kernels.use_backend("triton")
    first.__enter__(), second.__enter__()
    assert backend._choice == "triton"
    first.__exit__(None, None, None)
    assert backend._choice == "triton"
    second.__exit__(None, None, None)
    assert backend._choice == "auto"


def test_threads_may_launch_at_once(device, triton_only):
    x, weight = torch.randn(2, 3, 6, 6, device=device), torch.randn(4, 3, 3, 3, device=device)
    expected = functional.conv2d(x, weight)
    before = backend.launch_count()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: functional.conv2d(x, weight), range(12)))
    assert all(torch.equal(y, expected) for y in results)
    assert backend.launch_count() == before + 12


def test_launches_of_many_threads_are_all_counted():
    before = backend.launch_count()
    kernel = defaultdict(lambda: lambda *_, **__: None)  # takes any grid
    tensor = torch.zeros(1)
    with ThreadPoolExecutor(8) as executor:
        list(executor.map(lambda _: [backend.launch(kernel, (1,), tensor) for _ in range(2000)], range(8)))
    assert backend.launch_count() == before + 16_000


@needs_triton
def test_fused_multiply_adds_are_chosen_by_the_launch_which_may_choose_otherwise():
    chosen = []
    kernel = defaultdict(lambda: lambda *_, **options: chosen.append(options["enable_fp_fusion"]))
    backend.launch(kernel, (1,), torch.zeros(1))
    backend.launch(kernel, (1,), torch.zeros(1), enable_fp_fusion=False)
    assert chosen == [True, False]


def test_torch_backend_launches_nothing(device):
    before = backend.launch_count()
    with kernels.use_backend("torch"):
        functional.conv2d(torch.ones(1, 1, 4, 4, device=device), torch.ones(1, 1, 2, 2, device=device))
    assert backend.launch_count() == before


def test_unknown_backend_is_refused_and_changes_nothing():
    with pytest.raises(ValueError, match="backend must be one of 'auto', 'triton', 'torch', got 'cuda'"):
        kernels.use_backend("cuda")
    assert backend.uses_triton(torch.zeros(1)) == backend.INTERPRETING


CONVOLVE = """
    import torch, kernels
    from kernels import backend, functional
    def convolve():
        try:
            functional.conv2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 2, 2))
        except RuntimeError as error:
            return str(error)
        return backend.launch_count()
"""


@needs_triton
def test_environment_chooses():
    code = CONVOLVE + "    print(convolve(), backend.explain('cpu'))"
    assert python(code).startswith("0 backend: torch on cpu (auto: on the CPU Triton runs only interpreted")
    assert python(code, TRITON_INTERPRET="1") == "1 backend: triton, interpreted, on cpu (auto)"
    assert python(code, TRITON_INTERPRET="1", CONVNETS_BACKEND="torch").startswith("0 backend: torch on cpu ('torch'")


@needs_triton
def test_triton_on_the_cpu_must_be_interpreted():
    said = python(CONVOLVE + "    kernels.use_backend('triton'); print(convolve())")
    assert said.startswith("backend 'triton' cannot run on a cpu tensor: set TRITON_INTERPRET=1") and "\n" not in said


@needs_triton
def test_interpreting_asked_for_too_late_is_said():
    late = "    import os; os.environ['TRITON_INTERPRET'] = '1'\n"
    said = python(CONVOLVE + late + "    print(convolve())")
    assert said.startswith("TRITON_INTERPRET=1 was set after triton had been imported: set it") and "\n" not in said


def test_without_triton_everything_runs_on_torch():
    absent = """
        import importlib.util as util
        find = util.find_spec
        util.find_spec = lambda name, *a: None if name == "triton" else find(name, *a)
    """
    code = textwrap.dedent(absent) + textwrap.dedent(CONVOLVE) + "print(convolve(), backend.explain('cpu'))\n"
    code += "import sys; print('kernels.conv' in sys.modules)"
    assert python(code) == "0 backend: torch on cpu (auto: triton is not installed)\nFalse"
    asked = textwrap.dedent(absent) + textwrap.dedent(CONVOLVE) + "kernels.use_backend('triton'); print(convolve())"
    assert python(asked).startswith("backend 'triton' cannot run on a cpu tensor: triton is not installed")


@pytest.mark.skipif(not backend.INTERPRETING, reason="a GPU has bfloat16")
def test_bfloat16_interpreted_is_float32_rounded(triton_only):
    x, weight = torch.randn(2, 3, 6, 6).bfloat16(), torch.randn(4, 3, 3, 3).bfloat16()
    exact = functional.conv2d(x.float(), weight.float())
    assert torch.equal(functional.conv2d(x, weight), exact.bfloat16())
