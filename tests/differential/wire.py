"""HTTP/2 as the harness speaks it: any frame can be written, also a wrong one, and what comes is written down as it came.

Independent of `sidecar.http2` on purpose: header blocks go through `hpack`, frames through the forty lines below. It answers SETTINGS and PING
and gives window back by itself, unless told not to; it checks nothing.
"""

import asyncio
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, cast

import hpack

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
TYPES: Final = (
    "DATA",
    "HEADERS",
    "PRIORITY",
    "RST_STREAM",
    "SETTINGS",
    "PUSH_PROMISE",
    "PING",
    "GOAWAY",
    "WINDOW_UPDATE",
    "CONTINUATION",
)
FLAGS: Final = {"END_STREAM": 0x1, "ACK": 0x1, "END_HEADERS": 0x4, "PADDED": 0x8, "PRIORITY": 0x20}
CODES: Final = (
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
)
SETTINGS: Final = {
    "HEADER_TABLE_SIZE": 1,
    "ENABLE_PUSH": 2,
    "MAX_CONCURRENT_STREAMS": 3,
    "INITIAL_WINDOW_SIZE": 4,
    "MAX_FRAME_SIZE": 5,
    "MAX_HEADER_LIST_SIZE": 6,
}
BIG_WINDOW: Final = 2**30
_HEAD: Final = struct.Struct(">BHBBI")

Fields = list[tuple[str, str]]


def frame(kind: str | int, stream_id: int = 0, flags: int = 0, payload: bytes = b"") -> bytes:
    """One frame, as it is."""
    number = TYPES.index(kind) if isinstance(kind, str) else kind
    return _HEAD.pack(len(payload) >> 16, len(payload) & 0xFFFF, number, flags, stream_id) + payload


def settings(values: dict[str, int]) -> bytes:
    """A SETTINGS frame from names and values."""
    return frame(
        "SETTINGS", payload=b"".join(struct.pack(">HI", SETTINGS[name], value) for name, value in values.items())
    )


def code_name(code: int) -> str:
    """The name of an error code, or its number."""
    return CODES[code] if code < len(CODES) else str(code)


def plain_block(fields: Fields) -> bytes:
    """A header block in the plainest form: literals, no index, no Huffman code, no table."""
    return b"".join(b"\0" + _string(name) + _string(value) for name, value in fields)


def _string(text: str) -> bytes:
    data = text.encode("latin-1")
    size = len(data)
    if size < 127:
        return bytes((size,)) + data
    out, size = bytearray(b"\x7f"), size - 127
    while size >= 128:
        out.append(size & 127 | 128)
        size >>= 7
    out.append(size)
    return bytes(out) + data


@dataclass
class Seen:
    """What this side saw, and did, on one stream."""

    id: int
    informational: list[Fields] = field(default_factory=list)
    headers: Fields | None = None
    data: bytearray = field(default_factory=bytearray)
    trailers: Fields | None = None
    is_ended: bool = False
    """END_STREAM came."""
    reset: int | None = None
    """The code of the RST_STREAM that came."""
    have_ended: bool = False
    """We sent END_STREAM."""
    have_reset: bool = False
    is_cut: bool = False
    """The connection ended first."""
    is_gone: bool = False
    """The connection has ended."""

    @property
    def is_over(self) -> bool:
        """Nothing more can come."""
        return self.is_ended or self.reset is not None or self.is_cut or self.have_reset

    @property
    def is_done(self) -> bool:
        """Nothing more can come, and nothing more is to be sent."""
        return self.reset is not None or self.is_gone or self.have_reset or (self.is_ended and self.have_ended)

    def header(self, name: str) -> str | None:
        """The first value of a header or trailer."""
        for fields in (self.trailers, self.headers):
            for key, value in fields or ():
                if key == name:
                    return value
        return None


