"""A connection to an endpoint: requests out, responses back.

Hot path: a response costs here one memo look-up per header block and one `send_*` per frame; nothing is decoded twice.
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
from sidecar.policy.retry import Cause
from sidecar.proxy import attempts
from sidecar.proxy import status as grpc_status
from sidecar.proxy.outlier import UNREACHABLE
from sidecar.proxy.status import NOT_GRPC, Status
from sidecar.proxy.worker import Peer, Worker

if TYPE_CHECKING:
    from sidecar.proxy.call import Call
    from sidecar.proxy.cluster import Endpoint

MAX_MEMO: Final = 2048
"""Response blocks that are remembered per connection; then all are forgotten."""


HTTP_OK: Final = 200
NARROW_WINDOW: Final = 16 * 1024
"""Bytes that a stream may still send once so many wait for one client that a quarter of its bound is reached."""


class Block:
    """What a response's header block says: remembered, as servers send few different ones."""

    __slots__ = ("_fields", "data", "http_status", "is_error", "pushback_s", "status")

    def __init__(self, data: bytes) -> None:
        """Raises HeaderError, TooLarge, and Malformed (RFC 9113 §8.3.2)."""
        fields = headers.split(data)
        self.http_status = 0
        """0 in trailers."""
        self.status = -1
        """grpc-status; -1 if there is none."""
        self.pushback_s = 0.0
        """grpc-retry-pushback-ms; 0 if there is none."""
        for number, field in enumerate(fields):
            name = headers.name_of(field)
            value = headers.value_of(field)
            if name == b":status":
                if number or len(value) != 3 or not value.isdigit() or value < b"100":
                    raise Malformed(f':status "{value.decode("latin-1")}"')
                self.http_status = int(value)
                continue
            field_rules.check(name, value)
            if name == b"grpc-status":
                self.status = min(int(value), NOT_GRPC) if value.isdigit() and len(value) < 4 else Status.UNKNOWN
            elif name == b"grpc-retry-pushback-ms" and value.isdigit() and len(value) < 9:
                self.pushback_s = int(value) / 1000.0
        self.data = b"".join([whole for _, whole in fields])
        self.is_error = self.status > 0 or self.http_status >= 400
        self._fields: dict[bytes, list[bytes]] | None = None

    def values(self, names: tuple[bytes, ...]) -> dict[bytes, list[bytes]]:
        """The values of some headers; `:status` is one too."""
        found = self._fields
        if found is None:
            found = self._fields = {}
            for field in headers.split(self.data):
                found.setdefault(headers.name_of(field), []).append(headers.value_of(field))
        return {name: found[name] for name in names if name in found}


def _edited(call: "Call", block: bytes, known: Block) -> bytes | None:
    """The head of an answer as the steps let it go on, the last one first; None if one of them answered otherwise."""
    for step in reversed(call.plan.decision.steps[: call.entered]):
        if step.edits_answer:
            edited = step.edit_answer(call, block, known.http_status, known.status)
            if edited is None:
                return None
            block = edited
    return block


def _status_without(call: "Call") -> int:
    """What a response without grpc-status counts as."""
    return grpc_status.of_http(call.http_status) if call.plan.decision.is_grpc else NOT_GRPC


def _winner(call: "Call", block: Block) -> "Call | None":
    """A try beside a call's own is answered: the call, in whose place it steps; None if the answer does not count."""
    from sidecar.proxy import hedge

    return hedge.win(call, block)


def _is_usual(call: "Call") -> bool:
    """True for a response of gRPC whose status comes at its end."""
    return call.plan.decision.is_grpc and call.http_status == HTTP_OK


def _waits_for_status(call: "Call", block: Block) -> bool:
    """True for the head of such a response."""
    return call.plan.decision.is_grpc and block.http_status == HTTP_OK and block.status < 0


