"""Opaque TCP: a client's connection and one to an endpoint, and the bytes between them, whatever they say (Envoy: tcp_proxy).

Whoever reads slowly holds back the other: what waits for its socket is bounded by the buffer limits of listener and cluster.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from sidecar.proxy.care import QUIET_SWEEPS, Sweep
from sidecar.proxy.config import TcpProxy
from sidecar.proxy.connect import ConnectError, connect
from sidecar.proxy.worker import Worker

if TYPE_CHECKING:
    from sidecar.proxy.cluster import Cluster, Endpoint


class _Side(asyncio.Protocol):
    """One end of a splice."""

    def __init__(self, splice: "Splice") -> None:
        self.splice = splice
        self.transport: asyncio.Transport | None = None
        self.other: _Side | None = None
        self.has_ended = False

    def itself(self) -> "_Side":
        """The protocol of the connection that is to be made."""
        return self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.splice.is_active = True
        other = self.other
        if other is not None and other.transport is not None:
            other.transport.write(data)
        else:
            self.splice.early += data  # there is no endpoint yet, and reading pauses

    def eof_received(self) -> bool:
        """One direction is over; the other goes on, where the peer's transport can tell them apart."""
        self.has_ended = True
        other = self.other
        if other is None:
            self.splice.has_early_end = True
            return True
        if other.has_ended or other.transport is None or not other.transport.can_write_eof():
            self.splice.close()
            return False
        other.transport.write_eof()
        return True

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.splice.close()


class Splice:
    """One client's connection with its endpoint's."""

    def __init__(
        self, worker: Worker, config: TcpProxy, cluster: "Cluster | None", on_end: Callable[["Splice"], None]
    ) -> None:
        self.is_active = True
        """Bytes came since `QuietSplices` asked last."""
        self.early = b""
        """What the client said before there was an endpoint."""
        self.has_early_end = False
        self._worker = worker
        self._config = config
        self._cluster = cluster
        self._on_end: Callable[[Splice], None] | None = on_end
        self._client = _Side(self)
        self._endpoint: Endpoint | None = None
        self._connecting: asyncio.Task[None] | None = None

    def adopt(self, transport: asyncio.Transport, data: bytes) -> None:
        """Take over an accepted socket and the bytes that were read from it."""
        self._client.transport = transport
        transport.set_protocol(self._client)
        transport.pause_reading()
        self.early = data
        self._connecting = self._worker.loop.create_task(self._connect())

    async def _connect(self) -> None:
        cluster = self._cluster
        if cluster is None:
            self._fail("NC")
            return
        for _ in range(self._config.max_connect_attempts):
            endpoint = cluster.pick()
            if endpoint is None:
                self._fail("UH")
                return
            if cluster.connections >= cluster.config.max_connections:
                self._fail("UO")
                return
            cluster.connections += 1
            endpoint.active += 1
            self._endpoint = endpoint
            server = _Side(self)
            server.other = self._client
            try:
                transport = await connect(cluster.config, endpoint.config, server.itself, self._worker.secrets, alpn="")
            except ConnectError:
                self._release()
                continue
            transport.set_write_buffer_limits(high=cluster.config.buffer_limit)
            self._connecting = None
            self._begin(server)
            return
        self._fail("UF")

    def _begin(self, server: _Side) -> None:
        client = self._client.transport
        if client is None or server.transport is None:
            self.close()
            return
        self._count("")
        self._client.other = server
        early, self.early = self.early, b""
        if early:
            server.transport.write(early)
        if self.has_early_end and server.transport.can_write_eof():
            server.transport.write_eof()
        client.resume_reading()

    def _count(self, flag: str) -> None:
        service = self._cluster.label if self._cluster is not None else self._config.cluster
        self._worker.stats.count_tcp(service, flag)

    def _fail(self, flag: str) -> None:
        self._connecting = None
        self._count(flag)
        self.close()

    def _release(self) -> None:
        if self._endpoint is not None and self._cluster is not None:
            self._cluster.connections -= 1
            self._endpoint.active -= 1
            self._endpoint = None

    def close(self) -> None:
        """End both connections; what is written leaves first."""
        on_end, self._on_end = self._on_end, None
        if on_end is None:
            return
        if self._connecting is not None:
            self._connecting.cancel()
        self._release()
        for side in (self._client, self._client.other):
            if side is not None and side.transport is not None:
                side.transport.close()
        on_end(self)


class QuietSplices(Sweep):
    """Ends the connections of one filter chain on which neither side sends anything for too long."""

    def __init__(self, worker: Worker, timeout_s: float) -> None:
        super().__init__(worker)
        self._timeout_s = timeout_s
        self.splices: dict[Splice, float] = {}
        """With the time from which on nothing moves."""
        self.keep((timeout_s,), QUIET_SWEEPS)

    def look(self, now: float) -> bool:
        for splice, since in list(self.splices.items()):
            if splice.is_active:
                splice.is_active = False
                self.splices[splice] = now
            elif now - since >= self._timeout_s:
                self.worker.stats.count_ended("idle")
                splice.close()
        return bool(self.splices)
