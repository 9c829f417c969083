"""A gRPC bidi echo on raw frames: what stands behind the proxies when messages go to and fro on one stream.

`python -m benchmarks.echo PORT`. Each DATA frame goes back as it came; half-closing a stream ends it with `grpc-status: 0`. It reads no
header, so it needs no HPACK.
"""

import asyncio
import struct
import sys
from collections import deque
from typing import Final, cast

import uvloop

from benchmarks.load.wire import (
    ACK,
    DATA,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
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
    literal,
)

_RESPONSE: Final = b"\x88" + literal(b"content-type", b"application/grpc")
_TRAILERS: Final = literal(b"grpc-status", b"0")
_MAX_CONCURRENT_STREAMS: Final = 3


class Echo(asyncio.Protocol):
    """One connection. Windows of streams and of the connection are kept; what does not fit waits, in order."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._tail = b""
        self._window = DEFAULT_WINDOW
        self._initial = DEFAULT_WINDOW
        self._windows: dict[int, int] = {}
        self._waiting: deque[tuple[int, bytes]] = deque()
        """DATA that waits, and trailers (None as bytes cannot be: empty means the end)."""
        self._out = bytearray(HEAD.pack(12 << 8 | SETTINGS, 0, 0))
        self._out += struct.pack(">HIHI", INITIAL_WINDOW_SIZE, LARGEST_WINDOW, _MAX_CONCURRENT_STREAMS, 1000)
        self._out += struct.pack(">IBII", 4 << 8 | WINDOW_UPDATE, 0, 0, LARGEST_WINDOW - DEFAULT_WINDOW)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._tail:
            data = self._tail + data
        at = len(PREFACE) if data.startswith(PREFACE) else 0
        size = len(data)
        read = 0
        while size - at >= 9:
            word, flags, stream = HEAD.unpack_from(data, at)
            end = at + 9 + (word >> 8)
            if end > size:
                break
            kind = word & 0xFF
            payload = data[at + 9 : end]
            at = end
            if kind == DATA:
                read += len(payload)
                if flags & PADDED:
                    payload = payload[1 : len(payload) - payload[0]]
                if payload:
                    self._send(stream, payload)
            elif kind == HEADERS:
                self._windows[stream] = self._initial
                self._out += HEAD.pack(len(_RESPONSE) << 8 | HEADERS, END_HEADERS, stream) + _RESPONSE
            else:
                self._on_other(kind, flags, stream, payload)
            if kind in (DATA, HEADERS) and flags & END_STREAM:
                self._send(stream, b"")
        self._tail = data[at:]
        if read:
            self._out += struct.pack(">IBII", 4 << 8 | WINDOW_UPDATE, 0, 0, read)
        if self._out and self._transport is not None:
            self._transport.write(bytes(self._out))
            self._out.clear()

    def _send(self, stream: int, payload: bytes) -> None:
        """Send DATA, or the end if there is none; what was not reset and has no window waits."""
        self._waiting.append((stream, payload))
        self._send_waiting()

    def _send_waiting(self) -> None:
        waiting = self._waiting
        while waiting:
            stream, payload = waiting[0]
            window = self._windows.get(stream)
            if window is not None and payload and len(payload) > min(window, self._window):
                return
            waiting.popleft()
            if window is None:
                continue
            if payload:
                self._windows[stream] = window - len(payload)
                self._window -= len(payload)
                self._out += HEAD.pack(len(payload) << 8, 0, stream) + payload
            else:
                del self._windows[stream]
                self._out += HEAD.pack(len(_TRAILERS) << 8 | HEADERS, END_HEADERS | END_STREAM, stream) + _TRAILERS

    def _on_other(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE:
            increment = int.from_bytes(payload, "big")
            if stream == 0:
                self._window += increment
            elif stream in self._windows:
                self._windows[stream] += increment
            self._send_waiting()
        elif kind == SETTINGS and not flags & ACK:
            for key, value in struct.iter_unpack(">HI", payload):
                if key == INITIAL_WINDOW_SIZE:
                    for each in self._windows:
                        self._windows[each] += value - self._initial
                    self._initial = value
            self._out += HEAD.pack(SETTINGS, ACK, 0)
        elif kind == PING and not flags & ACK:
            self._out += HEAD.pack(8 << 8 | PING, ACK, 0) + payload
        elif kind == RST_STREAM:
            self._windows.pop(stream, None)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
