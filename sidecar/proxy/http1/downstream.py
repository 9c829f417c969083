"""An HTTP/1.1 client, put before the data path as an HTTP/2 client (see `pipe`)."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from time import monotonic
from typing import Final, cast

import h11

from sidecar.http2 import headers
from sidecar.http2.connection import Connection, Handler, Role, Settings, Stream
from sidecar.http2.frames import ErrorCode
from sidecar.proxy.http1.fields import Fields, target, wanted_upgrade, without_hops
from sidecar.proxy.http1.pipe import UPGRADE, Pipe

HEAD_TIMEOUT_S: Final = 15.0
"""A head that has begun and does not end by then is answered with 408."""


class Http1Client(Handler):
    """One connection of a client that speaks HTTP/1.1; requests one after the other, as they come."""

    def __init__(self, upgrades: frozenset[str], scheme: bytes, max_head: int) -> None:
        self._upgrades = upgrades
        self._max_head = max_head
        """Bytes of a request's head; more is answered with 431 (Envoy: max_request_headers_kb)."""
        self._scheme = scheme
        self._h1 = h11.Connection(h11.SERVER, max_incomplete_event_size=max_head)
        self._conn = Connection(Role.CLIENT, self, Settings())
        self._transport: asyncio.Transport | None = None
        self._core: asyncio.Protocol | None = None
        self._stream: Stream | None = None
        self._may_switch = False
        """The client wants to go over to another protocol: its request does not end before that is answered."""
        self._is_raw = False
        """Behind 101: bytes."""
        self._is_paused = False
        self._held = 0
        """Window that the data path gets back once the client's socket takes bytes again."""
        self._has_begun = False
        """The head of the answer is written."""
        self._timer: asyncio.TimerHandle | None = None

    def adopt(self, transport: asyncio.Transport, data: bytes, serve: Callable[[asyncio.Transport], None]) -> None:
        """Take over an accepted socket; `serve` starts the data path on the other end of the pipe."""
        self._transport = transport
        transport.set_protocol(cast(asyncio.BaseProtocol, self))
        pipe = Pipe(transport, self._on_core, self.close)
        serve(pipe)
        self._core = cast(asyncio.Protocol, pipe.get_protocol())
        self._pump()
        if data:
            self.data_received(data)

    # -- the client's socket ------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._is_raw:
            self._send(data)
            self._pump()
            return
        try:
            self._h1.receive_data(data)
        except h11.RemoteProtocolError as error:
            self._refuse(error.error_status_hint, str(error))
            return
        self._read()

    def eof_received(self) -> bool:
        if self._is_raw and self._stream is not None:
            self._conn.send_data(self._stream, b"", 0, True)
            self._pump()
            return True
        self._h1.receive_data(b"")
        return self._stream is not None  # an answer that is under way may still be read

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._transport = None
        if self._core is not None:
            core, self._core = self._core, None
            core.connection_lost(exc)

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        held, self._held = self._held, 0
        if held and self._stream is not None:
            self._conn.credit(self._stream, held)
            self._pump()

    def close(self) -> None:
        """End the connection."""
        self._stop_timer()
        if self._transport is not None:
            self._transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- requests -----------------------------------------------------------------------------------

    def _read(self) -> None:
        """Take what h11 has understood."""
        try:
            while self._transport is not None and not self._is_raw:
                event = self._h1.next_event()
                if event is h11.NEED_DATA:
                    self._expect_rest_of_head()
                    break
                if event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                    break
                self._on_event(event)
        except h11.RemoteProtocolError as error:
            self._refuse(error.error_status_hint, str(error))
        self._pump()

    def _expect_rest_of_head(self) -> None:
        is_within_head = self._stream is None and self._h1.trailing_data[0] != b""
        if is_within_head and self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(HEAD_TIMEOUT_S, self._refuse, 408, "the request's head does not end")

    def _on_event(self, event: object) -> None:
        if isinstance(event, h11.Request):
            self._stop_timer()
            self._on_request(event)
        elif isinstance(event, h11.Data):
            self._send(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage):
            stream = self._stream
            if stream is not None and not stream.local_closed and not self._may_switch:
                self._conn.send_data(stream, b"", 0, True)

    def _on_request(self, request: h11.Request) -> None:
        fields = [(bytes(name), bytes(value)) for name, value in request.headers]
        upgrade = wanted_upgrade(fields)
        self._has_begun = False
        self._may_switch = upgrade != b""
        if request.http_version != b"1.1":
            self._refuse(426, "HTTP/1.1 is spoken here")
            return
        if sum(len(name) + len(value) for name, value in fields) + len(request.target) > self._max_head:
            self._refuse(431, f"the request's head is over {self._max_head} bytes")
            return
        if request.method == b"CONNECT":
            self._refuse(403, "CONNECT is not allowed on this connection")
            return
        if upgrade and upgrade.decode("latin-1") not in self._upgrades:
            self._refuse(403, "this upgrade is not allowed here")
            return
        if self._h1.they_are_waiting_for_100_continue:
            self._write(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
        host = dict(fields).get(b"host", b"")
        scheme, authority, path = target(bytes(request.target), host)
        block: Fields = [
            (b":method", bytes(request.method)),
            (b":scheme", self._scheme if scheme == b"http" else scheme),
            (b":path", path),
            (b":authority", authority),
            *((name, value) for name, value in without_hops(fields) if name not in (b"host", b"expect")),
        ]
        if upgrade:
            block.append((UPGRADE, upgrade))
        # Without content-length and transfer-encoding there is no body (RFC 9112 §6.3).
        has_body = upgrade != b"" or any(
            (name == b"content-length" and value != b"0") or name == b"transfer-encoding" for name, value in fields
        )
        if not self._conn.has_room():
            self._refuse(503, "this connection is about to end")
            return
        self._stream = self._conn.open_stream(headers.encode(block), not has_body)

    def _send(self, data: bytes) -> None:
        """Body of a request, or bytes behind an upgrade; what the data path does not take now holds back the client."""
        stream = self._stream
        if stream is None or stream.is_dead or stream.local_closed:
            return
        if not self._conn.send_data(stream, data, len(data), False) and self._conn.waiting and self._transport:
            self._transport.pause_reading()

    # -- the data path ------------------------------------------------------------------------------

    def _on_core(self, data: bytes) -> None:
        self._conn.receive(data, monotonic())
        if self._conn.is_closed:
            self.close()
        elif self._conn.has_output():
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        """Hand over what is to be said to the data path."""
        if self._core is not None and self._conn.has_output():
            self._core.data_received(self._conn.take_output())

    def on_headers(self, stream: Stream, block: bytes, ended: bool) -> None:
        if stream is not self._stream:
            return
        if self._has_begun:
            self._finish()  # trailers, which HTTP/1.1 clients do not ask for
            return
        fields = headers.decode(block)
        status = int(dict(fields)[b":status"])
        rest = [(name, value) for name, value in fields if not name.startswith(b":") and name != UPGRADE]
        upgrade = dict(fields).get(UPGRADE)
        self._has_begun = True
        if upgrade is not None:
            switch = [(b"connection", b"upgrade"), (b"upgrade", upgrade)]
            self._write(
                h11.InformationalResponse(status_code=101, headers=[*rest, *switch], reason=b"Switching Protocols")
            )
            self._is_raw = True
            early, _ = self._h1.trailing_data
            if early:
                self._send(early)
            return
        has_length = any(name == b"content-length" for name, _ in rest)
        if ended and not has_length and status not in (204, 304):
            rest.append((b"content-length", b"0"))
        is_request_whole = stream.local_closed and not self._h1.client_is_waiting_for_100_continue
        if self._conn.is_going_away or not is_request_whole:
            rest.append((b"connection", b"close"))
        self._write(h11.Response(status_code=status, headers=rest, reason=_reason(status)))
        if ended:
            self._finish()

    def on_data(self, stream: Stream, payload: bytes, credit: int, ended: bool) -> None:
        if stream is self._stream and self._transport is not None:
            if self._is_raw:
                self._transport.write(payload)
            elif payload:
                self._write(h11.Data(data=payload))
        if self._is_paused:
            self._held += credit
        else:
            self._conn.credit(stream, credit)
        if ended and stream is self._stream:
            self._finish()

    def _finish(self) -> None:
        """The answer is over: on to the next request, or the end."""
        self._stream = None
        self._held = 0
        if self._is_raw:
            self.close()
            return
        self._write(h11.EndOfMessage())
        if self._h1.our_state is h11.DONE and self._h1.their_state is h11.DONE and not self._conn.is_going_away:
            self._h1.start_next_cycle()
            asyncio.get_running_loop().call_soon(self._read)
        else:
            self.close()

    def on_sent(self, stream: Stream, credit: int) -> None:
        if not self._conn.waiting and self._transport is not None:
            self._transport.resume_reading()

    def on_reset(self, stream: Stream, code: int, was_refused: bool) -> None:
        if stream is not self._stream:
            return
        self._stream = None
        if self._has_begun or self._is_raw:
            self.close()
        elif was_refused:
            self._refuse(503, "the request was refused")
        else:
            self._refuse(400 if code == ErrorCode.PROTOCOL_ERROR else 502, "the request was reset")

    def on_request(self, stream: Stream, block: bytes, ended: bool) -> None:
        raise AssertionError("the data path is the server here")

    def on_goaway(self, code: int) -> None:
        if self._stream is None:
            self.close()

    def on_capacity(self) -> None:
        """One request at a time: nobody waits for room."""

    # -- answers of our own -------------------------------------------------------------------------

    def _write(self, event: h11.Event) -> None:
        if self._transport is None:
            return
        try:
            data = self._h1.send(event)
        except h11.LocalProtocolError:
            self.close()  # the answer breaks HTTP/1.1, such as more bytes than its content-length says
            return
        if data:
            self._transport.write(data)

    def _refuse(self, status: int, text: str) -> None:
        """Answer and end the connection."""
        if self._h1.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = text.encode() + b"\n"
            fields = [
                (b"content-type", b"text/plain"),
                (b"content-length", b"%d" % len(body)),
                (b"connection", b"close"),
            ]
            self._write(h11.Response(status_code=status, headers=fields, reason=_reason(status)))
            self._write(h11.Data(data=body))
        if self._stream is not None:
            self._conn.reset(self._stream, ErrorCode.CANCEL)
            self._stream = None
            self._pump()
        self.close()


def _reason(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""
