"""One HTTP/2 connection, either role: frames in, frames out. No sockets, no clock (RFC 9113).

Theory of operation: `receive` cuts bytes into frames, keeps the rules of the protocol (states, windows, sizes) and tells
the `Handler` what matters to a proxy: header blocks, data, resets. The handler answers with `send_headers`, `send_data`,
`reset`; what is to be written gathers until `take_output`. Header blocks reach the handler *stateless* (see `headers`): either
the peer has acknowledged that we keep no dynamic table, or the block is decoded here and written again.

What a call costs here: for each frame one unpack, one slice, one call of the handler; a small DATA frame about 1 µs in CPython 3.11.
Frames that are rare go through `_rare_frame`, where clarity comes first.
"""

from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from hpack import Decoder
from hpack.exceptions import HPACKError
from librt.strings import BytesWriter, read_i32_be, read_i64_be, write_i32_be
from mypy_extensions import i64, mypyc_attr

from sidecar.http2 import frames, headers
from sidecar.http2.frames import HEAD, ErrorCode

MAX_DECODED_BLOCK: Final = 512 * 1024
"""Bytes that a block with state may be when it is decoded."""
REMEMBERED_RESETS: Final = 1_000
"""Streams that we reset lately: frames that were under way are dropped, not punished."""
FREE_WINDOW_UPDATES: Final = 2_000
"""WINDOW_UPDATE frames that a peer may send for nothing; more are allowed by the streams and the data that it takes."""
BYTES_PER_WINDOW_UPDATE: Final = 64
MAX_STATEFUL_BLOCKS: Final = 2_000
"""Header blocks that a peer may send before it acknowledges our SETTINGS; each costs us ten times as much as one after that."""


LARGEST_SENT_FRAME: Final = 1024 * 1024
"""Bytes of payload, also where the peer would take more."""
KEPT_OUTPUT: Final = 64 * 1024
"""Bytes of the output buffer that a connection keeps for the next time."""
DRAIN_PING: Final = b"draining"


class Role(Enum):
    CLIENT = "client"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class Settings:
    """What we announce to the peer (Envoy: core.v3.Http2ProtocolOptions)."""

    initial_stream_window: int = 256 * 1024
    """Bytes that a peer may send on a stream before we give window back."""
    largest_stream_window: int = 0
    """To this a stream's window doubles while its data is taken on the other side; one whose reader stalls keeps the first. 0: it never grows."""
    initial_connection_window: int = 16 * 1024 * 1024
    """The same for the connection."""
    max_concurrent_streams: int = 10_000
    """Streams that a client may have open at once; more are refused with REFUSED_STREAM."""
    max_frame_size: int = frames.DEFAULT_FRAME_SIZE
    """Largest frame payload that we take, in bytes."""
    max_header_block: int = 128 * 1024
    """Bytes of one header block over all its CONTINUATION frames; more is an attack."""
    max_header_bytes: int = headers.MAX_BYTES
    """Bytes of a header block that is taken; a longer one is answered with an error."""
    max_header_fields: int = headers.MAX_FIELDS
    """Fields of a header block that is taken."""
    max_continuations: int = 32
    """CONTINUATION frames of one block; small ones without end are an attack."""
    max_control_frames_per_s: int = 10_000
    """PING, SETTINGS, PRIORITY, RST_STREAM, empty DATA and unknown frames that a peer may send in a second."""


class Stream:
    """One stream of one connection: its windows, its state, and the call that it belongs to."""

    __slots__ = (
        "call",
        "id",
        "is_dead",
        "local_closed",
        "queue",
        "queued",
        "recv_window",
        "remote_closed",
        "send_window",
        "threshold",
        "unacked",
        "unsent",
    )

    def __init__(self, stream_id: int, send_window: int, recv_window: int) -> None:
        self.id = stream_id
        self.send_window = send_window
        self.recv_window = recv_window
        self.unacked = 0
        """Bytes that left for the other side and are not yet given back as window."""
        self.threshold = recv_window // 2
        """So many of them are given back at once."""
        self.remote_closed = False
        self.local_closed = False
        self.is_dead = False
        """Reset by either side, or its connection is gone."""
        self.queue: deque[tuple[bytes, int, bool]] | None = None
        """Data that waits for window: (payload, bytes to credit when it is sent, ends the stream)."""
        self.unsent = 0
        """Credit of data that was dropped from the queue because the stream ended."""
        self.queued: bytes | None = None
        """Trailers that wait behind the queue."""
        self.call: Any = None


