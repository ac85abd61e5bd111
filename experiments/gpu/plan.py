"""The steps of a GPU run, most valuable first, and what each may take."""

from __future__ import annotations

from importlib.util import find_spec
from shutil import which
from typing import NamedTuple


class Step(NamedTuple):
    """A step of a run.

    Args:
        name: of the step and its module.
        title: of its section in the report.
        limit: seconds that it may take on a GPU.
        packages, programs: that it needs; it is skipped where one is missing.
        background: True if it runs beside the steps that follow, until one of them waits for it.
        waits: True if it waits for the step in the background.
        resumes: True if it goes on from the records of an earlier run; else it starts anew.
        rehearsal: seconds that its rehearsal may take.
    """

    name: str
    title: str
    limit: int
    packages: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    background: bool = False
    waits: bool = False
    resumes: bool = False
    rehearsal: int = 120

    @property
    def module(self) -> str:
        return f"experiments.gpu.steps.{self.name}"

    @property
    def missing(self) -> list[str]:
        """Packages and programs that this machine lacks."""
        return self.missing_packages + [name for name in self.programs if which(name) is None]

    @property
    def missing_packages(self) -> list[str]:
        return [name for name in self.packages if find_spec(name) is None]


TRAINER = ("lightning", "jsonargparse", "torchmetrics", "tensorboard", "torchvision", "sklearn", "skimage")

STEPS = (  # in the background is what leaves the GPU idle, while nothing is timed
    Step("device", "Device", 40),
    Step("host", "Host time of a launch", 45),
    Step("ahead", "Compiled ahead, with estimates", 90, background=True, resumes=True),
    Step("kernels", "Every kernel against float64", 75),
    Step("layers", "Layers: estimate, measured, cuDNN", 130, waits=True, resumes=True),
    Step("sanitizer", "compute-sanitizer", 120, programs=("compute-sanitizer",), background=True),
    Step("tests", "The kernels' tests, compiled", 120, packages=("pytest", "hypothesis")),
    Step("training", "A training step of ResNet-50", 70, waits=True, resumes=True),
    Step("profiler", "Nsight Compute", 60, programs=("ncu",), waits=True),
    Step("tuning", "Tuning where estimate and clock disagree", 45, waits=True, resumes=True),
    Step("fit", "Training on digits", 80, packages=TRAINER, waits=True),
    Step("compile", "torch.compile on layers", 60, waits=True, resumes=True),
)
