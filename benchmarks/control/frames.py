"""Many bidi streams on one connection, on raw HTTP/2 frames (RFC 9113): a client that costs microseconds for a message.

A client of a gRPC library costs as much for a response as the control plane that sends it, and both are on one machine: then the figures
would be the client's. `library` is such a client; the bench takes it with `--client grpcio`, to show that both see the same.
"""

import asyncio
import struct
from collections.abc import Callable
from typing import Final, cast

import grpc
from hpack import Decoder

from benchmarks.load.wire import (
    ACK,
    DATA,
    DEFAULT_WINDOW,
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEAD,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    LARGEST_WINDOW,
    PADDED,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    LoadError,
    RequestHead,
    message,
)

CONTINUATION: Final = 9
_CODES: Final = {str(code.value[0]).encode(): code.name for code in grpc.StatusCode}
MAX_FRAME: Final = 16_384
"""Payload of a frame that we send; every peer takes that much."""
_LOW: Final = 1 << 30
"""A window is filled up again when so much of it is used."""


class _Stream:
    """One call. `size` is of the message that is being received, prefix included; 0 while that is not known."""

    __slots__ = ("buffer", "held", "is_listed", "number", "on_message", "size", "used", "window")

    def __init__(self, number: int, window: int, on_message: Callable[[bytes], None]) -> None:
        self.number = number
        self.window = window
        self.on_message = on_message
        self.held = bytearray()
        """Bytes that wait for window."""
        self.is_listed = False
        self.buffer = bytearray()
        self.size = 0
        self.used = 0