@mypyc_attr(allow_interpreted_subclasses=True)
class Handler:
    """Who is told. A class, not a Protocol, so that compiled code calls it without a look-up. A call may send on this connection or any other, and may reset the stream."""

    def on_request(self, stream: Stream, block: bytes, ended: bool) -> None:
        """A client opened a stream (role SERVER)."""
        ...

    def on_headers(self, stream: Stream, block: bytes, ended: bool) -> None:
        """A response's headers, or trailers of either side."""
        ...

    def on_data(self, stream: Stream, payload: bytes, credit: int, ended: bool) -> None:
        """Data; give `credit` back with `Connection.credit` once it has left."""
        ...

    def on_sent(self, stream: Stream, credit: int) -> None:
        """Data that had to wait for window has left."""
        ...

    def on_reset(self, stream: Stream, code: int, was_refused: bool) -> None:
        """The peer reset the stream, or will not process it (`was_refused`: it never reached the application)."""
        ...

    def on_goaway(self, code: int) -> None:
        """The peer takes no new streams here (role CLIENT)."""
        ...

    def on_capacity(self) -> None:
        """The peer's SETTINGS came, or a stream ended: there may be room for a new one."""
        ...


class ProtocolError(Exception):
    """The peer broke the protocol, or ran into a limit: GOAWAY with this code."""

    def __init__(self, code: ErrorCode, text: str, limit: str = "") -> None:
        super().__init__(text)
        self.code = code
        self.limit = limit


