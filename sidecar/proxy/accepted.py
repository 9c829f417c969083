"""A new connection, until it is known what it speaks: which filter chain takes it, TLS, then HTTP/2, HTTP/1.1 or a CONNECT.

A CONNECT (RFC 9110 §9.3.6) comes from a gRPC client that was told `grpc_proxy`: its route leads to an internal listener, and the rest
of the connection is HTTP/2 for the names of the mesh.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from sidecar.proxy import chain as chains
from sidecar.proxy import inspect, tls
from sidecar.proxy.chain import Chain
from sidecar.proxy.config import Codec
from sidecar.proxy.connect import tune
from sidecar.proxy.inspect import NOT_TLS, Hello

if TYPE_CHECKING:
    from sidecar.proxy.listener import Listener

MAX_HEAD: Final = 16 * 1024
"""Bytes of a CONNECT request's head."""


class Accepted(asyncio.Protocol):
    """One accepted socket on its way to a chain and a protocol."""

    def __init__(self, listener: "Listener") -> None:
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._data = b""
        self._timer: asyncio.TimerHandle | None = None
        self._step: Callable[[], None] = self._inspect
        """What is done with bytes that come."""
        self._handshake: asyncio.Task[None] | None = None
        self._chain: Chain | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        listener = self._listener
        self._transport = cast(asyncio.Transport, transport)
        if listener.is_full:
            listener.worker.stats.connections_refused += 1
            self._transport.abort()
            return
        tune(transport)
        self._transport.set_write_buffer_limits(high=listener.config.buffer_limit)
        listener.accepted.add(self)
        config = listener.config
        if not config.inspects_tls and not config.inspects_http:
            self._choose(NOT_TLS, ())
        elif config.inspect_timeout_s:
            self._wait(config.inspect_timeout_s, self._on_silence)

    def data_received(self, data: bytes) -> None:
        self._data += data
        self._step()

    def eof_received(self) -> bool:
        return False

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        self._stop_waiting()
        self._timer = self._listener.worker.loop.call_later(seconds, then)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- which chain --------------------------------------------------------------------------------

    def _inspect(self) -> None:
        """Read on until the inspectors know."""
        config = self._listener.config
        hello = inspect.tls(self._data) if config.inspects_tls else NOT_TLS
        if hello is None:
            return
        if hello.is_tls or not config.inspects_http:
            self._choose(hello, hello.applications)
            return
        application = inspect.http(self._data)
        if application is not None:
            self._choose(hello, (application,) if application else ())

    def _on_silence(self) -> None:
        """The client has not said what it speaks."""
        self._listener.worker.stats.detect_timeouts += 1
        if self._listener.config.goes_on_after_timeout:
            self._choose(NOT_TLS, ())
        else:
            self.close()

    def _choose(self, hello: Hello, applications: tuple[str, ...]) -> None:
        self._stop_waiting()
        listener = self._listener
        chain = listener.find(hello.server_name, chains.TLS if hello.is_tls else chains.RAW, applications)
        if chain is None:
            listener.worker.stats.no_filter_chain += 1
            self.close()
            return
        self._chain = chain
        if chain.config.tls is not None and chain.context is None:
            listener.worker.stats.handshakes_failed += 1  # its certificate has not come yet
            self.close()
        elif chain.context is not None:
            self._step = lambda: None  # what comes decrypted before the handshake's task goes on stays in `_data`
            self._handshake = listener.worker.loop.create_task(self._secure(chain))
        else:
            self._open(None)

    async def _secure(self, chain: Chain) -> None:
        """TLS; what was read of it already is given to the new protocol first."""
        loop = self._listener.worker.loop
        plain = self._transport
        assert plain is not None and chain.context is not None and chain.tls is not None
        config = chain.tls
        handshake = loop.create_task(
            loop.start_tls(
                plain,
                self,
                chain.context,
                server_side=True,
                ssl_handshake_timeout=self._listener.limits.handshake_timeout_s,
            )
        )
        try:
            # After one turn of the loop `start_tls` has put its protocol in our place, and nothing more is read for us: what was read
            # until then is the client's hello. After another turn that protocol knows its transport and may have it.
            await asyncio.sleep(0)
            read, self._data = self._data, b""
            await asyncio.sleep(0)
            protocol = plain.get_protocol()
            if protocol is None:
                raise ConnectionResetError("the client hung up")
            if read:
                _feed(protocol, read)
            secured = await handshake
        except OSError:
            self._listener.worker.stats.handshakes_failed += 1
            self.close()
            return
        finally:
            handshake.cancel()
            handshake.add_done_callback(_look_at)
            self._handshake = None
        assert secured is not None
        self._transport = secured
        peer = secured.get_extra_info("ssl_object")
        if tls.refusal(config, peer):
            self._listener.worker.stats.handshakes_failed += 1
            self.close()
            return
        secured.set_write_buffer_limits(high=self._listener.config.buffer_limit)
        self._open(peer.selected_alpn_protocol())

    def _open(self, application: str | None) -> None:
        """The chain is known, and the bytes are plain: speak."""
        chain, transport = self._chain, self._transport
        assert chain is not None and transport is not None
        manager = chain.config.manager
        if manager is None:
            self._leave()
            self._listener.serve_tcp(chain, transport, self._data)
        elif application == "h2" or manager.codec is Codec.HTTP2:
            self._serve_http2()
        elif (application == "http/1.1" and manager.codec is Codec.AUTO) or manager.codec is Codec.HTTP1:
            self._serve_http1()
        else:
            self._step = self._detect
            self._wait(self._listener.limits.detect_timeout_s, self._on_no_http)
            if self._data:
                self._detect()

    # -- which HTTP ---------------------------------------------------------------------------------

    def _on_no_http(self) -> None:
        self._listener.worker.stats.detect_timeouts += 1
        self.close()

    def _serve_http2(self) -> None:
        transport, chain = self._transport, self._chain
        assert transport is not None and chain is not None
        self._leave()
        self._listener.serve_http2(chain, transport, self._data)

    def _serve_http1(self) -> None:
        transport, chain = self._transport, self._chain
        assert transport is not None and chain is not None
        self._leave()
        self._listener.serve_http1(chain, transport, self._data)

    def _detect(self) -> None:
        data = self._data
        if data.startswith(b"PRI * HTTP/2"):
            self._serve_http2()
        elif data.startswith(b"CONNECT "):
            if b"\r\n\r\n" in data:
                self._on_connect()
            elif len(data) > MAX_HEAD:
                self._refuse(431, f"the request's head is over {MAX_HEAD} bytes")
        elif not b"PRI * HTTP/2".startswith(data) and not b"CONNECT ".startswith(data):
            self._serve_http1()

    def _on_connect(self) -> None:
        """An HTTP/1.1 CONNECT with its whole head."""
        chain = self._chain
        assert chain is not None and chain.config.manager is not None
        head, _, rest = self._data.partition(b"\r\n\r\n")
        words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            self._refuse(400, "this is no HTTP/1.1")
            return
        target = words[1]
        if not chain.config.manager.takes_connect:
            self._refuse(403, "CONNECT is not allowed on this listener")
            return
        host, _, port = target.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            self._refuse(400, f'CONNECT needs HOST:PORT, not "{target[:200]}"')
            return
        listener = self._listener.tunnel_target(chain, target)
        if listener is None:
            self._refuse(404, f'no way to "{target[:200]}"')
            return
        transport = self._transport
        assert transport is not None
        self._leave()
        transport.write(b"HTTP/1.1 200 OK\r\n\r\n")
        listener.serve_tunnel(transport, rest)

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

    # -- the end ------------------------------------------------------------------------------------

    def _leave(self) -> None:
        self._listener.accepted.discard(self)
        self._stop_waiting()

    def close(self) -> None:
        """End the connection."""
        self._leave()
        if self._handshake is not None:
            self._handshake.cancel()
        if self._transport is not None:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        if self._handshake is not None:  # TLS has not taken our place yet, so it will not hear of it
            self._listener.worker.stats.handshakes_failed += 1
            self._handshake.cancel()


def _look_at(handshake: "asyncio.Task[asyncio.Transport | None]") -> None:
    """How a handshake ended that nobody waits for any more is no news to the loop."""
    if not handshake.cancelled():
        handshake.exception()


def _feed(protocol: asyncio.BaseProtocol, data: bytes) -> None:
    """Give a protocol bytes as if the transport had read them."""
    if not isinstance(protocol, asyncio.BufferedProtocol) and not hasattr(protocol, "get_buffer"):
        cast(asyncio.Protocol, protocol).data_received(data)
        return
    buffered = cast(asyncio.BufferedProtocol, protocol)
    while data:
        buffer = memoryview(buffered.get_buffer(len(data)))
        size = min(len(buffer), len(data))
        buffer[:size] = data[:size]
        buffered.buffer_updated(size)
        data = data[size:]
