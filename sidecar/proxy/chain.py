"""Filter chains at work: which one takes a connection, and what it needs to speak there."""

import ssl
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final

from sidecar.proxy.care import Connected, ConnectionCare, QuietCalls
from sidecar.proxy.config import FilterChain, TlsConfig
from sidecar.proxy.decision import DecisionCache
from sidecar.proxy.route import Router
from sidecar.proxy.tcp import QuietSplices
from sidecar.proxy.tls import TlsError, resolved, server_context
from sidecar.proxy.worker import Worker

RAW: Final = "raw_buffer"
TLS: Final = "tls"


class Chain:
    """One filter chain. Its configuration may change; its decisions are kept for the connections that it took."""

    def __init__(
        self, config: FilterChain, worker: Worker, connections: Callable[["Chain"], Iterable[Connected]]
    ) -> None:
        self.config = config
        self._worker = worker
        self.cache = DecisionCache(worker.stats, worker.chance)
        self.router: Router | None = None
        self.context: ssl.SSLContext | None = None
        self.tls: TlsConfig | None = None
        """With the secrets that its configuration refers to; None with TLS configured: they have not come, and nobody gets in."""
        self.splices = QuietSplices(worker, config.tcp.idle_timeout_s if config.tcp is not None else 0.0)
        self._connections = ConnectionCare(worker, lambda: connections(self))
        self._calls = QuietCalls(worker, lambda: connections(self))

    def update(self, config: FilterChain) -> None:
        """From now on go by this."""
        if config.tcp != self.config.tcp:
            old, self.splices = (
                self.splices,
                QuietSplices(self._worker, config.tcp.idle_timeout_s if config.tcp else 0.0),
            )
            self.splices.splices.update(old.splices)
            self.splices.watch()
        self.config = config
        self.tls = self.context = None
        if config.tls is not None:
            with suppress(TlsError):
                self.tls = resolved(config.tls, self._worker.secrets)
                self.context = server_context(self.tls)

    def keep_times(self) -> None:
        """The routes are there: keep the times that they and the manager give."""
        manager = self.config.manager
        if manager is None:
            return
        self._connections.update(manager.life)
        hosts = self.router.table.virtual_hosts if self.router is not None else ()
        on_routes = [route.idle_timeout_s or 0.0 for host in hosts for route in host.routes]
        self._calls.update(manager.stream_idle_timeout_s, on_routes)

    def watch(self) -> None:
        """There is a new connection."""
        self._connections.watch()
        self._calls.watch()

    def stop(self) -> None:
        """The configuration names this chain no more; its connections are drained."""
        self._connections.stop()
        self._calls.stop()


def find(chains: Sequence[Chain], server_name: str, transport: str, applications: Sequence[str]) -> Chain | None:
    """The chain for a connection: each step keeps the most specific ones, and none is taken back (Envoy: listener.v3.FilterChainMatch)."""
    left = _by_server_name(chains, server_name)
    left = [chain for chain in left if chain.config.match.transport == transport] or [
        chain for chain in left if not chain.config.match.transport
    ]
    for application in applications:
        named = [chain for chain in left if application in chain.config.match.applications]
        if named:
            return named[0]
    return next((chain for chain in left if not chain.config.match.applications), None)


def _by_server_name(chains: Sequence[Chain], name: str) -> list[Chain]:
    exact = [chain for chain in chains if name and name in chain.config.match.server_names]
    if exact:
        return exact
    labels = name.split(".")
    for start in range(1, len(labels)):
        pattern = "*." + ".".join(labels[start:])
        wild = [chain for chain in chains if pattern in chain.config.match.server_names]
        if wild:
            return wild
    return [chain for chain in chains if not chain.config.match.server_names]
