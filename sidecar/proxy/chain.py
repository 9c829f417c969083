"""Filter chains at work: which one takes a connection, and what it needs to speak there."""

import ssl
from collections.abc import Sequence
from typing import Final

from sidecar.proxy.config import FilterChain
from sidecar.proxy.decision import DecisionCache
from sidecar.proxy.route import Router
from sidecar.proxy.tls import server_context
from sidecar.proxy.worker import Worker

RAW: Final = "raw_buffer"
TLS: Final = "tls"


class Chain:
    """One filter chain. Its configuration may change; its decisions are kept for the connections that it took."""

    def __init__(self, config: FilterChain, worker: Worker) -> None:
        self.config = config
        self.cache = DecisionCache(worker.stats, worker.chance)
        self.router: Router | None = None
        self.context: ssl.SSLContext | None = None

    def update(self, config: FilterChain) -> None:
        """From now on go by this."""
        self.config = config
        self.context = server_context(config.tls) if config.tls is not None else None


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
