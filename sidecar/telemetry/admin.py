"""The admin endpoint: readiness, metrics and the configuration in force, in a thread of its own.

The thread only reads; the data path never waits for it. Paths are Envoy's where Envoy has them.
"""

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import socket
from typing import Any, Final

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from sidecar.telemetry.clusters import as_json, as_text
from sidecar.telemetry.metrics import StatsCollector
from sidecar.telemetry.stats import Stats

READ_TIMEOUT_S: Final = 5.0
MAX_BODY: Final = 64 * 1024
"""Bytes of what comes with a POST."""


class AdminError(Exception):
    """The admin address cannot be listened on."""


class Admin:
    """Serves /ready, /metrics, /stats/prometheus, /clusters, /config_dump, /snapshot, and POST /drain_listeners, /explain.

    `drain_inbound` is called in the admin thread; it returns when the inbound calls are over: True if all finished.
    """

    def __init__(
        self,
        stats: Stats,
        is_ready: Callable[[], bool],
        configuration: Callable[[], Any],
        drain_inbound: Callable[[], bool],
    ) -> None:
        self._stats = stats
        self._registry = CollectorRegistry()
        self._registry.register(StatsCollector(stats))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._is_ready = is_ready
        self._configuration = configuration
        self._drain_inbound = drain_inbound
        self._snapshot: Callable[[], dict[str, Any]] | None = None
        self._explain: Callable[[bytes], tuple[int, Any]] | None = None
        self._server: ThreadingHTTPServer | None = None

    def explain_by(self, explain: Callable[[bytes], tuple[int, Any]]) -> None:
        """Answer POST /explain: a question to HTTP status and answer; called in the admin thread. Before `start`."""
        self._explain = explain

    def show_snapshot(self, snapshot: Callable[[], dict[str, Any]], metrics: Collector) -> None:
        """Show the configuration that is kept on disk too; before `start`."""
        self._snapshot = snapshot
        self._registry.register(metrics)

    def start(self, host: str, port: int, inherited: socket | None = None) -> None:
        """Listen, on a socket that listens there already if there is one. Raises AdminError."""
        admin = self

        class Handler(BaseHTTPRequestHandler):
            timeout = READ_TIMEOUT_S

            def do_GET(self) -> None:
                path, _, query = self.path.partition("?")
                self._reply(*admin.answer(path, self.headers.get("accept", ""), query))

            def do_POST(self) -> None:
                length = self.headers.get("content-length", "0")
                if not length.isdecimal() or int(length) > MAX_BODY:
                    self._reply(413, "text/plain", b"a body of at most %d bytes is taken\n" % MAX_BODY)
                    return
                self._reply(*admin.command(self.path, self.rfile.read(int(length))))

            def _reply(self, status: int, content_type: str, body: bytes) -> None:
                with suppress(ConnectionError):  # who asked has gone
                    self.send_response(status)
                    self.send_header("content-type", content_type)
                    self.send_header("content-length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Scrapes are not worth a line each."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler, bind_and_activate=inherited is None)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise AdminError(f"the admin endpoint cannot listen on {host}:{port}: {reason}") from None
        if inherited is not None:
            self._server.socket.close()
            self._server.socket = inherited
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="admin", daemon=True).start()

    def answer(self, path: str, accept: str, query: str = "") -> tuple[int, str, bytes]:
        """Status, content type and body for a path."""
        if path == "/ready":
            return (200, "text/plain", b"LIVE\n") if self._is_ready() else (503, "text/plain", b"PRE_INITIALIZING\n")
        if path in ("/metrics", "/stats/prometheus"):
            encoder, content_type = choose_encoder(accept)
            return 200, content_type, encoder(self._registry)
        if path == "/clusters":
            states = self._stats.clusters()
            if query == "format=json":
                return 200, "application/json", as_json(states).encode()
            return 200, "text/plain", as_text(states).encode()
        if path == "/config_dump":
            text = json.dumps(asdict(self._configuration()), indent=2, default=_plain)
            return 200, "application/json", text.encode()
        if path == "/snapshot":
            if self._snapshot is None:
                return 404, "text/plain", b"no configuration is kept on disk: --snapshot says where\n"
            return 200, "application/json", json.dumps(self._snapshot(), indent=2).encode()
        return 404, "text/plain", b"known paths: /ready /metrics /stats/prometheus /clusters /config_dump /snapshot\n"

    def command(self, path: str, body: bytes = b"") -> tuple[int, str, bytes]:
        """Do what a POST asks for."""
        name, _, query = path.partition("?")
        if name == "/explain" and self._explain is not None:
            status, told = self._explain(body)
            return status, "application/json", json.dumps(told, indent=2).encode() + b"\n"
        if name != "/drain_listeners" or "inboundonly" not in query.split("&"):
            return 404, "text/plain", b"known commands: /drain_listeners?graceful&inboundonly /explain\n"
        return 200, "text/plain", b"OK\n" if self._drain_inbound() else b"calls were still running\n"

    def stop(self) -> None:
        """Serve no more."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return value.value if isinstance(value, Enum) else str(value)  # a secret's text is that it is one
