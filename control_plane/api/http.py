"""`/metrics` and `/healthz` of the control plane, in a thread of their own."""

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from control_plane.ads.service import AdsService
from control_plane.registry.mirror import Mirror


class _Handler(WSGIRequestHandler):
    timeout = 5.0

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are not worth a line each."""


class ControlPlaneCollector(Collector):
    """The control plane's own numbers."""

    def __init__(self, mirror: Mirror, ads: AdsService) -> None:
        self._mirror = mirror
        self._ads = ads

    def collect(self) -> Iterator[Metric]:
        state = self._mirror.state
        yield GaugeMetricFamily("remora_control_plane_nodes", "Connected nodes.", value=len(self._ads.streams))
        yield GaugeMetricFamily("remora_control_plane_revision", "Store revision that is served.", value=state.revision)
        yield GaugeMetricFamily("remora_control_plane_instances", "Registered instances.", value=len(state.instances))
        yield GaugeMetricFamily("remora_control_plane_resources", "Stored resources.", value=len(state.resources))
        yield GaugeMetricFamily(
            "remora_control_plane_stale",
            "1 while the store cannot be watched.",
            value=self._mirror.stale_since is not None,
        )
        yield CounterMetricFamily("remora_control_plane_pushes", "Responses sent to nodes.", value=self._ads.pushes)
        yield CounterMetricFamily("remora_control_plane_nacks", "Responses that nodes refused.", value=self._ads.nacks)


StartResponse = Callable[..., Any]


def serve(host: str, port: int, mirror: Mirror, ads: AdsService) -> WSGIServer:
    """Start serving; OSError if the address cannot be had. `shutdown` ends it."""
    registry = CollectorRegistry()
    registry.register(ControlPlaneCollector(mirror, ads))
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
            return [b"ok\n" if is_fresh else b"the store cannot be reached; the last state is served\n"]
        start_response("404 Not Found", [("content-type", "text/plain")])
        return [b"known paths: /metrics /healthz\n"]

    server = make_server(host, port, app, ThreadingWSGIServer, _Handler)
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    return server
