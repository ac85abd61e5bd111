"""What an experiment of the lecture gives: a picture, numbers, and claims that they are held to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from matplotlib.figure import Figure

Origin = Literal["book", "paper", "arithmetic", "stated beforehand"]
Relation = Literal["=", ">=", "<="]


@dataclass(frozen=True)
class Claim:
    """A number that must come out.

    Args:
        text: what it is, in words and with its unit.
        expected: the number, of which `origin` says where it is from.
        measured: what the experiment found.
        relation: of the number measured to the one expected.
        within: how far from `expected` a number may be that must be equal; for sums of floats.
    """

    text: str
    expected: float
    measured: float
    origin: Origin = "arithmetic"
    relation: Relation = "="
    within: float = 0.0

    @property
    def holds(self) -> bool:
        if self.relation == "=":
            return abs(self.measured - self.expected) <= self.within  # false for NaN
        return self.measured >= self.expected if self.relation == ">=" else self.measured <= self.expected

    @property
    def expectation(self) -> str:
        """The number expected, as it is written."""
        sign = {"=": "", ">=": "at least ", "<=": "at most "}[self.relation]
        tolerance = f" within {self.within:.3g}" if self.within else ""
        return f"{sign}{written(self.expected)}{tolerance}"


@dataclass(frozen=True)
class Example:
    """The outcome of an experiment; `numbers` are others worth keeping, as JSON can hold them."""

    figure: Figure
    claims: list[Claim]
    numbers: dict[str, Any] = field(default_factory=dict)


def written(number: float) -> str:
    """A number as a reader wants it: whole ones in full, others to four digits."""
    return f"{number:,.0f}" if float(number).is_integer() and abs(number) < 1e15 else f"{number:.4g}"
