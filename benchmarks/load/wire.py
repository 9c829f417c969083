"""A gRPC client's side of one HTTP/2 connection on raw frames: small, fast, and strict about what it gets (RFC 9113, RFC 7541).

It writes header blocks as real clients do: fields that stay the same go through the dynamic table, unless the peer says that it keeps
none; fields that differ are literals. A call counts only if it ended with `grpc-status: 0` and brought the bytes that it should have.
"""

import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from hpack import Decoder

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD: Final = struct.Struct(">IBI")
DATA: Final = 0
HEADERS: Final = 1
RST_STREAM: Final = 3
SETTINGS: Final = 4
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
INITIAL_WINDOW_SIZE: Final = 4
DEFAULT_WINDOW: Final = 65_535
LARGEST_WINDOW: Final = 2**31 - 1
_FIRST_DYNAMIC: Final = 62
_NO_TABLE: Final = b"\x20"
"""A table size update to 0."""

Fields = Sequence[tuple[bytes, bytes]]


class LoadError(Exception):
    """A call failed, or the peer did what the generator does not expect: there is no figure."""


def message(payload: bytes) -> bytes:
    """A gRPC message: not compressed, with its length."""
    return b"\0" + len(payload).to_bytes(4, "big") + payload


def _text(data: bytes) -> bytes:
    """A string literal without Huffman code."""
    size = len(data)
    if size < 0x7F:
        return bytes((size,)) + data
    size -= 0x7F
    out = bytearray(b"\x7f")
    while size >= 0x80:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out) + data


def literal(name: bytes, value: bytes) -> bytes:
    """A field that enters no table."""
    return b"\0" + _text(name) + _text(value)


class RequestHead:
    """The fields that are the same in all calls, in the three forms in which they go out."""

    def __init__(self, authority: str, path: str, scheme: str = "http") -> None:
        fields: Fields = (
            (b":method", b"POST"),
            (b":scheme", scheme.encode()),
            (b":path", path.encode()),
            (b":authority", authority.encode()),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"user-agent", b"remora-bench/1"),
        )
        self.stateless = b"".join(literal(name, value) for name, value in fields)
        self.first = b"".join(b"\x40" + _text(name) + _text(value) for name, value in fields)
        """Puts all into the dynamic table."""
        last = _FIRST_DYNAMIC + len(fields) - 1
        self.again = bytes(0x80 | last - number for number in range(len(fields)))


