"""Header blocks without a dynamic table: split, read, write (RFC 7541).

A peer that has acknowledged SETTINGS_HEADER_TABLE_SIZE = 0 sends blocks that refer to nothing before
them: each field stands for itself, so a block can be cut into fields without being decoded, and a field can be
forwarded as it came. `split` is the hot function: about 0.6 µs a field in CPython 3.11, where decoding
(Huffman) costs ten times as much.
"""

from collections.abc import Iterable
from typing import Final

from hpack.table import HeaderTable
from mypy_extensions import i64

from sidecar.http2 import huffman

MAX_FIELDS: Final = 100
"""Fields in one block, unless a listener says otherwise (Envoy: max_headers_count); more is refused, as a decoder's work is what an attacker buys with them."""
MAX_BYTES: Final = 60 * 1024
"""Bytes of a block that is taken, as on the wire, unless a listener says otherwise (Envoy: max_request_headers_kb)."""

STATIC: Final[tuple[tuple[bytes, bytes], ...]] = tuple(HeaderTable.STATIC_TABLE)
_STATIC_SIZE: Final = len(STATIC)
_STATIC_INDEX: Final = {field: index for index, field in reversed(list(enumerate(STATIC, 1)))}
_STATIC_NAME: Final = {name: index for index, (name, _) in reversed(list(enumerate(STATIC, 1)))}

RawField = tuple[bytes, bytes]
"""The bytes of a field's first byte and name, and the bytes of the whole field."""


class HeaderError(Exception):
    """The block cannot be read: a COMPRESSION_ERROR of the connection (RFC 9113 §4.3)."""


class TooLarge(Exception):
    """More fields or bytes than are taken. The connection is sound: the block can be left out, as no other refers to it."""

    def __init__(self, fields: list[RawField], max_fields: int, max_bytes: int) -> None:
        super().__init__(f"more than {max_fields} fields or {max_bytes} bytes of headers")
        self.fields = fields
        """The first of them."""


def _integer(block: bytes, at: i64, mask: i64) -> tuple[i64, i64]:
    """A prefixed integer at `at` and the place behind it (RFC 7541 §5.1)."""
    value: i64 = block[at] & mask
    at += 1
    if value < mask:
        return value, at
    shift: i64 = 0
    while True:
        byte: i64 = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 28:
            raise HeaderError("integer too large")


def split(block: bytes, max_fields: int = MAX_FIELDS, max_bytes: int = MAX_BYTES) -> list[RawField]:
    """The fields of a stateless block, each as raw bytes, in order.

    Size updates are dropped. Raises HeaderError if the block refers to a dynamic table or is cut short, TooLarge if it is too long.
    """
    fields: list[RawField] = []
    at: i64 = 0
    size: i64 = len(block)
    try:
        for _ in range(max_fields + 2):
            if at >= size:
                break
            start: i64 = at
            first: i64 = block[at]
            if first >= 0x80:
                if first == 0x80 or first & 0x7F > _STATIC_SIZE:
                    raise HeaderError("reference outside the static table")
                at += 1
                field = block[start:at]
                fields.append((field, field))
                continue
            if first & 0xE0 == 0x20:
                table_size, at = _integer(block, at, 0x1F)
                if table_size or fields:
                    raise HeaderError("table size update that was not allowed")
                continue
            mask: i64 = 0x3F if first & 0x40 else 0x0F
            index: i64 = first & mask
            at += 1
            if index == mask:
                index, at = _integer(block, start, mask)
            if index == 0:
                length: i64 = block[at] & 0x7F
                at += 1
                if length == 0x7F:
                    length, at = _integer(block, at - 1, 0x7F)
                at += length
            elif index > _STATIC_SIZE:
                raise HeaderError("reference outside the static table")
            name_end: i64 = at
            length = block[at] & 0x7F
            at += 1
            if length == 0x7F:
                length, at = _integer(block, at - 1, 0x7F)
            at += length
            fields.append((block[start:name_end], block[start:at]))
    except IndexError:
        raise HeaderError("block ends inside a field") from None
    if at > size:
        raise HeaderError("block ends inside a field")
    if at < size or size > max_bytes or len(fields) > max_fields:
        raise TooLarge(fields, max_fields, max_bytes)
    return fields


def _string(raw: bytes, at: i64) -> bytes:
    """The string literal at `at`, decoded (RFC 7541 §5.2)."""
    is_huffman = raw[at] & 0x80
    length, at = _integer(raw, at, 0x7F)
    data = raw[at : at + length]
    if not is_huffman:
        return data
    try:
        return huffman.decode(data)
    except huffman.BadCode as error:
        raise HeaderError(f"bad Huffman code: {error}") from None


def name_of(field: RawField) -> bytes:
    """The decoded name of a field that `split` gave."""
    head = field[0]
    first = head[0]
    if first >= 0x80:
        return STATIC[(first & 0x7F) - 1][0]
    mask = 0x3F if first & 0x40 else 0x0F
    index, at = _integer(head, 0, mask)
    return STATIC[index - 1][0] if index else _string(head, at)


def value_of(field: RawField) -> bytes:
    """The decoded value of a field that `split` gave."""
    head, whole = field
    first = head[0]
    if first >= 0x80:
        return STATIC[(first & 0x7F) - 1][1]
    return _string(whole, len(head))


def decode(block: bytes) -> list[tuple[bytes, bytes]]:
    """A stateless block as (name, value) pairs. Raises HeaderError."""
    return [(name_of(field), value_of(field)) for field in split(block)]


def _write_integer(value: int, mask: int, pattern: int) -> bytes:
    if value < mask:
        return bytes((pattern | value,))
    out = bytearray((pattern | mask,))
    value -= mask
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _write_string(data: bytes) -> bytes:
    # As it is: Huffman would save a third of the bytes for ten times the CPU.
    return _write_integer(len(data), 0x7F, 0) + data


def encode_field(name: bytes, value: bytes) -> bytes:
    """One field that refers to no dynamic table and adds nothing to it."""
    index = _STATIC_INDEX.get((name, value))
    if index is not None:
        return bytes((0x80 | index,))
    index = _STATIC_NAME.get(name)
    if index is not None:
        return _write_integer(index, 0x0F, 0) + _write_string(value)
    return b"\x00" + _write_string(name) + _write_string(value)


def encode(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A block that stands for itself: no dynamic table is used or filled."""
    return b"".join([encode_field(name, value) for name, value in fields])
