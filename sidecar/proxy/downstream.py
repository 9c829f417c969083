"""A client's connection: requests in, responses out.

Hot path: a call costs here one look-up of its header block, one `Call`, and the policies of its decision.
"""

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Final, cast

from sidecar.http2 import fields as field_rules
from sidecar.http2 import headers
from sidecar.http2.connection import Connection, Handler, Role, Settings, Stream
from sidecar.http2.fields import Malformed
from sidecar.http2.frames import ErrorCode
from sidecar.http2.headers import HeaderError, TooLarge
from sidecar.proxy.access import Caller
from sidecar.proxy.call import Call
from sidecar.proxy.config import Limits
from sidecar.proxy.decision import DecisionCache
from sidecar.proxy.status import Status
from sidecar.proxy.tls import subject
from sidecar.proxy.worker import Peer, Worker
from sidecar.telemetry.stats import CallStats

if TYPE_CHECKING:
    from sidecar.proxy.listener import Listener

FAREWELL_S: Final = 5.0
"""A client that was sent elsewhere gets so long to read its last answer and to close."""


class Downstream(Handler, Peer):
    """One HTTP/2 connection of a client; also the handler of its events."""

    def __init__(
        self,
        listener: "Listener",
        worker: Worker,
        cache: DecisionCache,
        stats: CallStats,
        settings: Settings,
        limits: Limits,
    ) -> None:
        self.listener = listener
        self.worker = worker
        self.limits = limits
        self.stats = stats
        """Counts calls that reach no cluster."""
        self.conn = Connection(Role.SERVER, self, settings)
        self.calls = 0
        self.is_dirty = False
        self._is_lingering = False
        self.cache = cache
        self._caller: Caller | None = None
        self.identity = ""
        """The URI of the client's certificate (SPIFFE ID), checked; empty if it showed none."""
        self.security = ""
        """`mutual_tls` or `tls`; empty is plain text."""
        self._seen: dict[int, None] = {}
        self._transport: asyncio.Transport | None = None
        self.drain_timeout_s = 5.0
        """A client that was asked to go elsewhere and does not answer our PING is taken at its word after so long."""
        self.delayed_close_s = 1.0
        """A client that broke the protocol gets so long to read why, before its socket is cut."""
        self._early_resets = 0
        self._lengths: dict[int, int] = {}
        """Bytes still expected, for requests that declared a content-length."""

    # -- socket -------------------------------------------------------------------------------------

    def adopt(self, transport: asyncio.Transport, data: bytes) -> None:
        """Take over an accepted socket and the bytes that were read from it."""
        self._transport = transport
        transport.set_protocol(cast(asyncio.BaseProtocol, self))
        self.listener.downstreams.add(self)
        self.mark()
        if data:
            self.data_received(data)

    def data_received(self, data: bytes) -> None:
        now = monotonic()
        worker = self.worker
        worker.now = now
        worker.is_receiving = True
        conn = self.conn
        try:
            conn.receive(data, now)
            if conn.has_output():
                self.mark()
            if conn.is_closed and not self._is_lingering:
                worker.stats.protocol_errors += 1
                if conn.exceeded:
                    worker.stats.count_limit(conn.exceeded)
                self.mark()
        finally:
            worker.is_receiving = False
        worker.flush()

    @property
    def caller(self) -> Caller:
        """The client, as access rules read it."""
        if self._caller is None:
            self._caller = _caller(self._transport)
        return self._caller

    @property
    def remote_host(self) -> str:
        """The client's IP address; empty if it is not known (a call from inside this process)."""
        name = self._transport.get_extra_info("peername") if self._transport is not None else None
        return str(name[0]) if isinstance(name, tuple) else ""

    @property
    def addresses(self) -> bytes:
        """Both ends of the client's connection, one after the other: what tells it from every other."""
        transport = self._transport
        ends = (transport.get_extra_info(name) for name in ("peername", "sockname")) if transport is not None else ()
        return b"".join(_address(end) for end in ends)

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self.listener.downstreams:
            self.listener.on_gone(self)
        self.listener.stalled.discard(self)
        self._end_calls()
        self._transport = None

    def _end_calls(self) -> None:
        self.conn.is_closed = True
        self.worker.now = monotonic()
        for stream in list(self.conn.streams.values()):
            stream.is_dead = True
            if stream.call is not None:
                stream.call.finish(Status.CANCELLED, "DC")
        self.conn.streams.clear()

    def _linger(self, transport: asyncio.Transport) -> None:
        """Say no more, but read on for a while: closing on unread bytes would reset the socket, and what we wrote last would be lost."""
        if self._is_lingering:
            return
        self._is_lingering = True
        self._end_calls()
        if transport.can_write_eof():  # TLS cannot close one direction alone
            transport.write_eof()
        self.worker.loop.call_later(self.delayed_close_s if self.conn.close_reason else FAREWELL_S, transport.abort)

    def eof_received(self) -> None:
        """The client sends no more: asyncio closes the transport."""

    def pause_writing(self) -> None:
        self.conn.pause()
        self.listener.stalled.add(self)

    def resume_writing(self) -> None:
        self.conn.resume()
        self.listener.stalled.discard(self)
        self.mark()

    def mark(self) -> None:
        """There is something to write."""
        if not self.is_dirty:
            self.worker.mark(self)

    def flush(self) -> None:
        """Write what has gathered; close what is over."""
        transport = self._transport
        if transport is None:
            return
        conn = self.conn
        if conn.has_output():
            transport.write(conn.take_output())
        if conn.is_closed or (conn.is_going_away and not conn.streams):
            self._linger(transport)

    def drain(self) -> None:
        """Ask the client to go elsewhere; running calls finish."""
        if not self.conn.is_draining:
            self.worker.loop.call_later(self.drain_timeout_s, self._last_call)
        self.conn.drain()
        self.mark()

    def _last_call(self) -> None:
        """The client has had its time to hear of the end, whether it answered our PING or not."""
        if self._transport is not None and not self.conn.is_closed:
            self.conn.go_away()
            self.mark()

    def retire(self) -> None:
        """The same, for a connection that lived long enough."""
        self.drain()

    def unread(self) -> int:
        """Bytes that the client's socket has not taken."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def cut(self, reason: str) -> None:
        """End the connection now: its calls are cancelled."""
        if self._transport is not None:
            self._transport.abort()

    # -- HTTP/2 -------------------------------------------------------------------------------------

    def on_request(self, stream: Stream, block: bytes, ended: bool) -> None:
        plan = self.cache.exact.get(block)
        if plan is None:
            try:
                plan = self.cache.plan(block, self._seen)
            except HeaderError as error:
                self.conn.fail(ErrorCode.COMPRESSION_ERROR, str(error))
                return
            except Malformed:
                self.worker.stats.protocol_errors += 1
                self.conn.reset(stream, ErrorCode.PROTOCOL_ERROR)
                return
        if plan.decision.content_length >= 0:
            if ended and plan.decision.content_length:
                self.conn.reset(stream, ErrorCode.PROTOCOL_ERROR)
                return
            self._lengths[stream.id] = plan.decision.content_length
        call = Call(self, stream, plan, self.worker.now, ended)
        stream.call = call
        self.calls += 1
        call.start()

    def on_headers(self, stream: Stream, block: bytes, ended: bool) -> None:
        call: Call | None = stream.call
        try:
            for field in headers.split(block):
                field_rules.check(headers.name_of(field), headers.value_of(field))
        except HeaderError as error:
            self.conn.fail(ErrorCode.COMPRESSION_ERROR, str(error))
            return
        except (Malformed, TooLarge):
            self._reject(stream)
            return
        if self._lengths.get(stream.id):
            self._reject(stream)
        elif call is not None:
            call.on_trailers(block)

    def on_data(self, stream: Stream, payload: bytes, credit: int, ended: bool) -> None:
        call: Call | None = stream.call
        if self._lengths and stream.id in self._lengths and not self._fits(stream, len(payload), ended):
            self._reject(stream)
        elif call is not None:
            call.on_body(payload, credit, ended)
        else:
            self.conn.credit(stream, credit)

    def _fits(self, stream: Stream, size: int, ended: bool) -> bool:
        """True if the data agrees with the declared content-length."""
        left = self._lengths[stream.id] - size
        self._lengths[stream.id] = left
        return left == 0 if ended else left >= 0

    def _reject(self, stream: Stream) -> None:
        """The request is malformed: reset it, cancel what it began."""
        self.conn.reset(stream, ErrorCode.PROTOCOL_ERROR)
        if stream.call is not None:
            stream.call.finish(Status.INTERNAL, "DPE")

    def on_sent(self, stream: Stream, credit: int) -> None:
        call: Call | None = stream.call
        if call is not None and call.up is not None and call.up_stream is not None:
            call.is_active = True
            call.up.conn.credit_stream(call.up_stream, credit)
            call.up.mark()

    def on_reset(self, stream: Stream, code: int, was_refused: bool) -> None:
        call: Call | None = stream.call
        if call is not None:
            is_early = self.worker.now - call.started < self.limits.premature_reset_s
            call.finish(Status.CANCELLED, "DC")
            if is_early:
                self._count_early_reset()

    def _count_early_reset(self) -> None:
        """Calls that are begun only to be reset cost us more than the client: enough of them end the connection (Envoy's rule)."""
        self._early_resets += 1
        ended = (self.conn.opened + 1) // 2 - len(self.conn.streams)
        if self._early_resets * 2 >= max(ended, self.limits.premature_resets):
            self.worker.stats.count_limit("premature_resets")
            self.conn.fail(ErrorCode.ENHANCE_YOUR_CALM, "too many calls were reset early")
            self.mark()

    def on_call_end(self, stream: Stream) -> None:
        """A call is over; one whose request goes on is told to stop (RFC 9113 §8.1)."""
        if self._lengths:
            self._lengths.pop(stream.id, None)
        if stream.local_closed and not stream.remote_closed and not stream.is_dead:
            self.conn.reset(stream, ErrorCode.NO_ERROR)
        if self.conn.is_going_away or self.conn.is_draining:
            self.mark()

    def on_goaway(self, code: int) -> None:
        raise AssertionError("a server is not told of a client's GOAWAY")

    def on_capacity(self) -> None:
        """A client's SETTINGS: data that waited may have left."""


def _caller(transport: asyncio.Transport | None) -> Caller:
    if transport is None:
        return Caller()
    secure = transport.get_extra_info("ssl_object")
    certificate = secure.getpeercert() if secure is not None else None
    names = [(str(kind), str(value)) for kind, value in (certificate or {}).get("subjectAltName", ())]
    ends = [transport.get_extra_info(name) for name in ("peername", "sockname")]
    remote, own = (end if isinstance(end, tuple) else ("", 0) for end in ends)
    return Caller(
        is_secure=secure is not None,
        uris=tuple(value for kind, value in names if kind == "URI"),
        dns=tuple(value for kind, value in names if kind == "DNS"),
        subject=subject(certificate or {}),
        host=str(remote[0]),
        own_host=str(own[0]),
        own_port=int(own[1]),
        server_name=str(transport.get_extra_info("server_name") or ""),
    )


def _address(end: object) -> bytes:
    """`HOST:PORT`; nothing for what is no IP socket."""
    if not isinstance(end, tuple):
        return b""
    host, port = str(end[0]), int(end[1])
    return (f"[{host}]:{port}" if ":" in host else f"{host}:{port}").encode()


class CountedDownstream(Downstream):
    """A connection that takes a limited number of calls (Envoy: max_requests_per_connection)."""

    def __init__(
        self,
        listener: "Listener",
        worker: Worker,
        cache: DecisionCache,
        stats: CallStats,
        settings: Settings,
        limits: Limits,
        max_requests: int,
    ) -> None:
        super().__init__(listener, worker, cache, stats, settings, limits)
        self._last_stream = 2 * max_requests - 1

    def on_request(self, stream: Stream, block: bytes, ended: bool) -> None:
        super().on_request(stream, block, ended)
        if stream.id >= self._last_stream and not self.conn.is_draining:
            self.worker.stats.count_ended("requests")
            self.drain()