class Wire:
    """One connection, sans-IO: `receive` takes bytes, `out` gathers bytes.

    `on_data(stream, size)` and `on_end(stream)` tell of DATA and of calls that ended with status 0; every other end raises LoadError.
    """

    def __init__(self, head: RequestHead, on_data: Callable[[int, int], None], on_end: Callable[[int], None]) -> None:
        self.out = bytearray(PREFACE)
        self.has_settings = False
        self._head = head
        self._on_data = on_data
        self._on_end = on_end
        self._next_id = 1
        self._has_table = True
        self._owes_size_update = False
        self._has_sent_head = False
        self._window = DEFAULT_WINDOW
        self._peer_stream_window = DEFAULT_WINDOW
        self._stream_windows: dict[int, int] = {}
        self._held: deque[tuple[int, bytes, bool]] = deque()
        """DATA that waits for window of the connection."""
        self._unacked = 0
        self._tail = b""
        self._decoder = Decoder()
        self._memo: dict[bytes, bytes | None] = {}
        """Header blocks that leave the table as it is, and the grpc-status that they hold; valid until the table changes."""
        self._settings((ENABLE_PUSH, 0), (INITIAL_WINDOW_SIZE, LARGEST_WINDOW))
        self._give_window(0, LARGEST_WINDOW - DEFAULT_WINDOW)

    # -- writing ------------------------------------------------------------------------------------

    def open(self, differing: bytes = b"") -> int:
        """Send a request's headers, with these fields behind those that stay the same; returns the stream."""
        stream = self._next_id
        self._next_id = stream + 2
        if not self._has_table:
            block = self._head.stateless
            if self._owes_size_update:
                block = _NO_TABLE + block
                self._owes_size_update = False
        elif self._has_sent_head:
            block = self._head.again
        else:
            block = self._head.first
            self._has_sent_head = True
        self.out += HEAD.pack(len(block) + len(differing) << 8 | HEADERS, END_HEADERS, stream)
        self.out += block
        self.out += differing
        self._stream_windows[stream] = self._peer_stream_window
        return stream

    def send(self, stream: int, payload: bytes, ended: bool) -> None:
        """Send DATA, or hold it until the connection's window lets it go. A stream's own window must suffice."""
        size = len(payload)
        left = self._stream_windows[stream] - size
        if left < 0:
            raise LoadError(f"a stream's window of {left + size} bytes is too small for this load")
        self._stream_windows[stream] = left
        if self._held or size > self._window:
            self._held.append((stream, payload, ended))
            return
        self._window -= size
        self.out += HEAD.pack(size << 8, END_STREAM if ended else 0, stream)
        self.out += payload

    def _settings(self, *values: tuple[int, int]) -> None:
        self.out += HEAD.pack(len(values) * 6 << 8 | SETTINGS, 0, 0)
        for key, value in values:
            self.out += struct.pack(">HI", key, value)

    def _give_window(self, stream: int, size: int) -> None:
        self.out += struct.pack(">IBII", 4 << 8 | WINDOW_UPDATE, 0, stream, size)

    # -- reading ------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take what the peer sent. Raises LoadError."""
        if self._tail:
            data = self._tail + data
        at = 0
        size = len(data)
        while size - at >= 9:
            word, flags, stream = HEAD.unpack_from(data, at)
            end = at + 9 + (word >> 8)
            if end > size:
                break
            kind = word & 0xFF
            if kind == DATA:
                length = word >> 8
                if flags & (PADDED | END_STREAM):
                    raise LoadError("DATA is padded, or ends the stream without grpc-status")
                self._unacked += length
                self._on_data(stream, length)
            elif kind == HEADERS:
                self._on_headers(stream, flags, data[at + 9 : end])
            else:
                self._on_other(kind, flags, stream, data[at + 9 : end])
            at = end
        self._tail = data[at:]
        if self._unacked > LARGEST_WINDOW // 2:
            self._give_window(0, self._unacked)
            self._unacked = 0

    def _on_headers(self, stream: int, flags: int, block: bytes) -> None:
        if flags & ~END_STREAM != END_HEADERS:
            raise LoadError("a header block in several frames, padded or with priority")
        try:
            status = self._memo[block]
        except KeyError:
            status = self._decode(block)
        if flags & END_STREAM:
            if status != b"0":
                raise LoadError(f"grpc-status {status.decode() if status else 'is missing'}")
            del self._stream_windows[stream]
            self._on_end(stream)

    def _decode(self, block: bytes) -> bytes | None:
        entries = self._decoder.header_table.dynamic_entries
        before = entries[0] if entries else None
        fields = {bytes(name): bytes(value) for name, value in self._decoder.decode(block, raw=True)}
        http_status = fields.get(b":status", b"200")
        if http_status != b"200":
            raise LoadError(f":status {http_status.decode()}")
        status = fields.get(b"grpc-status")
        if status not in (None, b"0"):
            raise LoadError(f"grpc-status {status!r}: {fields.get(b'grpc-message', b'').decode()}")
        if (entries[0] if entries else None) is before:
            self._memo[block] = status
        else:
            self._memo.clear()
        return status

    def _on_other(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE:
            increment = int.from_bytes(payload, "big")
            if stream == 0:
                self._window += increment
                while self._held and len(self._held[0][1]) <= self._window:
                    held_stream, data, ended = self._held.popleft()
                    self._window -= len(data)
                    self.out += HEAD.pack(len(data) << 8, END_STREAM if ended else 0, held_stream) + data
            elif stream in self._stream_windows:
                self._stream_windows[stream] += increment
        elif kind == SETTINGS and not flags & ACK:
            self._on_settings(payload)
        elif kind == PING and not flags & ACK:
            self.out += HEAD.pack(8 << 8 | PING, ACK, 0) + payload
        elif kind == RST_STREAM:
            raise LoadError(f"stream reset with code {int.from_bytes(payload, 'big')}")
        elif kind == GOAWAY:
            raise LoadError(
                f"GOAWAY with code {int.from_bytes(payload[4:8], 'big')}: {payload[8:].decode(errors='replace')}"
            )

    def _on_settings(self, payload: bytes) -> None:
        for at in range(0, len(payload), 6):
            key, value = struct.unpack_from(">HI", payload, at)
            if key == INITIAL_WINDOW_SIZE:
                for stream in self._stream_windows:
                    self._stream_windows[stream] += value - self._peer_stream_window
                self._peer_stream_window = value
            elif key == HEADER_TABLE_SIZE and value == 0 and self._has_table:
                self._has_table = False
                self._owes_size_update = True
        self.has_settings = True
        self.out += HEAD.pack(SETTINGS, ACK, 0)
