"""HTTP/2 frames as bytes: types, flags, codes, and the builders of the small ones (RFC 9113 §4, §6)."""

import struct
from enum import IntEnum
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD: Final = struct.Struct(">IBI")
"""Length and type in one word, flags, stream id: `(length << 8 | type, flags, stream)`."""

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
HAS_PRIORITY: Final = 0x20

HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6

DEFAULT_WINDOW: Final = 65_535
DEFAULT_FRAME_SIZE: Final = 16_384
LARGEST_FRAME_SIZE: Final = 16_777_215
LARGEST_WINDOW: Final = 2**31 - 1

_PAIR: Final = struct.Struct(">HI")
_TWO_WORDS: Final = struct.Struct(">II")
_HEAD_AND_WORD: Final = struct.Struct(">IBII")


class ErrorCode(IntEnum):
    """RFC 9113 §7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return HEAD.pack(len(values) * 6 << 8 | SETTINGS, 0, 0) + b"".join(
        _PAIR.pack(key, value) for key, value in values.items()
    )


def parse_settings(payload: bytes) -> list[tuple[int, int]]:
    """The pairs of a SETTINGS payload, whose length must be a multiple of 6."""
    return [_PAIR.unpack_from(payload, at) for at in range(0, len(payload), 6)]


SETTINGS_ACK: Final = HEAD.pack(SETTINGS, ACK, 0)


def window_update(stream_id: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame; stream 0 is the connection."""
    return _HEAD_AND_WORD.pack(4 << 8 | WINDOW_UPDATE, 0, stream_id, increment)


def rst_stream(stream_id: int, code: int) -> bytes:
    """A RST_STREAM frame."""
    return _HEAD_AND_WORD.pack(4 << 8 | RST_STREAM, 0, stream_id, code)


def ping(opaque: bytes, *, ack: bool = False) -> bytes:
    """A PING frame with 8 opaque bytes."""
    return HEAD.pack(8 << 8 | PING, ACK if ack else 0, 0) + opaque


def goaway(last_stream_id: int, code: int, text: bytes = b"") -> bytes:
    """A GOAWAY frame; `text` is for people who look at the wire."""
    return HEAD.pack(8 + len(text) << 8 | GOAWAY, 0, 0) + _TWO_WORDS.pack(last_stream_id, code) + text


def parse_goaway(payload: bytes) -> tuple[int, int]:
    """Last stream id and error code of a GOAWAY payload of 8 bytes or more."""
    last, code = _TWO_WORDS.unpack_from(payload)
    return last & LARGEST_WINDOW, code
