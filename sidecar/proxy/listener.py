"""Listening sockets, and what a new connection speaks: HTTP/2, or CONNECT to a listener of this process.

A CONNECT (RFC 9110 §9.3.6) comes from a gRPC client that was told `grpc_proxy`: its route leads to an internal listener, and the rest
of the connection is HTTP/2 for the names of the mesh.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Final, cast

from sidecar.proxy.config import ListenerConfig
from sidecar.proxy.decision import DecisionCache
from sidecar.proxy.downstream import Downstream
from sidecar.proxy.route import Request, Router
from sidecar.proxy.worker import Worker

MAX_HEAD: Final = 16 * 1024
"""Bytes of a CONNECT request's head."""
DETECT_TIMEOUT_S: Final = 15.0
"""A connection that has not said what it speaks by then is closed."""
BACKLOG: Final = 1024
MAX_CONNECTIONS: Final = 10_000
"""Of one listener; one more is closed at once, the old ones live."""


class ListenError(Exception):
    """The address cannot be listened on; the text says why."""


class Listener:
    """One listener at work. Its configuration may change, its socket stays."""

    def __init__(self, config: ListenerConfig, worker: Worker, internal: Callable[[str], "Listener | None"]) -> None:
        self.config = config
        self.worker = worker
        self.cache = DecisionCache(worker.stats, worker.chance)
        self.downstreams: set[Downstream] = set()
        self.accepted: set[Accepted] = set()
        self.router: Router | None = None
        self._internal = internal
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen. Raises ListenError."""
        config = self.config
        if config.is_internal:
            return
        try:
            self._server = await self.worker.loop.create_server(
                lambda: Accepted(self), config.host, config.port, backlog=BACKLOG, reuse_address=True
            )
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ListenError(
                f'listener "{config.name}" cannot listen on {config.host}:{config.port}: {reason}'
            ) from None

    @property
    def port(self) -> int:
        """Where it listens; differs from the configuration if that says 0."""
        return cast(int, self._server.sockets[0].getsockname()[1]) if self._server else 0

    def stop_accepting(self) -> None:
        """Take no new connections."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def drain(self) -> None:
        """Take no new connections, send the clients elsewhere, let running calls finish."""
        self.stop_accepting()
        for accepted in list(self.accepted):
            accepted.close()
        for downstream in list(self.downstreams):
            downstream.drain()

    @property
    def calls(self) -> int:
        """Calls that run."""
        return sum(downstream.calls for downstream in self.downstreams)

    def serve(self, transport: asyncio.Transport, data: bytes) -> None:
        """Speak HTTP/2 on an accepted socket."""
        config = self.config
        prefix = config.manager.stat_prefix
        stats = self.worker.stats.of_calls(prefix, "", "")
        Downstream(self, self.worker, self.cache, stats, config.manager.http2).adopt(transport, data)

    def tunnel_target(self, authority: str) -> "Listener | None":
        """The internal listener to which a CONNECT for this authority leads."""
        if self.router is None:
            return None
        found = self.router.find(Request(b"CONNECT", b"", authority.encode("latin-1"), {}))
        if found is None:
            return None
        return self._internal(found[1].clusters[0][0])


class Accepted(asyncio.Protocol):
    """A new connection, until it is known what it speaks."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._data = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        listener = self._listener
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(listener.downstreams) + len(listener.accepted) >= MAX_CONNECTIONS:
            listener.worker.stats.connections_refused += 1
            self._transport.abort()
            return
        listener.accepted.add(self)
        self._timer = listener.worker.loop.call_later(DETECT_TIMEOUT_S, self.close)

    def data_received(self, data: bytes) -> None:
        self._data += data
        transport = self._transport
        assert transport is not None
        if self._data.startswith(b"PRI * HTTP/2"):
            self._leave()
            self._listener.serve(transport, self._data)
        elif b"PRI * HTTP/2".startswith(self._data):
            return
        elif b"\r\n\r\n" in self._data:
            self._on_head()
        elif len(self._data) > MAX_HEAD:
            self._refuse(431, f"the request's head is over {MAX_HEAD} bytes")
        elif not self._data[:1].isupper():
            self.close()

    def _on_head(self) -> None:
        """An HTTP/1.1 request: CONNECT, or something that is not spoken here."""
        head, _, rest = self._data.partition(b"\r\n\r\n")
        words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            self.close()  # not HTTP/1.1 either: whatever it is, it would not understand an answer
            return
        method, target, _ = words
        if method != "CONNECT":
            self._refuse(505, "this listener speaks HTTP/2 with prior knowledge, and CONNECT")
            return
        if not self._listener.config.manager.takes_connect:
            self._refuse(403, "CONNECT is not allowed on this listener")
            return
        host, _, port = target.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            self._refuse(400, f'CONNECT needs HOST:PORT, not "{target[:200]}"')
            return
        listener = self._listener.tunnel_target(target)
        if listener is None:
            self._refuse(503, f'no way to "{target[:200]}"')
            return
        transport = self._transport
        assert transport is not None
        self._leave()
        transport.write(b"HTTP/1.1 200 OK\r\n\r\n")
        listener.serve(transport, rest)

    def _refuse(self, status: int, text: str) -> None:
        transport = self._transport
        assert transport is not None
        body = text.encode() + b"\n"
        transport.write(
            b"HTTP/1.1 %d Refused\r\ncontent-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"
            % (status, len(body), body)
        )
        self._listener.worker.stats.protocol_errors += 1
        self.close()

    def _leave(self) -> None:
        self._listener.accepted.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """End the connection."""
        self._leave()
        if self._transport is not None:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
