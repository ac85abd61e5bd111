"""What a recipe states beforehand under its key `expect`, and `convnets results` holds it to."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Expectation:
    """Bounds of a recipe's result, on the average over seeds.

    Args:
        metric: a figure of the test, as `test/accuracy`.
        at_least, at_most: its bound, one of the two; it says whether more is better.
        margin: by which it must be better than a linear classifier of the same data; None where none compares.
        minutes: that training may take with the torch backend on 2 CPU cores; None for what is not run here.
        ablation: options of `convnets fit` that take away what must help.
        gain: by which the metric must be better than with the ablation.

    Raises:
        ValueError: not one of at_least and at_most is given.
    """

    metric: str
    at_least: float | None = None
    at_most: float | None = None
    margin: float | None = None
    minutes: float | None = None
    ablation: list[str] = field(default_factory=list)
    gain: float = 0.0

    def __post_init__(self) -> None:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"expect: give one of at_least and at_most, got {self.at_least} and {self.at_most}")

    @property
    def bound(self) -> str:
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"

    def advantage(self, value: float, other: float) -> float:
        """By how much a value is better than another one."""
        return value - other if self.at_least is not None else other - value

    def unmet(self, value: float, seconds: Sequence[float], linear: float | None, without: float | None) -> list[str]:
        """What is not as expected, each in words; NaN never is.

        Args:
            value: of the metric, the average over seeds.
            seconds: that each training took.
            linear, without: the metric of the linear classifier and of the ablation, None where there is none.
        """
        limit = self.at_least if self.at_least is not None else self.at_most
        assert limit is not None
        found = []
        if not self.advantage(value, limit) >= 0:
            found.append(f"{self.metric} is {value:.4f}, expected is {self.bound}")
        for name, other, least in (("a linear classifier", linear, self.margin), ("the ablation", without, self.gain)):
            if other is not None and least is not None and not self.advantage(value, other) >= least:
                better = self.advantage(value, other)
                found.append(
                    f"{self.metric} is better than {name}'s {other:.4f} by {better:.4f}, expected is {least:g}"
                )
        if self.minutes is not None and seconds and max(seconds) > 60 * self.minutes:
            found.append(f"training took {max(seconds) / 60:.1f} minutes, expected are {self.minutes:g}")
        return found
