"""What is measured: meshes, and what happens in them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from benchmarks.control import mesh
from benchmarks.control.dataplane import mark
from benchmarks.control.mesh import Arrive, Change, Leave, Reroute

BURST: Final = 100
BURST_S: Final = 0.010
RESTARTS: Final = mesh.FLEET_SIZE
RESTARTS_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Setup:
    """A mesh, and how many nodes are connected to its control plane."""

    name: str
    streams: int
    services: int = 1000
    per_connection: int = 20
    is_alone: bool = False
    """One way at a time, since not all of them fit into the memory at once."""

    def scaled(self, scale: float) -> "Setup":
        """The same in another size."""
        services = max(mesh.MIN_SERVICES, int(self.services * scale))
        return replace(self, streams=max(2, int(self.streams * scale)), services=services)

    @property
    def title(self) -> str:
        """For people."""
        own = ", each on a connection of its own" if self.per_connection == 1 else ""
        return f"{self.streams:,} streams{own}, {self.services:,} services"


@dataclass(frozen=True, slots=True)
class Step:
    """A change, when it is made, and the mark by which nodes tell that they have it."""

    at_s: float
    change: Change
    mark: str | None = None


Timeline = Callable[[Iterator[int], int, float], list[Step]]
"""Changes, with marks of these numbers, in a mesh of so many services; the last argument is the size in proportion to a full run."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What happens."""

    name: str
    title: str
    timeline: Timeline | None
    """None: nodes connect, which they do once."""
    figures: tuple[str, ...]
    rounds: int = 0
    """0 leaves the choice to the one who starts the bench."""


@dataclass(frozen=True, slots=True)
class Row:
    """A scenario in a setup."""

    setup: Setup
    scenario: Scenario

    @property
    def name(self) -> str:
        """As on the command line."""
        return f"{self.scenario.name}/{self.setup.name}"


def _endpoint(numbers: Iterator[int], services: int, scale: float) -> list[Step]:
    text = mark(next(numbers))
    service = mesh.SERVICE.format(7)
    return [Step(0.0, Arrive(service, f"{service}-0", text), text)]


def _route(numbers: Iterator[int], services: int, scale: float) -> list[Step]:
    text = mark(next(numbers))
    return [Step(0.0, Reroute(mesh.SERVICE.format(3), text), text)]


def _burst(numbers: Iterator[int], services: int, scale: float) -> list[Step]:
    steps = []
    for number in range(max(2, int(BURST * scale))):
        text = mark(next(numbers))
        which, service_number = divmod(number, services - 1)
        service = mesh.SERVICE.format(service_number)
        steps.append(Step(number * BURST_S / BURST, Arrive(service, f"{service}-{which}", text), text))
    return steps


def _rolling(numbers: Iterator[int], services: int, scale: float) -> list[Step]:
    steps = []
    pause = RESTARTS_S / RESTARTS
    for number in range(max(2, int(RESTARTS * scale))):
        name, text = f"{mesh.FLEET}-{number:03d}", mark(next(numbers))
        steps.append(Step(number * pause, Leave(mesh.FLEET, name)))
        steps.append(Step((number + 0.5) * pause, Arrive(mesh.FLEET, name, text), text))
    return steps


CHANGE: Final = ("last_ms", "p50_ms", "p99_ms", "first_ms", "push_us", "pushes", "in_kib", "out_kib")
OPEN: Final = Scenario(
    "open", "all nodes connect and get everything", None, ("rss_kib", "open_s", "stream_ms", "in_kib", "out_kib")
)
ENDPOINT: Final = Scenario("endpoint", "one endpoint changes", _endpoint, CHANGE)
ROUTE: Final = Scenario("route", "one route changes", _route, CHANGE)
BURST_OF_CHANGES: Final = Scenario("burst", f"{BURST} endpoints of as many services change in 10 ms", _burst, CHANGE)
ROLLING: Final = Scenario(
    "rolling", f"rolling restart of {RESTARTS} instances in {RESTARTS_S:g} s", _rolling, CHANGE, rounds=1
)
SCENARIOS: Final = (OPEN, ENDPOINT, ROUTE, BURST_OF_CHANGES, ROLLING)

SMALL: Final = Setup("100", 100)
MIDDLE: Final = Setup("1000", 1_000)
LARGE: Final = Setup("10000", 10_000, is_alone=True)
OWN: Final = Setup("1000-own", 1_000, per_connection=1)
WIDE: Final = Setup("100-of-10000", 100, services=10_000)
BARE: Final = Setup("1000-of-10", 1_000, services=10)

ROWS: Final = (
    *(Row(SMALL, scenario) for scenario in SCENARIOS),
    *(Row(WIDE, scenario) for scenario in (OPEN, ENDPOINT, ROUTE)),
    *(Row(MIDDLE, scenario) for scenario in SCENARIOS),
    *(Row(OWN, scenario) for scenario in (OPEN, ENDPOINT)),
    Row(BARE, OPEN),
    *(Row(LARGE, scenario) for scenario in (OPEN, ENDPOINT, ROUTE, ROLLING)),
)
"""In the order in which they are measured; those of a setup stand together."""

WAYS: Final = ("remora/sotw", "remora/delta", "go/sotw", "go/delta")
"""Control plane and variant of ADS."""