class Connection(asyncio.Protocol):
    """Open it with `loop.create_connection`, then `open` streams and `send` messages. Whatever ends it or a stream goes to `on_failure`."""

    def __init__(self, method: str, on_failure: Callable[[Exception], None]) -> None:
        self.received = 0
        """Bytes off the wire."""
        self.carried = 0
        """Of them, bytes of messages: pings and windows come at any time."""
        self.sent = 0
        self._head = RequestHead("control-plane", method)
        self._on_failure = on_failure
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._out = bytearray(PREFACE)
        self._is_flush_due = False
        self._streams: dict[int, _Stream] = {}
        self._next_id = 1
        self._window = DEFAULT_WINDOW
        self._stream_window = DEFAULT_WINDOW
        self._used = 0
        self._blocked: list[_Stream] = []
        self._tail = b""
        self._decoder = Decoder()
        self._is_closing = False

    # -- writing ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._out += HEAD.pack(12 << 8 | SETTINGS, 0, 0)
        self._out += struct.pack(">HIHI", ENABLE_PUSH, 0, INITIAL_WINDOW_SIZE, LARGEST_WINDOW)
        self._give_window(0, LARGEST_WINDOW - DEFAULT_WINDOW)
        self._flush()

    def open(self, on_message: Callable[[bytes], None]) -> int:
        """A new stream; its number."""
        number = self._next_id
        self._next_id += 2
        self._streams[number] = _Stream(number, self._stream_window, on_message)
        block = self._head.stateless
        self._out += HEAD.pack(len(block) << 8 | HEADERS, END_HEADERS, number)
        self._out += block
        self._flush_soon()
        return number

    def send(self, number: int, payload: bytes) -> None:
        """Send a message, as far as the windows allow; the rest follows when they do."""
        stream = self._streams[number]
        stream.held += message(payload)
        self._push(stream)
        self._flush_soon()

    def _push(self, stream: _Stream) -> None:
        held = stream.held
        at = 0
        while at < len(held):
            size = min(len(held) - at, MAX_FRAME, stream.window, self._window)
            if size <= 0:
                break
            self._out += HEAD.pack(size << 8 | DATA, 0, stream.number)
            self._out += held[at : at + size]
            stream.window -= size
            self._window -= size
            at += size
        del held[:at]
        if held and not stream.is_listed:
            stream.is_listed = True
            self._blocked.append(stream)

    def _push_blocked(self) -> None:
        blocked, self._blocked = self._blocked, []
        for stream in blocked:
            stream.is_listed = False
            self._push(stream)

    def _give_window(self, number: int, size: int) -> None:
        self._out += struct.pack(">IBII", 4 << 8 | WINDOW_UPDATE, 0, number, size)

    def _flush_soon(self) -> None:
        if not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_due = False
        if self._out and self._transport is not None:
            self.sent += len(self._out)
            self._transport.write(bytes(self._out))
            self._out.clear()

    def close(self) -> None:
        """End it, and tell nobody."""
        self._is_closing = True
        if self._transport is not None:
            self._transport.close()

    # -- reading ------------------------------------------------------------------------------------

    def connection_lost(self, error: Exception | None) -> None:
        if not self._is_closing:
            self._on_failure(error or ConnectionError("the control plane closed the connection"))

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        try:
            self._receive(data)
        except LoadError as error:
            self._is_closing = True
            self._on_failure(error)
        self._flush()

    def _receive(self, data: bytes) -> None:
        if self._tail:
            data = self._tail + data
        at = 0
        size = len(data)
        while size - at >= 9:
            word, flags, number = HEAD.unpack_from(data, at)
            start, end = at + 9, at + 9 + (word >> 8)
            if end > size:
                break
            at = end
            if word & 0xFF == DATA:
                self._on_data(number, flags, data, start, end)
            else:
                self._on_other(word & 0xFF, flags, number, data[start:end])
        self._tail = data[at:]

    def _on_data(self, number: int, flags: int, data: bytes, start: int, end: int) -> None:
        if flags & (PADDED | END_STREAM):
            raise LoadError("DATA is padded, or ends the stream without grpc-status")
        stream = self._streams[number]
        size = end - start
        self.carried += size
        self._used += size
        stream.used += size
        if self._used > _LOW:
            self._give_window(0, self._used)
            self._used = 0
        if stream.used > _LOW:
            self._give_window(number, stream.used)
            stream.used = 0
        if not stream.size and not stream.buffer and size >= 5:
            whole = int.from_bytes(data[start + 1 : start + 5], "big") + 5
            if whole == size and not data[start]:  # the usual case: one message, one frame
                stream.on_message(data[start + 5 : end])
                return
        buffer = stream.buffer
        buffer += data[start:end]
        while len(buffer) >= (stream.size or 5):
            if not stream.size:
                if buffer[0]:
                    raise LoadError("a message is compressed, which was not asked for")
                stream.size = int.from_bytes(buffer[1:5], "big") + 5
                continue
            received = bytes(buffer[5 : stream.size])
            del buffer[: stream.size]
            stream.size = 0
            stream.on_message(received)

    def _on_other(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == HEADERS:
            self._on_headers(flags, payload)
        elif kind == WINDOW_UPDATE:
            increment = int.from_bytes(payload, "big")
            if number == 0:
                self._window += increment
            elif number in self._streams:
                self._streams[number].window += increment
            self._push_blocked()
        elif kind == SETTINGS and not flags & ACK:
            self._on_settings(payload)
        elif kind == PING and not flags & ACK:
            self._out += HEAD.pack(8 << 8 | PING, ACK, 0) + payload
        elif kind == RST_STREAM:
            raise LoadError(f"stream reset with code {int.from_bytes(payload, 'big')}")
        elif kind == GOAWAY:
            text = payload[8:].decode(errors="replace")
            raise LoadError(f"GOAWAY with code {int.from_bytes(payload[4:8], 'big')}: {text}")
        elif kind == CONTINUATION:
            raise LoadError("a header block in several frames")

    def _on_headers(self, flags: int, block: bytes) -> None:
        if flags & ~END_STREAM != END_HEADERS:
            raise LoadError("a header block in several frames, padded or with priority")
        fields = {bytes(name): bytes(value) for name, value in self._decoder.decode(block, raw=True)}
        if flags & END_STREAM:
            said = fields.get(b"grpc-message", b"").decode(errors="replace")
            raise LoadError(f"{_CODES.get(fields.get(b'grpc-status', b''), 'no grpc-status')}: {said}")

    def _on_settings(self, payload: bytes) -> None:
        for at in range(0, len(payload), 6):
            key, value = struct.unpack_from(">HI", payload, at)
            if key == INITIAL_WINDOW_SIZE:
                for stream in self._streams.values():
                    stream.window += value - self._stream_window
                self._stream_window = value
        self._out += HEAD.pack(SETTINGS, ACK, 0)
        self._push_blocked()
