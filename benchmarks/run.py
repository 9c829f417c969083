"""Measuring: rows one by one, in a row the ways in turn, round after round, so that all meet the same conditions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from benchmarks.fleet import Fleet, Target, Way
from benchmarks.load.wire import LoadError
from benchmarks.measure import Sample
from benchmarks.processes import BenchError
from benchmarks.proxies import PROXIES
from benchmarks.rows import Row

T = TypeVar("T")


@dataclass(slots=True)
class Result:
    """What a row gave."""

    row: Row
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    """By label, one sample a round."""
    note: str = ""
    errors: dict[str, str] = field(default_factory=dict)
    """By label: why there is no figure."""


def usable_ways(row: Row, missing: dict[str, str], names: Sequence[str]) -> tuple[Way, ...]:
    """The ways of a row that can run here: installed, asked for, and able to speak TLS if the row does."""
    return tuple(
        way
        for way in row.ways
        if way.proxy not in missing
        and (not names or way.proxy in names)
        and (not way.setup.is_tls or PROXIES[way.proxy].has_tls())
    )


def waits_for_us(row: Row) -> bool:
    """True for a row that our sidecar cannot run yet: then the others are no news."""
    return row.setup.is_tls and not PROXIES["sidecar"].has_tls()


def measure(
    fleet: Fleet, row: Row, ways: Sequence[Way], *, rounds: int, scale: float, on_step: Callable[[str], None]
) -> Result:
    """Measure a row. A way on which anything fails is left out from there on, has no figures, and is named in `errors`."""
    result = Result(row)
    fleet.keep_only(ways)
    left = list(ways)

    def attempt(way: Way, action: Callable[[], T]) -> T | None:
        on_step(way.label)
        try:
            return action()
        except (LoadError, BenchError) as error:
            result.errors[way.label] = str(error)
            left.remove(way)
            return None

    if not row.is_fresh:
        started = [attempt(way, partial(_warm_up, fleet, row, way, scale)) for way in ways]
        if row.prepare is not None:
            try:
                result.note = row.prepare(fleet, [target for target in started if target is not None], scale)
            except LoadError as error:
                result.errors |= {way.label: f"warm-up: {error}" for way in left}
                left.clear()
    for number in range(rounds):
        shift = number % len(left) if left else 0
        samples: dict[str, Sample] = {}
        for way in left[shift:] + left[:shift]:  # nobody always comes first, or always after the same one
            sample = attempt(way, partial(_sample, fleet, row, way, scale))
            if sample is not None:
                samples[way.label] = sample
        if row.complete is not None:
            row.complete(samples)
        for label, figures in samples.items():
            result.samples.setdefault(label, []).append(figures)
    for label in result.errors:
        result.samples.pop(label, None)
    return result


def _warm_up(fleet: Fleet, row: Row, way: Way, scale: float) -> Target:
    target = fleet.target(way)
    if row.prepare is None:
        row.measure(fleet, target, scale / 4)
    return target


def _sample(fleet: Fleet, row: Row, way: Way, scale: float) -> Sample:
    if not row.is_fresh:
        return row.measure(fleet, fleet.target(way), scale)
    target = fleet.start(way)
    try:
        return row.measure(fleet, target, scale)
    finally:
        fleet.stop(target)