class Wire(asyncio.Protocol):
    """One connection, either side. `on_change` is called after every frame that says something about a stream."""

    def __init__(
        self,
        *,
        is_server: bool,
        announced: dict[str, int] | None = None,
        on_change: Callable[["Wire", Seen], None] | None = None,
        gives_window: bool = True,
    ) -> None:
        self.is_server = is_server
        self.streams: dict[int, Seen] = {}
        self.goaway: tuple[int, int] | None = None
        """(last stream, code) of the last GOAWAY that came."""
        self.is_closed = False
        self.pongs: set[bytes] = set()
        self.peer_settings: dict[int, int] = {}
        self.encoder = hpack.Encoder()
        self.gives_window = gives_window
        self.answers_pings = True
        self._announced = {"INITIAL_WINDOW_SIZE": BIG_WINDOW, **(announced or {})}
        self._decoder = hpack.Decoder(max_header_list_size=1 << 22)
        self._on_change = on_change
        self._data = b""
        self._block = bytearray()
        self._block_ends = False
        self._next_id = 1
        self._transport: asyncio.Transport | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._waits_preface = is_server

    # -- socket -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self.is_server:
            self.send(settings(self._announced) + frame("WINDOW_UPDATE", payload=struct.pack(">I", BIG_WINDOW)))

    def hello(self) -> None:
        """The client's preface, SETTINGS and a wide window."""
        self.send(PREFACE + settings(self._announced) + frame("WINDOW_UPDATE", payload=struct.pack(">I", BIG_WINDOW)))

    def send(self, data: bytes) -> None:
        """Write bytes as they are; nothing once the connection is gone."""
        if self._transport is not None and not self.is_closed:
            self._transport.write(data)

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.close()

    def pause(self) -> None:
        """Read no more from the socket."""
        if self._transport is not None:
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        for seen in self.streams.values():
            seen.is_gone = True
            if not seen.is_over:
                seen.is_cut = True
        self._wake()

    async def until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait for something that frames bring about; False when the time is over."""
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    waiter = asyncio.get_running_loop().create_future()
                    self._waiters.append(waiter)
                    await waiter
        except TimeoutError:
            return False
        return True

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # -- reading ------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._data += data
        if self._waits_preface:
            if len(self._data) < len(PREFACE):
                return
            self._data = self._data[len(PREFACE) :]
            self._waits_preface = False
        while len(self._data) >= 9:
            high, low, kind, flags, stream_id = _HEAD.unpack_from(self._data)
            length = high << 16 | low
            if len(self._data) < 9 + length:
                break
            payload, self._data = self._data[9 : 9 + length], self._data[9 + length :]
            self._on_frame(TYPES[kind] if kind < len(TYPES) else "", flags, stream_id & 0x7FFFFFFF, payload)
        self._wake()

    def _on_frame(self, kind: str, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == "SETTINGS" and not flags & 1:
            for at in range(0, len(payload), 6):
                key, value = struct.unpack_from(">HI", payload, at)
                self.peer_settings[key] = value
                if key == SETTINGS["HEADER_TABLE_SIZE"]:
                    self.encoder.header_table_size = min(value, 4096)
            self.send(frame("SETTINGS", flags=1))
        elif kind == "PING":
            if flags & 1:
                self.pongs.add(payload)
            elif self.answers_pings:
                self.send(frame("PING", flags=1, payload=payload))
        elif kind == "GOAWAY":
            last, code = struct.unpack_from(">II", payload)
            self.goaway = (last & 0x7FFFFFFF, code)
        elif kind in ("HEADERS", "CONTINUATION"):
            if kind == "HEADERS":
                self._block_ends = bool(flags & 1)
            self._block += payload
            if flags & FLAGS["END_HEADERS"]:
                block, self._block = bytes(self._block), bytearray()
                self._on_block(stream_id, block)
        elif kind == "DATA":
            self._on_data(stream_id, payload, bool(flags & 1))
        elif kind == "RST_STREAM" and stream_id in self.streams:
            seen = self.streams[stream_id]
            seen.reset = int(struct.unpack(">I", payload)[0])
            self._tell(seen)

    def _on_block(self, stream_id: int, block: bytes) -> None:
        fields: Fields = [
            (bytes(name).decode("latin-1"), bytes(value).decode("latin-1"))
            for name, value in self._decoder.decode(block, raw=True)
        ]
        seen = self.streams.get(stream_id)
        if seen is None:
            seen = self.streams[stream_id] = Seen(stream_id)
        status = dict(fields).get(":status", "")
        if seen.headers is not None:
            seen.trailers = fields
        elif status.startswith("1"):
            seen.informational.append(fields)
        else:
            seen.headers = fields
        seen.is_ended = seen.is_ended or self._block_ends
        self._tell(seen)

    def _on_data(self, stream_id: int, payload: bytes, ended: bool) -> None:
        if self.gives_window and payload:
            self.give_window(0, len(payload))
            self.give_window(stream_id, len(payload))
        seen = self.streams.get(stream_id)
        if seen is not None:
            seen.data += payload
            seen.is_ended = seen.is_ended or ended
            self._tell(seen)

    def _tell(self, seen: Seen) -> None:
        if self._on_change is not None:
            self._on_change(self, seen)

    # -- writing ------------------------------------------------------------------------------------

    def give_window(self, stream_id: int, size: int) -> None:
        """WINDOW_UPDATE."""
        self.send(frame("WINDOW_UPDATE", stream_id, payload=struct.pack(">I", size)))

    def open(self, fields: Fields, *, ended: bool) -> Seen:
        """A request, with the next free stream id, its block written as ordinary clients do (tables, Huffman code)."""
        seen = self.streams[self._next_id] = Seen(self._next_id)
        self._next_id += 2
        self.headers(seen, fields, ended=ended)
        return seen

    def expect(self, stream_id: int) -> Seen:
        """A stream that was opened by raw frames."""
        seen = self.streams.get(stream_id)
        if seen is None:
            seen = self.streams[stream_id] = Seen(stream_id)
        self._next_id = max(self._next_id, stream_id + 2)
        return seen

    def headers(self, seen: Seen, fields: Fields, *, ended: bool) -> None:
        """A header block, in as many frames as it needs."""
        block = self.encoder.encode([(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields])
        parts = [block[at : at + 16_384] for at in range(0, len(block), 16_384)] or [b""]
        for number, part in enumerate(parts):
            flags = FLAGS["END_HEADERS"] if number == len(parts) - 1 else 0
            flags |= FLAGS["END_STREAM"] if ended and number == 0 else 0
            self.send(frame("CONTINUATION" if number else "HEADERS", seen.id, flags, part))
        seen.have_ended = seen.have_ended or ended

    def data(self, seen: Seen, payload: bytes, *, ended: bool) -> None:
        """DATA in frames of at most 16 KiB; windows are the caller's concern."""
        parts = [payload[at : at + 16_384] for at in range(0, len(payload), 16_384)] or [b""]
        for number, part in enumerate(parts):
            is_last = ended and number == len(parts) - 1
            self.send(frame("DATA", seen.id, FLAGS["END_STREAM"] if is_last else 0, part))
        seen.have_ended = seen.have_ended or ended

    def reset(self, seen: Seen, code: str) -> None:
        """RST_STREAM."""
        self.send(frame("RST_STREAM", seen.id, payload=struct.pack(">I", CODES.index(code))))
        seen.have_reset = True
