"""`/metrics` and `/healthz` of the control plane, in a thread of their own."""

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from control_plane.ads.core import NodeStream
from control_plane.ads.service import AdsService, short
from control_plane.api.entrance import Entrance
from control_plane.registry.mirror import Mirror
from control_plane.registry.sweeper import Sweeper
from control_plane.resources import kinds
from control_plane.store.election import Election
from control_plane.translate.snapshot import ORDER

PREFIX: Final = "remora_control_plane_"
ENGINES: Final = ("envoy", "grpc", "remora")


class _Handler(WSGIRequestHandler):
    timeout = 5.0

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are not worth a line each."""


class Upkeep(Collector):
    """What this replica does for all, if it is the owner of that."""

    def __init__(self, election: Election, sweeper: Sweeper) -> None:
        self._election = election
        self._sweeper = sweeper

    def collect(self) -> Iterator[Metric]:
        sweeper = self._sweeper
        yield _one("sweeps", "1 if this replica sweeps the store for all of them.", self._election.term is not None)
        yield _total("sweeper_terms", "Times that this replica became the one that sweeps.", self._election.terms)
        yield _one(
            "compacted_revision", "The store's history up to here was forgotten by this replica.", sweeper.compacted
        )
        yield _total("compactions", "Times that this replica had history forgotten.", sweeper.compactions)
        yield _total("instances_forgotten", "Instances that vanished and were taken off the roster.", sweeper.forgotten)


class ControlPlaneCollector(Collector):
    """The control plane's own numbers. Labels take few values: kinds of data planes, kinds of resources, types of xDS."""

    def __init__(self, mirror: Mirror, ads: AdsService) -> None:
        self._mirror = mirror
        self._ads = ads

    def collect(self) -> Iterator[Metric]:
        state, streams = self._mirror.state, list(self._ads.streams.values())
        yield _gauge("nodes", "Connected nodes.", dict.fromkeys(ENGINES, 0) | _engines(streams), "engine")
        behind = [stream for stream in streams if stream.programmed < state.revision]
        yield _one(
            "nodes_behind", "Connected nodes that have not acknowledged the revision that is served.", len(behind)
        )
        yield _one("revision", "Store revision that is served.", state.revision)
        yield _one("instances", "Registered instances.", len(state.instances))
        held = "Instances that are kept although their leases ended, since most others' ended with them."
        yield _one("instances_held", held, len(state.held))
        yield _total("lease_waves", "Times that instances began to be held.", self._mirror.presence.waves.waves)
        kinds_there = Counter(kinds.of(resource).name for resource in list(state.resources.values()))
        yield _gauge("resources", "Stored resources.", kinds_there, "kind")
        yield _one("stale", "1 while the store cannot be watched.", self._mirror.stale_since is not None)
        yield _one(
            "stale_seconds", "For how long the store could not be watched; 0 while it can.", self._mirror.stale_s
        )
        yield _counter("pushes", "Responses sent to nodes.", self._ads.pushes)
        yield _counter("nacks", "Responses that nodes refused.", self._ads.nacks)
        slow = CounterMetricFamily(f"{PREFIX}slow_readers", "Streams ended because the node did not read.")
        slow.add_metric([], self._ads.slow_readers)
        yield slow


def _engines(streams: list[NodeStream]) -> Counter[str]:
    return Counter(stream.node.engine for stream in streams)


def _one(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, help_text, value=float(value))


def _total(name: str, help_text: str, value: float) -> Metric:
    return CounterMetricFamily(PREFIX + name, help_text, value=float(value))


def _gauge(name: str, help_text: str, values: Mapping[str, int], label: str) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, help_text, labels=[label])
    for key in sorted(values):
        family.add_metric([key], values[key])
    return family


def _counter(name: str, help_text: str, values: Mapping[str, int]) -> Metric:
    """By xDS type; those that have not been counted are 0, so that a rate can be taken from the start."""
    family = CounterMetricFamily(PREFIX + name, help_text, labels=["type"])
    for kind in map(short, ORDER):
        family.add_metric([kind], values.get(kind, 0))
    return family


StartResponse = Callable[..., Any]


class _Server6(ThreadingWSGIServer):
    """On an IPv6 address."""

    address_family = socket.AF_INET6


def serve(host: str, port: int, mirror: Mirror, ads: AdsService, entrance: Entrance, upkeep: Upkeep) -> WSGIServer:
    """Start serving; OSError if the address cannot be had. `shutdown` ends it."""
    registry = CollectorRegistry()
    registry.register(ControlPlaneCollector(mirror, ads))
    registry.register(upkeep)
    registry.register(ads.lag)
    registry.register(entrance.requests)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    metrics = make_wsgi_app(registry)

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            answer: Iterable[bytes] = metrics(environ, start_response)
            return answer
        if path == "/healthz":
            is_fresh = mirror.is_loaded.is_set() and mirror.stale_since is None
            start_response("200 OK" if is_fresh else "503 Service Unavailable", [("content-type", "text/plain")])
            stale = f"the store has not been reached for {mirror.stale_s:.0f} s; the last state is served\n"
            return [b"ok\n" if is_fresh else stale.encode()]
        start_response("404 Not Found", [("content-type", "text/plain")])
        return [b"known paths: /metrics /healthz\n"]

    server = make_server(host.strip("[]"), port, app, _Server6 if ":" in host else ThreadingWSGIServer, _Handler)
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    return server
