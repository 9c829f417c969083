"""What we want to reach: the one place where it is written down. The report says of each aim whether the last run reached it."""

from dataclasses import dataclass
from statistics import median
from typing import Final

from benchmarks.measure import Sample


@dataclass(frozen=True, slots=True)
class Aim:
    """A limit on the ratio of two figures of one row."""

    title: str
    row: str
    metric: str
    subject: str
    against: str
    at_most: float | None = None
    at_least: float | None = None


AIMS: Final = (
    Aim("100 in flight, first milestone", "unary-100", "cpu_us", "sidecar", "envoy", at_most=0.5),
    Aim("100 in flight", "unary-100", "cpu_us", "sidecar", "envoy", at_most=0.25),
    Aim("100 in flight", "unary-100", "cpu_us", "sidecar", "haproxy", at_most=0.9),
    Aim("100 in flight, TLS", "tls-100", "cpu_us", "sidecar", "envoy", at_most=0.30),
    Aim("100 in flight, TLS", "tls-100", "cpu_us", "sidecar", "haproxy", at_most=1.0),
    Aim("100 in flight, headers differ in each call", "headers-100", "cpu_us", "sidecar", "envoy", at_most=0.45),
    Aim("1 in flight", "unary-1", "cpu_us", "sidecar", "envoy", at_most=0.55),
    Aim("1 in flight", "unary-1", "cpu_us", "sidecar", "haproxy", at_most=0.95),
    Aim("added p50 at half load", "latency", "added_p50_ms", "sidecar", "envoy", at_most=0.8),
    Aim("added p99 at half load", "latency", "added_p99_ms", "sidecar", "envoy", at_most=1.1),
    Aim("10,000 routes against 1 route", "routes", "cpu_us", "sidecar/10000", "sidecar/1", at_most=1.1),
    Aim("1 MiB messages, MB/s", "huge", "mb_per_s", "sidecar", "envoy", at_least=0.8),
    Aim("RSS idle with 100 routes", "memory", "idle_mib", "sidecar", "envoy", at_most=1.0),
)


def ratios(aim: Aim, samples: dict[str, list[Sample]]) -> list[float]:
    """The ratio in each round in which both were measured, as the two of a round met the same conditions.

    Empty if in half of the rounds or more a figure was not above zero: then what was to be measured (an added latency) is smaller than the noise.
    """
    pairs = list(zip(samples.get(aim.subject, ()), samples.get(aim.against, ()), strict=False))
    figures = [(subject.get(aim.metric, 0.0), against.get(aim.metric, 0.0)) for subject, against in pairs]
    found = [subject / against for subject, against in figures if subject > 0 and against > 0]
    return found if 2 * len(found) > len(pairs) else []


def is_reached(aim: Aim, ratios: list[float]) -> bool | None:
    """Whether the median ratio keeps the limit; None if nothing was measured."""
    if not ratios:
        return None
    middle = median(ratios)
    return (aim.at_most is None or middle <= aim.at_most) and (aim.at_least is None or middle >= aim.at_least)