class Upstream(Handler, Peer):
    """One HTTP/2 connection to an endpoint; also the handler of its events."""

    def __init__(self, endpoint: "Endpoint", worker: Worker, settings: Settings) -> None:
        self.endpoint = endpoint
        self.worker = worker
        self.conn = Connection(Role.CLIENT, self, settings)
        self.is_dirty = False
        self._memo: dict[bytes, Block] = {}
        self._transport: asyncio.Transport | None = None
        self._is_lost = False
        self.settled: asyncio.Future[None] = worker.loop.create_future()
        """Done once the endpoint's SETTINGS are there: before that it has taken nothing, so no call is risked on it."""

    # -- socket -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.mark()

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
            if conn.is_closed:
                worker.stats.protocol_errors += 1
                if conn.exceeded:
                    worker.stats.count_limit(conn.exceeded)
                self._lose(conn.close_reason)
        finally:
            worker.is_receiving = False
        worker.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(str(exc) if exc else "the peer closed the connection")

    def eof_received(self) -> None:
        """The peer sends no more: asyncio closes the transport."""

    def pause_writing(self) -> None:
        self.conn.pause()
        self.endpoint.cluster.stalled.add(self)

    def resume_writing(self) -> None:
        self.conn.resume()
        self.endpoint.cluster.stalled.discard(self)
        self.mark()

    def mark(self) -> None:
        """There is something to write."""
        if not self.is_dirty:
            self.worker.mark(self)

    def flush(self) -> None:
        """Write what has gathered."""
        conn = self.conn
        if conn.has_output() and self._transport is not None and not self._is_lost:
            self._transport.write(conn.take_output())
        if (conn.is_going_away or conn.is_closed) and not conn.streams and self._transport is not None:
            self._transport.close()

    def _lose(self, reason: str) -> None:
        """The connection is gone: every call on it fails."""
        if self._is_lost:
            return
        self._is_lost = True
        if not self.settled.done():
            self.settled.set_exception(ConnectionError(reason))
            self.settled.exception()  # whoever waited may be gone: it is no news to the loop
        conn = self.conn
        if conn.has_output() and self._transport is not None:
            self._transport.write(conn.take_output())
        conn.is_closed = True
        if self._transport is not None:
            self._transport.close()
        self.worker.now = monotonic()
        self.endpoint.cluster.stalled.discard(self)
        streams, conn.streams = list(conn.streams.values()), {}
        self.endpoint.on_connection_lost(self)
        for stream in streams:
            stream.is_dead = True
            call = stream.call
            if call is not None:
                text = f"connection to {self.endpoint} ended: {reason}"
                self._fail(call, Cause.RESET, Status.UNAVAILABLE, text, "UC")

    def retire(self) -> None:
        """Open no new streams; close when the last one ends."""
        self.conn.is_going_away = True
        self.conn.waits_for_room = True
        self.endpoint.on_connection_lost(self)
        self.mark()

    def unread(self) -> int:
        """Bytes that the endpoint's socket has not taken."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def cut(self, reason: str) -> None:
        """End the connection now: its calls fail."""
        self._lose(reason)
        if self._transport is not None:
            self._transport.abort()

    # -- HTTP/2 -------------------------------------------------------------------------------------

    def on_request(self, stream: Stream, block: bytes, ended: bool) -> None:
        raise AssertionError("a client connection gets no requests")

    def on_headers(self, stream: Stream, block: bytes, ended: bool) -> None:
        call: Call | None = stream.call
        if call is None:
            return
        known = self._memo.get(block)
        if known is None:
            known = self._read(stream, call, block)
            if known is None:
                return
        down = call.down
        if call.is_responded:
            if not ended or known.http_status:
                self._reject(stream, call, "headers in the middle of a response")
                return
            if call.endpoint is not None and call.endpoint.record is not None and _is_usual(call):
                call.endpoint.observe(call.http_status, known.status)
        elif known.http_status >= 200:
            if call.is_rival:
                won = _winner(call, known)
                if won is None:
                    return
                call = won
            endpoint = call.endpoint
            if endpoint is not None and endpoint.record is not None and (ended or not _waits_for_status(call, known)):
                endpoint.observe(known.http_status, known.status)
            retry = call.plan.decision.retry
            if retry is not None and retry.reads_answers and attempts.answered(call, retry, known):
                return
            call.is_responded = True
            call.is_active = True
            call.body = None
            call.http_status = known.http_status
            if call.cluster is not None and call.cluster.times_answers and call.endpoint is not None:
                call.endpoint.latency.observe(self.worker.now - call.sent_at, self.worker.now)
            if call.attempts is not None:
                call.attempts.on_answer()
        elif known.http_status and known.http_status != 101 and not ended:
            return  # an interim response: nobody asked for one
        else:
            self._reject(stream, call, "a response without a final :status")
            return
        if known.pushback_s:
            call.pushback_s = known.pushback_s
        data = known.data
        if known.http_status:
            if call.plan.decision.response_edit is not None:
                data = call.plan.decision.response_edit.apply(data)
            if call.response_fields:
                data += call.response_fields
            if call.plan.decision.edits_answers:
                edited = _edited(call, data, known)
                if edited is None:
                    return
                data = edited
        down.conn.send_headers(call.down_stream, data, ended)
        if not down.is_dirty:
            self.worker.mark(down)
        if ended:
            call.finish(known.status if known.status >= 0 else _status_without(call), "")

    def _read(self, stream: Stream, call: "Call", block: bytes) -> Block | None:
        """A block that is not remembered; None if it is not to be handed on."""
        try:
            known = Block(block)
        except HeaderError as error:
            self.conn.fail(ErrorCode.COMPRESSION_ERROR, str(error))
            return None
        except (Malformed, TooLarge) as fault:
            self._reject(stream, call, f"a malformed response: {fault}")
            return None
        if len(self._memo) >= MAX_MEMO:
            self._memo.clear()
        self._memo[block] = known
        return known

    def on_data(self, stream: Stream, payload: bytes, credit: int, ended: bool) -> None:
        call: Call | None = stream.call
        if call is None:
            self.conn.credit(stream, credit)
            return
        if not call.is_responded:
            self.conn.credit_connection(credit)
            self._reject(stream, call, "data before headers")
            return
        down = call.down
        if down.conn.send_data(call.down_stream, payload, credit, ended):
            self.conn.credit(stream, credit)
        else:
            self._hold(call, credit)
        call.is_active = True
        if call.attempts is not None:
            call.attempts.heard(self.worker.now)
        if not down.is_dirty:
            self.worker.mark(down)
        if ended:
            if call.endpoint is not None and call.endpoint.record is not None and _is_usual(call):
                call.endpoint.observe(call.http_status, Status.UNKNOWN)
            call.finish(_status_without(call), "")

    def _reject(self, stream: Stream, call: "Call", why: str) -> None:
        """The response breaks HTTP/2: reset it, and say so to the client."""
        self.conn.reset(stream, ErrorCode.PROTOCOL_ERROR)
        self.mark()
        self._fail(call, Cause.RESET, Status.INTERNAL, why, "UPE")

    def _hold(self, call: "Call", credit: int) -> None:
        """The client does not take the data now. Its stream waits; other clients' streams on this connection do not."""
        self.conn.credit_connection(credit)
        down = call.down
        waiting, most = down.conn.waiting, down.limits.max_buffered_bytes
        if waiting > most // 4:
            self.conn.narrow_streams(NARROW_WINDOW)
        if waiting > most:
            self.worker.stats.count_limit("max_buffered_bytes")
            call.overrun()

    def on_sent(self, stream: Stream, credit: int) -> None:
        call: Call | None = stream.call
        if call is not None:
            call.is_active = True
            call.down.conn.credit(call.down_stream, credit)
            call.down.mark()

    def on_reset(self, stream: Stream, code: int, was_refused: bool) -> None:
        call: Call | None = stream.call
        if call is None:
            return
        if code == ErrorCode.CANCEL and call.is_overdue():
            call.on_deadline()  # a server that keeps the deadline may say no more than this when it is over (grpc-go's)
            return
        if was_refused and not call.is_responded and call.cluster is not None:
            self._refuse(call)
        elif call.is_responded:
            # Within an answer these two would tell the client that nothing happened, or that all is well.
            if call.endpoint is not None and call.endpoint.record is not None:
                call.endpoint.observe_failure(UNREACHABLE)
            is_lie = code in (ErrorCode.NO_ERROR, ErrorCode.REFUSED_STREAM)
            call.down.conn.reset(call.down_stream, ErrorCode.INTERNAL_ERROR if is_lie else code)
            call.down.mark()
            call.finish(grpc_status.of_reset(code), "UR")
        else:
            name = ErrorCode(code).name if code in ErrorCode._value2member_map_ else str(code)
            text = f"{self.endpoint} reset the call ({name})"
            self._fail(call, Cause.RESET, grpc_status.of_reset(code), text, "UR")

    def _fail(self, call: "Call", cause: Cause, status: Status, reason: str, flag: str) -> None:
        cluster = call.cluster.name if call.cluster else "?"
        attempts.failed(call, cause, status, f'upstream failed: "{cluster}": {reason}', flag)

    def _refuse(self, call: "Call") -> None:
        """The peer did not process the call: REFUSED_STREAM, or above GOAWAY's last stream."""
        cluster = call.cluster.name if call.cluster else "?"
        text = f'upstream refused the call: "{cluster}": {self.endpoint} takes no more calls'
        attempts.failed(call, Cause.REFUSED, Status.UNAVAILABLE, text, "UR")

    def on_goaway(self, code: int) -> None:
        self.conn.waits_for_room = True
        self.endpoint.on_connection_lost(self)
        self.mark()

    def on_capacity(self) -> None:
        if not self.settled.done():
            self.settled.set_result(None)
        if self.conn.is_going_away:
            if not self.conn.streams:
                self.mark()  # the last one is over: close
            return
        self.endpoint.serve_waiting()