class StreamError(Exception):
    """The peer broke the protocol on one stream: RST_STREAM with this code."""

    def __init__(self, stream_id: int, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.stream_id = stream_id
        self.code = code


class Connection:
    """One HTTP/2 connection. Not thread-safe; `now` is seconds on a monotonic clock, always passed in."""

    def __init__(self, role: Role, handler: Handler, settings: Settings) -> None:
        self.handler = handler
        self.is_server = role is Role.SERVER
        self.local = settings
        self._out = BytesWriter()
        self.streams: dict[int, Stream] = {}
        self.is_closed = False
        """No more frames are read: the connection failed."""
        self.is_going_away = False
        """We sent GOAWAY, or the server did: no new streams."""
        self.close_reason = ""
        self.exceeded = ""
        """The limit that the peer ran into, if it was that."""
        self.peer_max_streams = 100 if role is Role.CLIENT else 0
        """As the peer announced; 100 until its SETTINGS come, which is what most servers say."""
        self.has_peer_settings = False
        self.waits_for_room = False
        """Set by the owner while calls wait for a free stream: `on_capacity` tells of each."""
        self.awaits_pong = False
        self.is_draining = False
        """The peer was told to open no new streams; those under way are still taken."""
        self._peer_frame_size = frames.DEFAULT_FRAME_SIZE
        self._peer_stream_window = frames.DEFAULT_WINDOW
        self.send_window = frames.DEFAULT_WINDOW
        self._is_paused = False
        self._held_window = 0
        self._granted = frames.DEFAULT_WINDOW
        """All window that the peer has given to the connection."""
        self._window_updates = 0
        self._recv_window = settings.initial_connection_window
        self._unacked = 0
        self._connection_threshold = settings.initial_connection_window // 2
        self._tail = b""
        self._awaits_preface = True
        self._highest = 0
        """Highest stream id that the peer opened (server) or that we opened (client)."""
        self._next_id = 1
        self.last_id = frames.LARGEST_WINDOW - 1000
        """Role CLIENT: the stream that is the last one here; the owner may lower it."""
        self.waiting = 0
        """Bytes of data that wait for the peer's windows."""
        self._decoder: Decoder | None = Decoder(max_header_list_size=MAX_DECODED_BLOCK)
        self._stream_window = settings.initial_stream_window
        """What a new stream may send us at first."""
        self._narrow_to = 0
        """`_stream_window` once the peer has acknowledged it; 0 if it is not about to change."""
        self._narrow_in = 0
        """So many acknowledgements from now."""
        self._unacked_settings: deque[bool] = deque()
        """SETTINGS under way; True for the one that says HEADER_TABLE_SIZE = 0."""
        self._has_asked_stateless = False
        self._stateful_blocks = 0
        self._block: bytearray | None = None
        self._block_stream = 0
        self._block_ended = False
        self._block_frames = 0
        self._resets: dict[int, None] = {}
        self._forgotten_reset = -1
        """Highest stream that fell out of `_resets`: up to it, a frame on a closed stream may have been under way."""
        self._control_frames = 0
        self._control_second = 0.0
        self._blocked: dict[int, Stream] = {}
        """Streams with data that waits for window, in the order in which they began to wait."""
        announced = {
            frames.INITIAL_WINDOW_SIZE: settings.initial_stream_window,
            frames.MAX_FRAME_SIZE: settings.max_frame_size,
        }
        if self.is_server:
            announced[frames.MAX_CONCURRENT_STREAMS] = settings.max_concurrent_streams
            announced[frames.MAX_HEADER_LIST_SIZE] = settings.max_header_bytes
        else:
            # A server that takes this before its first response never sends a block with state. A client's first requests
            # come before our SETTINGS anyway: it is asked with its second header block, see `_on_block`.
            announced[frames.HEADER_TABLE_SIZE] = 0
            self._has_asked_stateless = True
            announced[frames.ENABLE_PUSH] = 0
            self._out.write(frames.PREFACE)
        self._out.write(frames.settings(announced))
        self._unacked_settings.append(self._has_asked_stateless)
        extra = settings.initial_connection_window - frames.DEFAULT_WINDOW
        if extra > 0:
            self._out.write(frames.window_update(0, extra))

    # -- reading ------------------------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> None:
        """Take bytes from the peer. Never raises: a broken rule is answered on the wire and closes what it must."""
        if self.is_closed:
            return
        if self._tail:
            data = self._tail + data
        if self._awaits_preface:
            begin = self._begin(data)
            if begin < 0:
                return
            data = data[begin:]
        at: i64 = 0
        size: i64 = len(data)
        streams = self.streams
        handler = self.handler
        frame_limit: i64 = self.local.max_frame_size
        try:
            while size - at >= 9:
                # Length (24 bits), type (8), flags (8), and the first 24 bits of the stream id.
                head: i64 = read_i64_be(data, at)
                length: i64 = head >> 40 & 0xFFFFFF
                if length > frame_limit:
                    raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, f"frame of {length} bytes")
                start: i64 = at + 9
                end: i64 = start + length
                if end > size:
                    break
                stream_id: int = read_i32_be(data, at + 5) & 0x7FFFFFFF
                at = end
                kind: i64 = head >> 32 & 0xFF
                flags: i64 = head >> 24 & 0xFF
                if self._block is None:
                    if kind == 0 and length and not flags & 0x8:
                        stream = streams.get(stream_id)
                        if stream is not None and not stream.remote_closed:
                            self._recv_window -= length
                            stream.recv_window -= length
                            if self._recv_window < 0 or stream.recv_window < 0:
                                raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "more data than window")
                            if flags & 0x1:
                                stream.remote_closed = True
                                handler.on_data(stream, data[start:end], length, True)
                                if stream.local_closed:
                                    self._forget(stream)
                            else:
                                handler.on_data(stream, data[start:end], length, False)
                            continue
                    elif kind == 1 and flags & 0x2C == 0x4:
                        self._on_block(stream_id, data[start:end], flags & 0x1 == 1)
                        continue
                try:
                    self._rare_frame(kind, flags, stream_id, data[start:end], now)
                except StreamError as fault:
                    if self._is_idle(fault.stream_id):
                        raise ProtocolError(
                            fault.code, str(fault)
                        ) from None  # there is nothing yet that could be reset
                    self._fail_stream(fault.stream_id, fault.code)
                if self.close_reason:
                    return
        except ProtocolError as error:
            self.exceeded = error.limit
            self.fail(error.code, str(error))
            return
        self._tail = data[at:] if at < size else b""

    def _begin(self, data: bytes) -> int:
        """Where the first frame starts, once the preface and the type of that frame are there and right; else -1 (RFC 9113 §3.4)."""
        size = len(frames.PREFACE) if self.is_server else 0
        if not frames.PREFACE.startswith(data[:size]):
            self.fail(ErrorCode.PROTOCOL_ERROR, "no HTTP/2 preface")
            return -1
        if len(data) < size + 4:
            self._tail = data
            return -1
        if data[size + 3] != frames.SETTINGS:
            self.fail(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            return -1
        self._awaits_preface = False
        return size

    def _on_block(self, stream_id: int, block: bytes, ended: bool) -> None:
        """A whole header block."""
        if self._decoder is not None:
            self._stateful_blocks += 1
            if not self._has_asked_stateless and self._stateful_blocks > 1:
                self._has_asked_stateless = True
                self._out.write(frames.settings({frames.HEADER_TABLE_SIZE: 0}))
                self._unacked_settings.append(True)
            if self._stateful_blocks > MAX_STATEFUL_BLOCKS:
                raise ProtocolError(ErrorCode.SETTINGS_TIMEOUT, "SETTINGS are not acknowledged", "stateful blocks")
            block = self._restate(block)
        stream = self.streams.get(stream_id)
        if stream is not None:
            if stream.remote_closed:
                self._fail_stream(stream_id, ErrorCode.STREAM_CLOSED)
                return
            if ended:
                stream.remote_closed = True
            elif self.is_server:
                self._fail_stream(stream_id, ErrorCode.PROTOCOL_ERROR)
                return
            self.handler.on_headers(stream, block, ended)
            if ended and stream.local_closed:
                self._forget(stream)
            return
        if not self.is_server or not stream_id & 1 or stream_id <= self._highest:
            self._stray_block(stream_id)
            return
        self._highest = stream_id
        if len(self.streams) >= self.local.max_concurrent_streams or self.is_going_away:
            self._reset_id(stream_id, ErrorCode.REFUSED_STREAM)
            return
        stream = Stream(stream_id, self._peer_stream_window, self._stream_window)
        self.streams[stream_id] = stream
        if ended:
            stream.remote_closed = True
        self.handler.on_request(stream, block, ended)

    def _stray_block(self, stream_id: int) -> None:
        """Headers on a stream that is not open."""
        if stream_id in self._resets or stream_id <= self._forgotten_reset:
            return
        if self.is_server and stream_id & 1:
            raise ProtocolError(ErrorCode.STREAM_CLOSED, f"headers on closed stream {stream_id}")
        raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"headers on stream {stream_id}")

    def _restate(self, block: bytes) -> bytes:
        """A block that may use a dynamic table, written again without it."""
        assert self._decoder is not None
        try:
            fields = [(bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True)]
        except HPACKError as error:
            raise ProtocolError(ErrorCode.COMPRESSION_ERROR, str(error)) from None
        return headers.encode(fields[: self.local.max_header_fields + 1])

    def _rare_frame(self, kind: int, flags: int, stream_id: int, payload: bytes, now: float) -> None:
        """Every frame but plain DATA and plain HEADERS."""
        if self._block is not None and (kind != frames.CONTINUATION or stream_id != self._block_stream):
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "frame inside a header block")
        if kind == frames.WINDOW_UPDATE:
            self._on_window_update(stream_id, payload)
        elif kind == frames.DATA:
            self._on_rare_data(flags, stream_id, payload, now)
        elif kind == frames.HEADERS:
            self._on_headers_frame(flags, stream_id, payload)
        elif kind == frames.CONTINUATION:
            self._on_continuation(flags, payload)
        elif kind == frames.RST_STREAM:
            self._count_control(now, "reset flood")
            self._on_rst_stream(stream_id, payload)
        elif kind == frames.SETTINGS:
            self._count_control(now, "SETTINGS flood")
            self._on_settings(flags, stream_id, payload)
        elif kind == frames.PING:
            self._count_control(now, "PING flood")
            if stream_id:
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
            if len(payload) != 8:
                raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "PING is not of 8 bytes")
            if flags & frames.ACK:
                self.awaits_pong = False
                if payload == DRAIN_PING and self.is_draining:
                    self.go_away()
            else:
                self._out.write(frames.ping(payload, ack=True))
        elif kind == frames.GOAWAY:
            self._on_goaway(stream_id, payload)
        elif kind == frames.PRIORITY:
            self._count_control(now, "PRIORITY flood")
            if stream_id == 0:
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
            if len(payload) != 5:
                raise StreamError(stream_id, ErrorCode.FRAME_SIZE_ERROR, "PRIORITY is not of 5 bytes")
            if int.from_bytes(payload[:4], "big") & 0x7FFFFFFF == stream_id:
                raise StreamError(stream_id, ErrorCode.PROTOCOL_ERROR, "stream depends on itself")
        elif kind == frames.PUSH_PROMISE:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE")
        else:
            self._count_control(
                now, "unknown frame flood"
            )  # unknown types are ignored (RFC 9113 §4.1), but not without end

    def _count_control(self, now: float, limit: str) -> None:
        if now - self._control_second >= 1.0:
            self._control_second = now
            self._control_frames = 0
        self._control_frames += 1
        if self._control_frames > self.local.max_control_frames_per_s:
            raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "too many control frames", limit)

    def _is_idle(self, stream_id: int) -> bool:
        """True if nobody opened the stream yet."""
        if self.is_server:
            return stream_id > self._highest or not stream_id & 1
        return stream_id >= self._next_id or not stream_id & 1

    def _unpad(self, flags: int, payload: bytes) -> bytes:
        if not flags & frames.PADDED:
            return payload
        if not payload or payload[0] >= len(payload):
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "padding longer than the frame")
        return payload[1 : len(payload) - payload[0]]

    def _on_rare_data(self, flags: int, stream_id: int, payload: bytes, now: float) -> None:
        """DATA that is padded, empty, or on a stream that is not open."""
        if stream_id == 0:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "DATA on stream 0")
        length = len(payload)
        self._recv_window -= length
        if self._recv_window < 0:
            raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "more data than window")
        stream = self.streams.get(stream_id)
        if stream is None or stream.remote_closed:
            if stream is None and self._is_idle(stream_id):
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"DATA on idle stream {stream_id}")
            self.credit_connection(length)
            if stream_id in self._resets or stream_id <= self._forgotten_reset:
                return
            if stream is None:
                raise ProtocolError(ErrorCode.STREAM_CLOSED, f"DATA on closed stream {stream_id}")
            raise StreamError(stream_id, ErrorCode.STREAM_CLOSED, "DATA after the end")
        stream.recv_window -= length
        if stream.recv_window < 0:
            raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "more data than window")
        data = self._unpad(flags, payload)
        ended = flags & frames.END_STREAM != 0
        if not data and not ended:
            self._count_control(now, "empty DATA flood")
            self.credit(stream, length)
            return
        if ended:
            stream.remote_closed = True
        self.handler.on_data(stream, data, length, ended)
        if ended and stream.local_closed:
            self._forget(stream)

    def _on_headers_frame(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id == 0:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 0")
        block = self._unpad(flags, payload)
        depends_on_itself = False
        if flags & frames.HAS_PRIORITY:
            if len(block) < 5:
                raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
            depends_on_itself = int.from_bytes(block[:4], "big") & 0x7FFFFFFF == stream_id
            block = block[5:]
        ended = flags & frames.END_STREAM != 0
        if depends_on_itself:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "stream depends on itself")
        if flags & frames.END_HEADERS:
            self._on_block(stream_id, block, ended)
        else:
            self._block = bytearray(block)
            self._block_stream = stream_id
            self._block_ended = ended
            self._block_frames = 0

    def _on_continuation(self, flags: int, payload: bytes) -> None:
        if self._block is None:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._block += payload
        self._block_frames += 1
        if len(self._block) > self.local.max_header_block or self._block_frames > self.local.max_continuations:
            raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "header block too long", "CONTINUATION flood")
        if flags & frames.END_HEADERS:
            block, self._block = bytes(self._block), None
            self._on_block(self._block_stream, block, self._block_ended)

    def _on_rst_stream(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM is not of 4 bytes")
        if stream_id == 0 or self._is_idle(stream_id):
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"RST_STREAM on idle stream {stream_id}")
        stream = self.streams.get(stream_id)
        if stream is None:
            return
        code = int.from_bytes(payload, "big")
        self._forget(stream)
        stream.is_dead = True
        self.handler.on_reset(stream, code, code == ErrorCode.REFUSED_STREAM)

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & frames.ACK:
            if payload:
                raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS acknowledgement with a payload")
            if not self._unacked_settings:
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "acknowledgement of SETTINGS that were not sent")
            if self._unacked_settings.popleft():
                self._decoder = None  # from here on, equal bytes mean equal headers
            if self._narrow_in:
                self._narrow_in -= 1
                if not self._narrow_in:
                    self._narrow()
            return
        if len(payload) % 6:
            raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS is not a list of pairs")
        for key, value in frames.parse_settings(payload):
            if key == frames.INITIAL_WINDOW_SIZE:
                if value > frames.LARGEST_WINDOW:
                    raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "initial window too large")
                delta = value - self._peer_stream_window
                self._peer_stream_window = value
                for stream in self.streams.values():
                    stream.send_window += delta
                    if stream.send_window > frames.LARGEST_WINDOW:
                        raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "window too large")
            elif key == frames.MAX_FRAME_SIZE:
                if not frames.DEFAULT_FRAME_SIZE <= value <= frames.LARGEST_FRAME_SIZE:
                    raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "frame size out of range")
                self._peer_frame_size = min(value, LARGEST_SENT_FRAME)
            elif key == frames.ENABLE_PUSH:
                if value > 1:
                    raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "ENABLE_PUSH is neither 0 nor 1")
            elif key == frames.MAX_CONCURRENT_STREAMS and not self.is_server:
                self.peer_max_streams = value
        if not self.has_peer_settings and not self.is_server:
            self.has_peer_settings = True
            if all(key != frames.MAX_CONCURRENT_STREAMS for key, _ in frames.parse_settings(payload)):
                self.peer_max_streams = frames.LARGEST_WINDOW
        self._out.write(frames.SETTINGS_ACK)
        self._send_blocked()
        self.handler.on_capacity()

    def _on_goaway(self, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY is too short")
        last, code = frames.parse_goaway(payload)
        if self.is_server:
            return  # it speaks of streams that a server would open, and none does: the client goes on as it likes
        self.is_going_away = True
        for stream in [stream for stream in self.streams.values() if stream.id > last]:
            self._forget(stream)
            stream.is_dead = True
            self.handler.on_reset(stream, ErrorCode.REFUSED_STREAM, True)
        self.handler.on_goaway(code)

    def _on_window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE is not of 4 bytes")
        increment = int.from_bytes(payload, "big") & 0x7FFFFFFF
        self._count_window_update()
        if stream_id == 0:
            if increment == 0:
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
            self._granted += increment
            if self._is_paused:
                self._held_window += increment
            else:
                self.send_window += increment
            if self.send_window + self._held_window > frames.LARGEST_WINDOW:
                raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "window too large")
            if self._blocked:
                self._send_blocked()
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            if self._is_idle(stream_id):
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"WINDOW_UPDATE on idle stream {stream_id}")
            return
        if increment == 0 or stream.send_window + increment > frames.LARGEST_WINDOW:
            self._fail_stream(stream_id, ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR)
            return
        stream.send_window += increment
        if stream.queue is not None:
            self._drain(stream)

    def _count_window_update(self) -> None:
        """A peer that takes data may say so often; one that only says so is an attack (Envoy counts data frames instead)."""
        self._window_updates += 1
        sent = self._granted - self.send_window - self._held_window
        if self._window_updates > FREE_WINDOW_UPDATES + 4 * self.opened + sent // BYTES_PER_WINDOW_UPDATE:
            raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "too many WINDOW_UPDATE frames", "WINDOW_UPDATE flood")

    # -- writing ------------------------------------------------------------------------------------

    @property
    def opened(self) -> int:
        """Grows with every stream that is opened here."""
        return self._highest if self.is_server else self._next_id

    def has_output(self) -> bool:
        """True if there are bytes to write."""
        return len(self._out) > 0

    def take_output(self) -> bytes:
        """The bytes to write, in order; they are the caller's now."""
        out = self._out
        data = out.getvalue()
        if len(data) > KEPT_OUTPUT:
            self._out = BytesWriter()
        else:
            out.truncate(0)
        return data

    def has_room(self) -> bool:
        """True if a new stream may be opened (role CLIENT)."""
        return len(self.streams) < self.peer_max_streams and not self.is_going_away and not self.is_closed

    def open_stream(self, block: bytes, ended: bool) -> Stream:
        """Open a stream with a request's headers (role CLIENT); ask `has_room` first."""
        stream_id = self._next_id
        self._next_id = stream_id + 2
        if stream_id >= self.last_id:
            self.is_going_away = True  # the owner opens a new connection
            self.waits_for_room = True
        stream = Stream(stream_id, self._peer_stream_window, self._stream_window)
        self.streams[stream_id] = stream
        self.send_headers(stream, block, ended)
        return stream

    def send_headers(self, stream: Stream, block: bytes, ended: bool) -> None:
        """Headers or trailers; trailers wait behind data that waits."""
        if stream.queue is not None:
            stream.queued = block
            return
        size = len(block)
        if size <= self._peer_frame_size:
            out = self._out
            write_i32_be(out, size << 8 | 1)
            out.append(5 if ended else 4)
            write_i32_be(out, stream.id)
            out.write(block)
        else:
            self._send_long_block(stream.id, block, ended)
        if ended:
            stream.local_closed = True
            if stream.remote_closed:
                self._forget(stream)

    def _send_long_block(self, stream_id: int, block: bytes, ended: bool) -> None:
        limit = self._peer_frame_size
        parts = [block[at : at + limit] for at in range(0, len(block), limit)]
        for number, part in enumerate(parts):
            kind = frames.CONTINUATION if number else frames.HEADERS
            flags = frames.END_STREAM if ended and not number else 0
            if number == len(parts) - 1:
                flags |= frames.END_HEADERS
            self._out.write(HEAD.pack(len(part) << 8 | kind, flags, stream_id) + part)

    def send_data(self, stream: Stream, payload: bytes, credit: int, ended: bool) -> bool:
        """Data; True if it left at once, else it waits for window and `on_sent` tells when it has left."""
        size = len(payload)
        if (
            stream.queue is None
            and size <= stream.send_window
            and size <= self.send_window
            and size <= self._peer_frame_size
        ):
            stream.send_window -= size
            self.send_window -= size
            out = self._out
            write_i32_be(out, size << 8)
            out.append(1 if ended else 0)
            write_i32_be(out, stream.id)
            out.write(payload)
            if ended:
                stream.local_closed = True
                if stream.remote_closed:
                    self._forget(stream)
            return True
        if stream.queue is None:
            stream.queue = deque()
            self._blocked[stream.id] = stream
        stream.queue.append((payload, credit, ended))
        self.waiting += size
        self._drain(stream)
        return False

    def _send_blocked(self) -> None:
        for stream in list(self._blocked.values()):
            if self.send_window <= 0:
                return
            self._drain(stream)

    def _drain(self, stream: Stream) -> None:
        """Send what the windows allow of a stream's waiting data."""
        queue = stream.queue
        while queue:
            payload, credit, ended = queue[0]
            size = min(len(payload), stream.send_window, self.send_window, self._peer_frame_size)
            if size <= 0 and payload:
                return
            queue.popleft()
            rest = payload[size:]
            is_last = ended and not rest
            self._out.write(HEAD.pack(size << 8, 1 if is_last else 0, stream.id))
            self._out.write(payload[:size])
            stream.send_window -= size
            self.send_window -= size
            self.waiting -= size
            if rest:
                queue.appendleft((rest, max(credit - size, 0), ended))
                credit = min(size, credit)
            if is_last:
                stream.local_closed = True
            if credit:
                self.handler.on_sent(stream, credit)
        stream.queue = None
        self._blocked.pop(stream.id, None)
        if stream.queued is not None:
            block, stream.queued = stream.queued, None
            self.send_headers(stream, block, True)
        elif stream.local_closed and stream.remote_closed:
            self._forget(stream)

    def credit(self, stream: Stream, size: int) -> None:
        """Give a sender its window back: `size` bytes of the stream have left for the other side."""
        self._unacked += size
        if self._unacked >= self._connection_threshold:
            self._out.write(frames.window_update(0, self._unacked))
            self._recv_window += self._unacked
            self._unacked = 0
        stream.unacked += size
        if stream.unacked >= stream.threshold:
            self._widen(stream)

    def credit_stream(self, stream: Stream, size: int) -> None:
        """The same for data that `credit_connection` spoke of already."""
        stream.unacked += size
        if stream.unacked >= stream.threshold:
            self._widen(stream)

    def _widen(self, stream: Stream) -> None:
        """Give a stream its window back, and more: its data is taken."""
        if stream.remote_closed or stream.is_dead:
            return
        grant, stream.unacked = stream.unacked, 0
        if stream.threshold * 2 < self.local.largest_stream_window:
            grant += 2 * stream.threshold
            stream.threshold *= 2
        self._out.write(frames.window_update(stream.id, grant))
        stream.recv_window += grant

    def narrow_streams(self, size: int) -> None:
        """Take back window that streams were given and have not used; those whose data is taken get it again (RFC 9113 §6.9.2)."""
        if self._narrow_to or size >= self._stream_window:
            return
        self._narrow_to = size
        self._out.write(frames.settings({frames.INITIAL_WINDOW_SIZE: size}))
        self._unacked_settings.append(False)
        self._narrow_in = len(self._unacked_settings)

    def _narrow(self) -> None:
        """The peer keeps to the narrower windows from here on; a stream's may be below 0 until enough of its data has left."""
        size, self._narrow_to = self._narrow_to, 0
        delta = self._stream_window - size
        self._stream_window = size
        for stream in list(self.streams.values()):
            stream.recv_window -= delta
            stream.threshold = size // 2
            if stream.unacked >= stream.threshold:
                self._widen(stream)

    def take_unsent(self, stream: Stream) -> int:
        """Credit that `on_sent` will not tell of any more; the caller gives it back to the sender's connection."""
        unsent, stream.unsent = stream.unsent, 0
        if stream.queue:
            unsent += sum(credit for _, credit, _ in stream.queue)
            stream.queue = deque((payload, 0, ended) for payload, _, ended in stream.queue)
        return unsent

    def credit_connection(self, size: int) -> None:
        """Bytes of a stream that is gone, or that wait in our memory and shall not hold up other streams."""
        self._unacked += size
        if self._unacked >= self._connection_threshold:
            self._out.write(frames.window_update(0, self._unacked))
            self._recv_window += self._unacked
            self._unacked = 0

    def reset(self, stream: Stream, code: int) -> None:
        """End the stream now, towards the peer only: the handler is not told."""
        if stream.is_dead or stream.id not in self.streams:
            return
        self._reset_id(stream.id, code)

    def _reset_id(self, stream_id: int, code: int) -> None:
        self._out.write(frames.rst_stream(stream_id, code))
        if len(self._resets) >= REMEMBERED_RESETS:
            oldest = next(iter(self._resets))
            del self._resets[oldest]
            self._forgotten_reset = max(self._forgotten_reset, oldest)
        self._resets[stream_id] = None
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._forget(stream)
            stream.is_dead = True

    def _fail_stream(self, stream_id: int, code: int) -> None:
        """Reset a stream on which the peer broke the protocol, and tell the handler."""
        stream = self.streams.get(stream_id)
        self._reset_id(stream_id, code)
        if stream is not None:
            self.handler.on_reset(stream, code, False)

    def _forget(self, stream: Stream) -> None:
        """The stream is closed on both sides."""
        if self.streams.pop(stream.id, None) is None:
            return
        if stream.queue is not None:
            self._blocked.pop(stream.id, None)
            stream.unsent += sum(credit for _, credit, _ in stream.queue)
            self.waiting -= sum(len(payload) for payload, _, _ in stream.queue)
            stream.queue = None
            stream.queued = None
        if self.waits_for_room:
            self.handler.on_capacity()

    def ping(self) -> None:
        """Ask the peer for a sign of life; `awaits_pong` until it comes."""
        self.awaits_pong = True
        self._out.write(frames.ping(b"remora!?"))

    def drain(self) -> None:
        """Ask the peer to open no new streams; once it has surely heard, those above the last are refused.

        Two GOAWAY frames with a PING between them, so that no stream under way is lost (RFC 9113 §6.8).
        """
        if not self.is_draining and not self.is_going_away:
            self.is_draining = True
            self._out.write(
                frames.goaway(frames.LARGEST_WINDOW, ErrorCode.NO_ERROR, b"draining") + frames.ping(DRAIN_PING)
            )

    def pause(self) -> None:
        """The socket takes no more bytes: hold data back until `resume`."""
        self._is_paused = True
        self._held_window += self.send_window
        self.send_window = 0

    def resume(self) -> None:
        """The socket takes bytes again."""
        self._is_paused = False
        self.send_window += self._held_window
        self._held_window = 0
        if self._blocked:
            self._send_blocked()

    def go_away(self, code: int = ErrorCode.NO_ERROR, text: str = "") -> None:
        """Take no new streams; the running ones go on."""
        if not self.is_going_away:
            self.is_going_away = True
            self._out.write(frames.goaway(self._highest if self.is_server else 0, code, text.encode()))

    def fail(self, code: ErrorCode, text: str) -> None:
        """Say GOAWAY and read no more; the owner closes the socket once the output is written."""
        if self.is_closed:
            return
        self.is_closed = True
        self.close_reason = f"{code.name}: {text}"
        self._out.write(frames.goaway(self._highest if self.is_server else 0, code, text.encode()))
