"""What we want to reach with the control plane: the one place where it is written down. The report says of each aim whether the last run reached it."""

from dataclasses import dataclass
from statistics import median
from typing import Final

Sample = dict[str, float]
Samples = dict[str, dict[str, list[Sample]]]
"""By row and way, one sample a round."""

REMORA: Final = "remora/*"
GO: Final = "go/*"
"""The better of the variants, in each round."""


@dataclass(frozen=True, slots=True)
class Aim:
    """A limit on a figure, or on its ratio to another one."""

    title: str
    metric: str
    subject: tuple[str, str]
    """Row and way; `remora/*` takes the better variant of each round."""
    at_most: float
    against: tuple[str, str] | None = None


AIMS: Final = (
    Aim("one endpoint change, last ACK", "last_ms", ("endpoint/1000", REMORA), 1.5, ("endpoint/1000", GO)),
    Aim("the same, state of the world", "last_ms", ("endpoint/1000", "remora/sotw"), 1.5, ("endpoint/1000", "go/sotw")),
    Aim("the same, delta", "last_ms", ("endpoint/1000", "remora/delta"), 1.5, ("endpoint/1000", "go/delta")),
    *(
        Aim(
            f"one endpoint change among 10,000 services against 1,000, {what}",
            metric,
            ("endpoint/100-of-10000", way),
            1.3,
            ("endpoint/100", way),
        )
        for way in ("remora/sotw", "remora/delta")
        for metric, what in (("last_ms", "last ACK"), ("push_us", "CPU per push"))
    ),
    *(
        Aim(f"RSS per idle stream, {what}, KiB", "rss_kib", (row, way), 60.0)
        for way in ("remora/sotw", "remora/delta")
        for row, what in (
            ("open/1000", "20 streams on a connection"),
            ("open/1000-own", "a connection for each stream"),
        )
    ),
    Aim("100 changes in 10 ms, pushes to each node", "pushes", ("burst/1000", REMORA), 5.0),
)


def _figures(samples: Samples, place: tuple[str, str], metric: str) -> list[float]:
    """The figures of a row and way, by round."""
    row, way = place
    ways = samples.get(row, {})
    if not way.endswith("/*"):
        return [sample[metric] for sample in ways.get(way, ())]
    found = [figures for name, figures in ways.items() if name.startswith(way[:-1]) and figures]
    return [min(sample[metric] for sample in of_round) for of_round in zip(*found, strict=False)] if found else []


def measured(aim: Aim, samples: Samples) -> list[float]:
    """What an aim is about, by round."""
    subject = _figures(samples, aim.subject, aim.metric)
    if aim.against is None:
        return subject
    against = _figures(samples, aim.against, aim.metric)
    return [one / other for one, other in zip(subject, against, strict=False) if other > 0]


def is_reached(aim: Aim, values: list[float]) -> bool | None:
    """Whether the median keeps the limit; None if nothing was measured."""
    return median(values) <= aim.at_most if values else None
