"""Measuring: setup by setup; in a setup the ways in turn, round after round, so that all meet the same conditions."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from benchmarks.control.aims import Sample
from benchmarks.control.crowd import Counters, Crowd, Shape
from benchmarks.control.planes import GoControlPlane, Plane, Remora, record
from benchmarks.control.rows import Row, Setup, Step
from benchmarks.measure import SETTLE_S, Metric
from benchmarks.processes import BenchError, Processes

ACK_TIMEOUT_S: Final = 180.0
"""After the last change; a node that has not ACKed by then makes the way fail."""

METRICS: Final = {
    "last_ms": Metric("last ACK", "ms", 1),
    "p50_ms": Metric("ACK p50", "ms", 1),
    "p99_ms": Metric("ACK p99", "ms", 1),
    "first_ms": Metric("first ACK", "ms", 1),
    "accepted_ms": Metric("change accepted", "ms", 1),
    "push_us": Metric("CPU per push", "µs", 0),
    "pushes": Metric("pushes per node", "", 1),
    "in_kib": Metric("to each node", "KiB", 1),
    "out_kib": Metric("from each node", "KiB", 1),
    "node_us": Metric("CPU of the simulator per push", "µs", 0),
    "rss_kib": Metric("RSS per idle stream", "KiB", 1),
    "open_s": Metric("all in sync after", "s", 1),
    "stream_ms": Metric("CPU per stream", "ms", 2),
}


@dataclass(slots=True)
class Result:
    """What a row gave."""

    row: Row
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    """By way, one sample a round."""
    errors: dict[str, str] = field(default_factory=dict)
    """By way: why there is no figure."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How it is measured."""

    rounds: int
    scale: float
    """Nodes, services and changes, in proportion to a full run."""
    simulators: int
    client: str


