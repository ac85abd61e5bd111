"""Imports go one way: each room knows the ones before it only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = {
    "kernels.shape": 0, "kernels.backend": 0, "kernels.hazards": 0, "kernels.tracing": 0, "kernels.targets": 0,
    "kernels.sass": 0, "kernels.trips": 0, "kernels.flow": 0, "kernels.tile": 0, "kernels.plan": 0, "kernels.model": 1,
    "kernels.table": 1, "kernels.heuristics": 1, "kernels.candidates": 1, "kernels.pairing": 1, "kernels.estimate": 1,
    "kernels.checks": 1, "kernels.tuning": 1, "kernels.grid": 1, "kernels.boxes": 1, "kernels.implicit_gemm": 1,
    "kernels.norm_parts": 1, "kernels.conv": 2, "kernels.transpose": 2, "kernels.weight_gradient": 2, "kernels.norm": 2,
    "kernels.pool": 2, "kernels.reference": 2, "kernels.inspect": 2, "kernels.norm_gradient": 2, "kernels.problem": 3,
    "kernels.ops": 3, "kernels.functional": 4, "kernels.layers": 5, "kernels.torch_fallback": 6, "kernels.fusion": 6,
    "kernels.converted": 6, "kernels.conversion": 6, "kernels": 7, "lightning_modules": 8, "experiments": 9,
    "tests": 10,
}  # fmt: skip
# targets and backend know nothing of each other; tuning and inspect ask the backend where they run.


def level(module: str) -> int | None:
    """The layer of the longest known prefix of a module's name; None for a foreign one."""
    while module:
        if module in LAYERS:
            return LAYERS[module]
        module = module.rpartition(".")[0]
    return None


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


FILES = sorted(f for room in ("kernels", "lightning_modules", "experiments") for f in (ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_go_one_way(file):
    module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    here = level(module)
    for name in imported(file):
        there = level(name)
        if there is not None and name.split(".")[0] == module.split(".")[0] and there == here:
            continue
        assert there is None or there < here, f"{module} imports {name}"


def test_kernels_need_torch_and_triton_only():
    foreign = {name.split(".")[0] for file in (ROOT / "kernels").rglob("*.py") for name in imported(file)}
    standard = set(__import__("sys").stdlib_module_names)
    assert foreign - standard == {"torch", "triton", "kernels"}
