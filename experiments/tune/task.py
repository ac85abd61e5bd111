"""What is to be tuned: an operation of a problem."""

from __future__ import annotations

from dataclasses import dataclass

from kernels import tuning
from kernels.problem import Problem
from kernels.tile import Product


@dataclass(frozen=True)
class Task:
    """An operation of a problem, and the product that its launcher asks a tile for on a target."""

    target: str
    problem: Problem
    operation: str
    product: Product

    @staticmethod
    def of(target: str, problem: Problem, operation: str) -> Task:
        with tuning.products_of(target) as products:
            problem.run(operation, *problem.tensors("meta"))
        (product,) = products
        return Task(target, problem, operation, product)

    def __str__(self) -> str:
        return f"{self.operation.replace('_', ' ')} of {self.problem}"