class Target:
    """A way that runs: a control plane, and the nodes that are connected to it."""

    def __init__(self, way: str, plane: Plane, crowd: Crowd) -> None:
        self.way = way
        self.plane = plane
        self.crowd = crowd

    def open(self) -> Sample:
        """Connect all nodes; what that costs."""
        streams = self.crowd.shape.streams
        time.sleep(SETTLE_S)
        rss, cpu, start = self.plane.process.rss_mib(), self.plane.process.cpu_s(), time.monotonic()
        self.crowd.open()
        seconds = time.monotonic() - start
        cpu = self.plane.process.cpu_s() - cpu
        time.sleep(SETTLE_S)
        counters = self.crowd.counters()
        return {
            "rss_kib": (self.plane.process.rss_mib() - rss) * 1024 / streams,
            "open_s": seconds,
            "stream_ms": cpu * 1000 / streams,
            "in_kib": counters.received / 1024 / streams,
            "out_kib": counters.sent / 1024 / streams,
        }

    def play(self, steps: Sequence[Step]) -> Sample:
        """Make changes when they are due; when the nodes had them, and what that cost. Raises BenchError."""
        ready = [(step, self.plane.prepare(step.change)) for step in steps]
        self.crowd.expect([step.mark for step in steps if step.mark])
        before, cpu, start = self.crowd.counters(), self.plane.process.cpu_s(), time.monotonic()
        made: dict[str, float] = {}
        waits = []
        for step, begin in ready:
            time.sleep(max(0.0, start + step.at_s - time.monotonic()))
            if step.mark:
                made[step.mark[-6:]] = time.monotonic()
            waits.append(begin())
        for wait in waits:
            wait()
        accepted = time.monotonic()
        times = self.crowd.collect(ACK_TIMEOUT_S)
        after = self.crowd.quiet()
        cpu = self.plane.process.cpu_s() - cpu
        taken = sorted(when - made[mark] for mark, found in times.items() for when in found)
        return {
            "last_ms": taken[-1] * 1000,
            "p50_ms": taken[len(taken) // 2] * 1000,
            "p99_ms": taken[min(len(taken) - 1, len(taken) * 99 // 100)] * 1000,
            "first_ms": taken[0] * 1000,
            "accepted_ms": (accepted - start - steps[-1].at_s) * 1000,
            **_costs(before, after, cpu, self.crowd.shape.streams),
        }

    def close(self) -> None:
        """End the nodes, then the control plane."""
        self.crowd.close()
        self.plane.close()


def _costs(before: Counters, after: Counters, cpu_s: float, streams: int) -> Sample:
    pushes = after.responses.total() - before.responses.total()
    return {
        "push_us": cpu_s * 1e6 / pushes,
        "pushes": pushes / streams,
        "in_kib": (after.received - before.received) / 1024 / streams,
        "out_kib": (after.sent - before.sent) / 1024 / streams,
        "node_us": (after.cpu_s - before.cpu_s) * 1e6 / pushes,
    }


class Bench:
    """Measures the rows of a setup, on ways that it starts and ends."""

    def __init__(
        self, processes: Processes, plan: Plan, on_step: Callable[[str], None], on_row: Callable[[Result], None]
    ) -> None:
        self._processes = processes
        self._plan = plan
        self._on_step = on_step
        self._on_row = on_row
        """Told of a row when all its ways have been measured."""
        self._marks = count(1)
        self._recorded: dict[int, dict[tuple[str, str], bytes]] = {}

    def setup(self, setup: Setup, rows: Sequence[Row], ways: Sequence[str]) -> list[Result]:
        """All rows of a setup. A way on which anything fails is left out from there on, and named in `errors`."""
        results = [Result(row) for row in rows]
        for batch in [[way] for way in ways] if setup.is_alone else [list(ways)]:
            with ExitStack() as open_targets:
                self._batch(setup, results, batch, open_targets)
        if setup.is_alone:
            for result in results:
                self._on_row(result)
        return results

    def _batch(self, setup: Setup, results: Sequence[Result], ways: list[str], open_targets: ExitStack) -> None:
        targets: list[Target] = []
        for way in ways:
            self._on_step(f"open/{setup.name} {way}")
            try:
                target = self._start(setup, way)
                open_targets.callback(target.close)
                sample = target.open()
            except BenchError as error:
                for result in results:
                    result.errors[way] = str(error)
                continue
            targets.append(target)
            for result in results:
                if result.row.scenario.timeline is None:
                    result.samples[way] = [sample]
        for result in results:
            if result.row.scenario.timeline is not None:
                self._rounds(result, targets)
            if not setup.is_alone:
                self._on_row(result)

    def _start(self, setup: Setup, way: str) -> Target:
        name, _, variant = way.partition("/")
        scaled = setup.scaled(self._plan.scale)
        streams, services = scaled.streams, scaled.services
        plane: Plane
        if name == "remora":
            plane = Remora(self._processes, services)
        else:
            plane = GoControlPlane(self._processes, self._resources(services))
        plan = self._plan
        shape = Shape(streams, services, setup.per_connection, variant, plan.client, plan.simulators)
        try:
            return Target(way, plane, Crowd(self._processes, plane.port, shape))
        except BaseException:
            plane.close()
            raise

    def _resources(self, services: int) -> dict[tuple[str, str], bytes]:
        """What Remora sends of a mesh of so many services."""
        if services not in self._recorded:
            plane = Remora(self._processes, services)
            try:
                self._recorded[services] = asyncio.run(record(plane.port))
            finally:
                plane.close()
        return self._recorded[services]

    def _rounds(self, result: Result, targets: list[Target]) -> None:
        timeline = result.row.scenario.timeline
        assert timeline is not None
        left = list(targets)
        for number in range(min(self._plan.rounds, result.row.scenario.rounds or self._plan.rounds)):
            shift = number % len(left) if left else 0
            for target in left[shift:] + left[:shift]:  # nobody always comes first, or always after the same one
                self._on_step(f"{result.row.name} {target.way}")
                try:
                    services = target.crowd.shape.services
                    sample = target.play(timeline(self._marks, services, self._plan.scale))
                except BenchError as error:
                    result.errors[target.way] = str(error)
                    result.samples.pop(target.way, None)
                    left.remove(target)
                    targets.remove(target)  # it is not where the others are any more
                    continue
                result.samples.setdefault(target.way, []).append(sample)


def steps(rows: Sequence[Row], ways: Sequence[str], rounds: int) -> int:
    """How often `on_step` is called if nothing fails."""
    setups = {row.setup for row in rows}
    played = [row.scenario for row in rows if row.scenario.timeline is not None]
    return len(ways) * (len(setups) + sum(min(rounds, scenario.rounds or rounds) for scenario in played))


def by_setup(rows: Sequence[Row]) -> Iterator[tuple[Setup, list[Row]]]:
    """The rows of each setup."""
    for setup in dict.fromkeys(row.setup for row in rows):
        yield setup, [row for row in rows if row.setup == setup]
