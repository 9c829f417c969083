"""The small language of case files for frames: `"HEADERS 1 END_HEADERS": [":method: POST", …]` to bytes.

The key is frame type, stream id and flags; type and flags may be numbers (0x16), the stream may be `$`, which is the stream that a
backend answers. The value is the payload: a list is a header block (each item `name: value`, lists inside lists are flattened), a text is itself, a number
is four bytes; a mapping is one of those below in `_payload`.
"""

import struct
from typing import Any, Final

from tests.differential import wire
from tests.differential.wire import CODES, FLAGS, PREFACE, Fields

REQUEST: Final = [":method: POST", ":scheme: http", ":path: /shop.Orders/Get", ":authority: shop"]
GRPC: Final = [*REQUEST, "content-type: application/grpc", "te: trailers"]
_WORDS: Final[dict[str, Any]] = {"$request": REQUEST, "$grpc": GRPC}


def fields(items: Any) -> Fields:
    """Header fields from a list of `name: value`, of lists of those, and of `$request` and `$grpc`."""
    found: Fields = []
    for item in items:
        item = _WORDS.get(item, item) if isinstance(item, str) else item
        if isinstance(item, list):
            found += fields(item)
        elif isinstance(item, dict):  # for what is hard to write as text: {name: x, value: y, times: n}
            told: dict[str, Any] = item
            name, value = str(told["name"]), str(told.get("value", ""))
            found.append((name * int(told.get("name_times", 1)), value * int(told.get("times", 1))))
        else:
            name, _, value = item[1:].partition(":") if item.startswith(":") else item.partition(":")
            found.append((":" + name if item.startswith(":") else name, value.removeprefix(" ")))
    return found


def message(text: str) -> bytes:
    """A gRPC message: not compressed, its length, itself."""
    data = text.encode()
    return struct.pack(">BI", 0, len(data)) + data


def body(value: Any) -> bytes:
    """Bytes of a body: a text, or {grpc: text}, {hex: …}, {repeat: text, times: n}."""
    if isinstance(value, dict):
        if "grpc" in value:
            return message(str(value["grpc"]) * int(value.get("times", 1)))
        if "hex" in value:
            return bytes.fromhex(value["hex"])
        return str(value["repeat"]).encode() * int(value["times"])
    return str(value).encode()


def _payload(value: Any) -> bytes:
    if value is None:
        return b""
    if isinstance(value, int):
        return struct.pack(">I", value)
    if isinstance(value, list):
        return wire.plain_block(fields(value))
    if isinstance(value, dict):
        return _part(value)
    return bytes(value, "utf-8") if value not in CODES else struct.pack(">I", CODES.index(value))


def _part(value: dict[str, Any]) -> bytes:
    """The payloads that have a form of their own."""
    if "pad" in value:
        return bytes((int(value["pad"]),)) + _payload(value["of"]) + bytes(int(value.get("bytes", value["pad"])))
    if "priority" in value:
        return struct.pack(">IB", int(value["priority"]), 15) + _payload(value["of"])
    if "block" in value:
        whole = _payload(value["block"])
        return whole[int(value.get("from", 0)) : int(value.get("to", len(whole)))]
    if "last" in value:
        return struct.pack(">II", int(value["last"]), CODES.index(value["code"]))
    if value.keys() <= wire.SETTINGS.keys():
        return b"".join(struct.pack(">HI", wire.SETTINGS[name], int(number)) for name, number in value.items())
    return body(value)


def frame(item: Any, own_stream: int = 0) -> bytes:
    """One item of a `send` list as bytes."""
    if isinstance(item, str):
        item = {item: None}
    ((key, value),) = item.items()
    words = str(key).split()
    if words == ["PREFACE"]:
        return PREFACE
    if words == ["hex"]:
        return bytes.fromhex(value)
    if words == ["text"]:
        return str(value).encode("latin-1")
    kind: str | int = int(words[0], 16) if words[0].startswith("0x") else words[0]
    stream_id, flags = 0, 0
    for word in words[1:]:
        if word == "$":
            stream_id = own_stream
        elif word.isdigit():
            stream_id = int(word)
        elif word.startswith("0x"):
            flags |= int(word, 16)
        else:
            flags |= FLAGS[word]
    return wire.frame(kind, stream_id, flags, _payload(value))


def opens(items: Any) -> list[tuple[int, bool]]:
    """(stream id, is its request complete) of the streams that a client's raw frames speak of, as far as the keys tell."""
    found: dict[int, bool] = {}
    for item in items:
        words = str(next(iter(item))).split() if isinstance(item, dict) else str(item).split()
        if words[0] in ("HEADERS", "DATA") and len(words) > 1 and words[1].isdigit() and int(words[1]):
            stream_id = int(words[1])
            if words[0] == "HEADERS" or stream_id in found:
                found[stream_id] = found.get(stream_id, False) or "END_STREAM" in words
    return list(found.items())
