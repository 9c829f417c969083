"""An HTTP/1.1 endpoint, put behind the data path as an HTTP/2 server that takes one call at a time (see `pipe`)."""

import asyncio
from time import monotonic
from typing import Final, cast

import h11

from sidecar.http2 import headers
from sidecar.http2.connection import Connection, Handler, Role, Settings, Stream
from sidecar.http2.frames import ErrorCode
from sidecar.proxy.http1.fields import without_hops
from sidecar.proxy.http1.pipe import UPGRADE, Pipe

MAX_HEAD: Final = 60 * 1024
"""Bytes of a response's head."""
_WITH_BODY: Final = frozenset((b"POST", b"PUT", b"PATCH"))


class Http1Server(Handler):
    """One connection to an endpoint that speaks HTTP/1.1."""

    def __init__(self) -> None:
        self._h1 = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        self._conn = Connection(Role.SERVER, self, Settings(max_concurrent_streams=1))
        self._transport: asyncio.Transport | None = None
        self._core: asyncio.Protocol | None = None
        self._stream: Stream | None = None
        self._wanted = b""
        """The protocol that the client wants to go over to."""
        self._has_begun = False
        """The head of the answer is there."""
        self._is_raw = False
        self._is_paused = False
        self._held = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def serve(self, core: asyncio.Protocol) -> None:
        """Begin, as the server of a connection of the data path; it knows our settings before it sends anything."""
        assert self._transport is not None
        core.connection_made(Pipe(self._transport, self._on_core, self.close))
        self._core = core
        self._pump()

    # -- the endpoint's socket ----------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._is_raw:
            self._send(data, ended=False)
        else:
            self._h1.receive_data(data)
            self._read()
        self._pump()

    def eof_received(self) -> bool:
        if self._is_raw:
            if self._stream is not None:
                self._conn.send_data(self._stream, b"", 0, True)
                self._pump()
            return True
        self._h1.receive_data(b"")
        self._read()  # an answer without a length ends with its connection
        self._pump()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
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
        if self._transport is not None:
            self._transport.close()

    # -- answers ------------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            while self._transport is not None:
                event = self._h1.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                    return
                if isinstance(event, h11.InformationalResponse):
                    if event.status_code == 101:
                        self._switch(event)
                        return
                elif isinstance(event, h11.Response):
                    self._on_response(event)
                elif isinstance(event, h11.Data):
                    self._send(bytes(event.data), ended=False)
                elif isinstance(event, h11.EndOfMessage):
                    self._on_end()
                    return
        except h11.RemoteProtocolError:
            self._break()

    def _break(self) -> None:
        """The endpoint speaks no HTTP: the data path gets an answer that it takes for a malformed one, or a reset within an answer."""
        stream, self._stream = self._stream, None
        if stream is not None:
            if self._has_begun:
                self._conn.reset(stream, ErrorCode.PROTOCOL_ERROR)
            else:
                self._conn.send_headers(stream, headers.encode([(b":status", b"0")]), True)
            self._pump()
        self.close()

    def _switch(self, event: h11.InformationalResponse) -> None:
        stream = self._stream
        if stream is None or not self._wanted:
            self.close()
            return
        fields = without_hops((bytes(name), bytes(value)) for name, value in event.headers)
        self._conn.send_headers(stream, headers.encode([(b":status", b"200"), *fields, (UPGRADE, self._wanted)]), False)
        self._is_raw = True
        self._conn.go_away()  # no call comes after this one
        early, _ = self._h1.trailing_data
        if early:
            self._send(early, ended=False)

    def _on_response(self, event: h11.Response) -> None:
        stream = self._stream
        if stream is None:
            self.close()  # an answer to nothing
            return
        fields = without_hops((bytes(name), bytes(value)) for name, value in event.headers)
        self._has_begun = True
        self._conn.send_headers(stream, headers.encode([(b":status", b"%d" % event.status_code), *fields]), False)

    def _send(self, data: bytes, *, ended: bool) -> None:
        stream = self._stream
        if stream is None or stream.is_dead:
            return
        if not self._conn.send_data(stream, data, len(data), ended) and self._conn.waiting and self._transport:
            self._transport.pause_reading()

    def _on_end(self) -> None:
        """The answer is whole: the next call may come, if the connection goes on."""
        if self._h1.our_state is h11.DONE and self._h1.their_state is h11.DONE:
            self._h1.start_next_cycle()
        else:
            self._conn.go_away()
        stream, self._stream = self._stream, None
        if stream is not None and not stream.is_dead:
            self._conn.send_data(stream, b"", 0, True)

    # -- the data path ------------------------------------------------------------------------------

    def _on_core(self, data: bytes) -> None:
        self._conn.receive(data, monotonic())
        if self._conn.is_closed:
            self.close()
        elif self._conn.has_output():
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        if self._core is not None and self._conn.has_output():
            self._core.data_received(self._conn.take_output())

    def on_request(self, stream: Stream, block: bytes, ended: bool) -> None:
        if self._h1.our_state is not h11.IDLE or self._transport is None:
            self._conn.reset(stream, ErrorCode.REFUSED_STREAM)
            return
        self._stream = stream
        self._has_begun = False
        fields = headers.decode(block)
        pseudo = dict(fields)
        method = pseudo[b":method"]
        rest = without_hops((name, value) for name, value in fields if not name.startswith(b":"))
        found = [(b"host", pseudo[b":authority"]), *rest]
        self._wanted = pseudo.get(UPGRADE, b"")
        has_length = any(name == b"content-length" for name, _ in rest)
        if self._wanted:
            found += [(b"connection", b"upgrade"), (b"upgrade", self._wanted)]
            ended = True  # what follows belongs to the other protocol
        elif ended and method in _WITH_BODY and not has_length:
            found.append((b"content-length", b"0"))
        elif not ended and not has_length:
            found.append((b"transfer-encoding", b"chunked"))
        self._write(h11.Request(method=method, target=pseudo[b":path"], headers=found))
        if ended:
            self._write(h11.EndOfMessage())

    def on_data(self, stream: Stream, payload: bytes, credit: int, ended: bool) -> None:
        if stream is self._stream and self._transport is not None:
            if self._is_raw:
                self._transport.write(payload)
                if ended and self._transport.can_write_eof():
                    self._transport.write_eof()
            elif not self._wanted:
                if payload:
                    self._write(h11.Data(data=payload))
                if ended:
                    self._write(h11.EndOfMessage())
        if self._is_paused:
            self._held += credit
        else:
            self._conn.credit(stream, credit)

    def on_headers(self, stream: Stream, block: bytes, ended: bool) -> None:
        if stream is self._stream:
            self._write(h11.EndOfMessage())  # trailers, which are left out

    def on_sent(self, stream: Stream, credit: int) -> None:
        if not self._conn.waiting and self._transport is not None:
            self._transport.resume_reading()

    def on_reset(self, stream: Stream, code: int, was_refused: bool) -> None:
        if stream is self._stream:
            self._stream = None
            self.close()  # HTTP/1.1 has no other way to take a request back

    def on_goaway(self, code: int) -> None:
        raise AssertionError("a server is not told of a client's GOAWAY")

    def on_capacity(self) -> None:
        """Nothing waits here."""

    def _write(self, event: h11.Event) -> None:
        if self._transport is None:
            return
        try:
            data = self._h1.send(event)
        except h11.LocalProtocolError:
            if self._stream is not None:
                self._conn.reset(self._stream, ErrorCode.PROTOCOL_ERROR)
                self._stream = None
                asyncio.get_running_loop().call_soon(self._pump)
            self.close()
            return
        if data:
            self._transport.write(data)
