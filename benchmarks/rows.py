"""The rows of the table: who is loaded, with what, and which figures count."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.backends import HUGE, LARGE, SMALL, Backend
from benchmarks.fleet import Fleet, Setup, Target, Way
from benchmarks.measure import Measure, OpenLoop, Sample, differing, memory, start_time, streams, unary

Prepare = Callable[[Fleet, Sequence[Target], float], str]


@dataclass(frozen=True, slots=True)
class Row:
    """One row: all its ways are loaded in turn, round after round."""

    name: str
    title: str
    ways: tuple[Way, ...]
    measure: Measure
    figures: tuple[str, ...]
    """Names in `measure.METRICS`: those that are shown; the samples hold more."""
    prepare: Prepare | None = None
    """Instead of a warm-up: sets what all targets share, returns a note for the report."""
    complete: Callable[[dict[str, Sample]], None] | None = None
    """Adds figures that compare the ways of one round."""
    is_fresh: bool = False
    """Each sample gets a target that was started for it."""

    @property
    def setup(self) -> Setup:
        """Of its first way."""
        return self.ways[0].setup


ALL: Final = ("direct", "sidecar", "sidecar-x2", "envoy", "haproxy", "nginx", "grpc-aio")
AND_PLAIN: Final = (*ALL[:2], "sidecar-plain", *ALL[2:])
BUT_THE_WARNING: Final = ALL[:-1]
"""Where the `grpc.aio` proxy cannot follow."""
PROXIES_ONLY: Final = tuple(name for name in ALL if name != "direct")
SINGLE: Final = tuple(name for name in PROXIES_ONLY if name != "sidecar-x2")
SERVERS: Final = ("sidecar", "sidecar-x2", "envoy", "haproxy", "nginx")
ROUTE_COUNTS: Final = (1, 100, 10_000)


def _ways(names: Sequence[str], setup: Setup) -> tuple[Way, ...]:
    return tuple(Way(name, name, setup) for name in names)


_PLAIN: Final = Setup()
_TLS: Final = Setup(is_tls=True)
_FAST: Final = Setup(backend=Backend.FILES, is_pinned=True)
_OPEN_LOOP: Final = OpenLoop(15_000, compared=("sidecar", "envoy"), most_per_s=15_000)

ROWS: Final = (
    Row("unary-1", "1 in flight, 128 B", _ways(AND_PLAIN, _PLAIN), unary(1, SMALL, 2_500), ("cpu_us",)),
    Row("unary-10", "10 in flight, 128 B", _ways(ALL, _PLAIN), unary(10, SMALL, 8_000), ("cpu_us",)),
    Row("unary-100", "100 in flight, 128 B", _ways(AND_PLAIN, _PLAIN), unary(100, SMALL, 10_000), ("cpu_us",)),
    Row("unary-1000", "1,000 in flight, 128 B", _ways(ALL, _PLAIN), unary(1000, SMALL, 15_000), ("cpu_us",)),
    Row(
        "headers-100",
        "100 in flight, 128 B, four headers differ in each call",
        _ways(AND_PLAIN, _PLAIN),
        differing(100, 15_000),
        ("cpu_us",),
    ),
    Row("large-1", "1 in flight, 64 KiB", _ways(ALL, _PLAIN), unary(1, LARGE, 800), ("cpu_us",)),
    Row("large-10", "10 in flight, 64 KiB", _ways(ALL, _PLAIN), unary(10, LARGE, 1_500), ("cpu_us",)),
    Row("large-100", "100 in flight, 64 KiB", _ways(ALL, _PLAIN), unary(100, LARGE, 1_500), ("cpu_us",)),
    Row("large-1000", "1,000 in flight, 64 KiB", _ways(ALL, _PLAIN), unary(1000, LARGE, 2_000), ("cpu_us",)),
    Row("tls-1", "1 in flight, 128 B, TLS from the client", _ways(SERVERS, _TLS), unary(1, SMALL, 2_500), ("cpu_us",)),
    Row(
        "tls-100",
        "100 in flight, 128 B, TLS from the client",
        _ways(SERVERS, _TLS),
        unary(100, SMALL, 10_000),
        ("cpu_us",),
    ),
    Row(
        "routes",
        "100 in flight, 128 B, by size of the route table",
        tuple(
            Way(f"{proxy}/{count}", proxy, Setup(routes=count))
            for count in ROUTE_COUNTS
            for proxy in ("sidecar", "envoy")
        ),
        unary(100, SMALL, 10_000),
        ("cpu_us",),
    ),
    Row(
        "streams",
        "100 bidi streams, 50 messages of 128 B to and fro on each",
        _ways(ALL, Setup(backend=Backend.STREAMS)),
        streams(100, 50, 1_000),
        ("message_us",),
    ),
    Row("huge", "4 in flight, 1 MiB there and 1 MiB back", _ways(ALL, _FAST), unary(4, HUGE, 300), ("mb_per_s",)),
    Row(
        "saturation",
        "100 in flight, 128 B, the proxy alone on one core, a fast backend",
        _ways(ALL, _FAST),
        unary(100, SMALL, 30_000),
        ("calls_per_s", "cpu_us", "cores"),
    ),
    Row(
        "latency",
        "a fixed rate whatever the answers, 128 B, the proxy alone on one core",
        _ways(BUT_THE_WARNING, _FAST),
        _OPEN_LOOP.sample,
        ("added_p50_ms", "added_p99_ms"),
        prepare=_OPEN_LOOP.prepare,
        complete=_OPEN_LOOP.complete,
    ),
    Row(
        "memory",
        "100 routes: idle, and with 1,000 in flight",
        _ways(PROXIES_ONLY, Setup(routes=100)),
        memory(1000, 6_000),
        ("idle_mib", "loaded_mib"),
        is_fresh=True,
    ),
    Row(
        "start",
        "from the start of the process to the end of the first call",
        _ways(SINGLE, Setup(backend=Backend.FILES)),
        start_time,
        ("start_ms",),
        is_fresh=True,
    ),
)
"""In the order in which they are measured: those of one setup stand together, so that targets are kept."""
