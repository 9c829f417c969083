"""A canary's way from a few calls to all of them, or back: what is decided after each step. Pure: counts in, weights out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

FULL: Final = 100
"""Percent."""
FAILURES: Final = frozenset(("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"))
"""Statuses that speak against a version: those that outlier detection takes for errors too."""


class Verdict(Enum):
    """What is next."""

    WAIT = "too few calls to tell"
    STEP = "one step more"
    DONE = "promoted"
    ABORT = "aborted"


@dataclass(frozen=True, slots=True)
class Counts:
    """Calls of one version, as its callers counted them."""

    calls: int = 0
    failures: int = 0

    @property
    def success_percent(self) -> float:
        """100 where there were no calls."""
        return 100.0 * (self.calls - self.failures) / self.calls if self.calls else 100.0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.calls + other.calls, self.failures + other.failures)


def since(before: Mapping[str, Counts], now: Mapping[str, Counts]) -> Counts:
    """What came between two looks at every caller; one that began anew has counted from nothing."""
    total = Counts()
    for caller, counts in now.items():
        old = before.get(caller, Counts())
        is_anew = counts.calls < old.calls or counts.failures < old.failures
        total += counts if is_anew else Counts(counts.calls - old.calls, counts.failures - old.failures)
    return total


@dataclass(slots=True)
class Promotion:
    """One canary: the last version of a split gets more and more of the calls."""

    weights: dict[str, int]
    """By version, in order; the last is the canary."""
    abort_below: float
    """Percent of success below which it is over."""
    step: int = 10
    """Points of 100 that the canary gets more each time."""
    minimum_calls: int = 20
    """With fewer since the last step nothing is decided."""
    _first: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self._first = dict(self.weights)

    @property
    def canary(self) -> str:
        """The version that is promoted."""
        return list(self.weights)[-1]

    @property
    def percent(self) -> float:
        """The canary's share."""
        return 100.0 * self.weights[self.canary] / sum(self.weights.values())

    def judge(self, seen: Counts) -> Verdict:
        """What is next, by the canary's calls since the last step; `weights` are then those that are to be."""
        if seen.calls < self.minimum_calls:
            return Verdict.WAIT
        if seen.success_percent < self.abort_below:
            self.go_back()
            return Verdict.ABORT
        if self.percent >= FULL:
            return Verdict.DONE
        self._share(min(FULL, int(self.percent) + self.step))
        return Verdict.STEP

    def go_back(self) -> None:
        """All calls to the other versions, in their proportion."""
        self._share(0)

    def _share(self, percent: int) -> None:
        others = {version: weight for version, weight in self._first.items() if version != self.canary}
        total = sum(others.values())
        left = FULL - percent
        self.weights = {
            **{version: weight * left for version, weight in others.items()},
            self.canary: percent * total,
        }
