"""Listening sockets: their connections, their filter chains, their end."""

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import Final, cast

from sidecar.http2.headers import MAX_BYTES
from sidecar.inherited import Sockets
from sidecar.proxy import chain as chains
from sidecar.proxy.accepted import Accepted
from sidecar.proxy.care import Stalled
from sidecar.proxy.chain import Chain
from sidecar.proxy.cluster import Cluster
from sidecar.proxy.config import Direction, FilterChain, Limits, ListenerConfig
from sidecar.proxy.downstream import CountedDownstream, Downstream
from sidecar.proxy.route import Request
from sidecar.proxy.tcp import QuietSplices, Splice
from sidecar.proxy.tls import peer_identity
from sidecar.proxy.worker import Worker

BACKLOG: Final = 1024


class ListenError(Exception):
    """The address cannot be listened on; the text says why."""


class Listener:
    """One listener at work. Its configuration may change, its socket stays."""

    def __init__(
        self,
        config: ListenerConfig,
        worker: Worker,
        limits: Limits,
        internal: Callable[[str], "Listener | None"],
        cluster: Callable[[str], Cluster | None],
        inherited: Sockets,
    ) -> None:
        self.config = config
        self.limits = limits
        self.stalled = Stalled(worker, limits.max_unread_bytes)
        self._max_connections = dict(limits.listener_connections).get(config.name, limits.max_connections)
        self.worker = worker
        self.chains: dict[str, Chain] = {}
        """By name, or by place for those that have none."""
        self.downstreams: set[Downstream] = set()
        self.accepted: set[Accepted] = set()
        self._default: Chain | None = None
        self.splices: set[Splice] = set()
        self.is_draining = False
        self._internal = internal
        self._cluster = cluster
        self._inherited = inherited
        self._server: asyncio.Server | None = None

    async def open(self, *, accepts: bool = True) -> None:
        """Listen; on an inherited socket, whose queue another process may take from, only if we are to accept. Raises ListenError."""
        config = self.config
        if config.is_internal:
            return
        try:
            if self._inherited.has(config.host, config.port):
                if accepts:
                    await self.accept()
                return
            self._server = await self.worker.loop.create_server(
                lambda: Accepted(self), config.host, config.port, backlog=BACKLOG, reuse_address=True
            )
        except OSError as error:
            reason = (os.strerror(error.errno) if error.errno else str(error)).lower()
            raise ListenError(
                f'listener "{config.name}" cannot listen on {config.host}:{config.port}: {reason}'
            ) from None

    async def accept(self) -> None:
        """Take connections from an inherited socket, if there is one."""
        config = self.config
        sock = self._inherited.copy(config.host, config.port) if self._server is None else None
        if sock is not None:
            self._server = await self.worker.loop.create_server(lambda: Accepted(self), sock=sock, backlog=BACKLOG)

    @property
    def port(self) -> int:
        """Where it listens; differs from the configuration if that says 0."""
        return cast(int, self._server.sockets[0].getsockname()[1]) if self._server else 0

    def update(self, config: ListenerConfig) -> list[Chain]:
        """Take over a configuration; the chains, which the caller makes ready. Connections of chains that are gone are drained."""
        self.config = config
        old, self.chains = self.chains, {}
        for number, wanted in enumerate(config.chains):
            self._take_over(wanted.name or str(number), wanted, old)
        self._default = None
        if config.default_chain is not None:
            self._default = self._take_over("default", config.default_chain, old)
        for chain in old.values():
            chain.stop()
        if old:
            gone = {id(chain.cache) for chain in old.values()}
            for downstream in [each for each in self.downstreams if id(each.cache) in gone]:
                downstream.drain()
        return list(self.chains.values())

    def _take_over(self, name: str, wanted: FilterChain, old: dict[str, Chain]) -> Chain:
        chain = old.pop(name, None) or Chain(wanted, self.worker, self._connections_of)
        chain.update(wanted)
        self.chains[name] = chain
        return chain

    def _connections_of(self, chain: Chain) -> list[Downstream]:
        return [downstream for downstream in self.downstreams if downstream.cache is chain.cache]

    def find(self, server_name: str, transport: str, applications: tuple[str, ...]) -> Chain | None:
        """The chain that takes a connection."""
        ordinary = [chain for chain in self.chains.values() if chain is not self._default]
        return chains.find(ordinary, server_name, transport, applications) or self._default

    def stop_accepting(self) -> None:
        """Take no new connections."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def let_go(self) -> None:
        """Give up a socket that was inherited: this process will not listen there again."""
        self._inherited.let_go(self.config.host, self.config.port)

    def drain(self) -> None:
        """Take no new connections, send the clients elsewhere, let running calls finish."""
        self.is_draining = True
        self.stop_accepting()
        for downstream in list(self.downstreams):
            downstream.drain()

    @property
    def is_drained(self) -> bool:
        """True once no call runs and every client knows that it is to open no more here.

        What a client sent before it knew was taken: it comes before its answer to our PING.
        """
        return not self.calls and all(downstream.conn.is_going_away for downstream in list(self.downstreams))

    def on_gone(self, downstream: Downstream) -> None:
        """A client's connection has ended."""
        self.downstreams.discard(downstream)
        if self.config.direction is Direction.INBOUND:
            self.worker.stats.count_peer(downstream.identity, downstream.security, calls_of(downstream))

    @property
    def calls(self) -> int:
        """Calls that run, and opaque connections."""
        return sum(downstream.calls for downstream in list(self.downstreams)) + len(self.splices)

    @property
    def connections(self) -> int:
        """Connections that are open."""
        return len(self.downstreams) + len(self.accepted) + len(self.splices)

    @property
    def is_full(self) -> bool:
        """True if one more connection is too many."""
        return self.connections >= self._max_connections

    def serve_http2(self, chain: Chain, transport: asyncio.Transport, data: bytes) -> None:
        """Speak HTTP/2 on an accepted socket."""
        manager = chain.config.manager
        assert manager is not None
        stats = self.worker.stats.of_calls(manager.stat_prefix, "", "")
        settings = replace(
            manager.http2,
            max_control_frames_per_s=self.limits.max_control_frames_per_s,
            max_header_block=max(self.limits.max_header_block_bytes, _wanted(manager.http2.max_header_bytes)),
            max_continuations=self.limits.max_continuation_frames,
        )
        if manager.life.max_requests:
            downstream: Downstream = CountedDownstream(
                self, self.worker, chain.cache, stats, settings, self.limits, manager.life.max_requests
            )
        else:
            downstream = Downstream(self, self.worker, chain.cache, stats, settings, self.limits)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None:
            downstream.security = "mutual_tls" if tls.getpeercert() else "tls"
            downstream.identity = peer_identity(tls)
        downstream.drain_timeout_s = manager.drain_timeout_s
        downstream.delayed_close_s = manager.delayed_close_s
        downstream.adopt(transport, data)
        if self.is_draining:
            downstream.drain()  # it was accepted when the end was near
        chain.watch()

    def serve_http1(self, chain: Chain, transport: asyncio.Transport, data: bytes) -> None:
        """Speak HTTP/1.1 on an accepted socket: the data path sees an HTTP/2 client."""
        # Imported here: a sidecar without HTTP/1.1 does not pay for h11.
        from sidecar.proxy.http1.downstream import Http1Client

        manager = chain.config.manager
        assert manager is not None
        scheme = b"https" if chain.config.tls is not None else b"http"
        client = Http1Client(manager.upgrades, scheme, manager.http2.max_header_bytes)
        client.adopt(transport, data, lambda pipe: self.serve_http2(chain, pipe, b""))

    def serve_tcp(self, chain: Chain, transport: asyncio.Transport, data: bytes) -> None:
        """Hand the bytes of an accepted socket on."""
        proxy = chain.config.tcp
        assert proxy is not None
        quiet = chain.splices
        splice = Splice(
            self.worker, proxy, self._cluster(proxy.cluster), lambda ended: self._on_splice_end(quiet, ended)
        )
        quiet.splices[splice] = monotonic()
        self.splices.add(splice)
        splice.adopt(transport, data)
        quiet.watch()

    def _on_splice_end(self, quiet: QuietSplices, splice: Splice) -> None:
        quiet.splices.pop(splice, None)
        self.splices.discard(splice)

    def cut(self) -> None:
        """End every connection now."""
        for splice in list(self.splices):
            splice.close()

    def tunnel_target(self, chain: Chain, authority: str) -> "Listener | None":
        """The internal listener to which a CONNECT for this authority leads."""
        if chain.router is None:
            return None
        found = chain.router.find(Request(b"CONNECT", b"", authority.encode("latin-1"), {}))
        if found is None:
            return None
        return self._internal(found[1].clusters[0][0])

    def serve_tunnel(self, transport: asyncio.Transport, data: bytes) -> None:
        """Speak HTTP/2 behind a CONNECT that led to this internal listener."""
        chain = self.find("", chains.RAW, ())
        if chain is None or chain.config.manager is None:
            transport.close()
            return
        self.serve_http2(chain, transport, data)


def calls_of(downstream: Downstream) -> int:
    """Calls that a client began on its connection: it opens streams of odd numbers."""
    return (downstream.conn.opened + 1) // 2


def _wanted(max_header_bytes: int) -> int:
    """What a block may have in all, for a listener that takes longer headers than usual; 0 if it does not."""
    return max_header_bytes if max_header_bytes > MAX_BYTES else 0
