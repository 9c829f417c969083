"""What a stranger's first bytes say: is it TLS, for which name, is it HTTP, which version. Pure functions of bytes.

Each gives None while the bytes do not suffice.
"""

import re
from dataclasses import dataclass
from typing import Final

from sidecar.http2.frames import PREFACE

MAX_HELLO: Final = 16 * 1024
"""Bytes of a ClientHello; a longer one counts as one that says nothing (Envoy: tls_inspector, 16 KiB)."""
MAX_LINE: Final = 8 * 1024
"""Bytes of a request line."""

_HANDSHAKE: Final = 0x16
_CLIENT_HELLO: Final = 1
_SERVER_NAME: Final = 0
_ALPN: Final = 16
_REQUEST_LINE: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ +[^ \0\r\n]+ +HTTP/1\.([01])\r?\n")
_METHOD: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]*")


@dataclass(frozen=True, slots=True)
class Hello:
    """What a TLS client says in the clear."""

    is_tls: bool
    server_name: str = ""
    """Lower case; empty if none was given."""
    applications: tuple[str, ...] = ()
    """ALPN, in the client's order."""


NOT_TLS: Final = Hello(False)


class _Short(Exception):
    """A length in the hello leads behind its end."""


def tls(data: bytes) -> Hello | None:
    """Read a ClientHello (RFC 8446 §4.1.2), also one in several records."""
    if not data:
        return None
    if data[0] != _HANDSHAKE or (len(data) > 1 and data[1] != 3):
        return NOT_TLS
    message = bytearray()
    at = 0
    while at + 5 <= len(data) and data[at] == _HANDSHAKE:
        size = int.from_bytes(data[at + 3 : at + 5], "big")
        message += data[at + 5 : at + 5 + size]
        at += 5 + size
    if message and message[0] != _CLIENT_HELLO:
        return NOT_TLS
    length = int.from_bytes(message[1:4], "big") if len(message) >= 4 else -1
    if length < 0 or len(message) < 4 + length:
        return None if len(data) <= MAX_HELLO and length <= MAX_HELLO else Hello(True)
    try:
        return _hello(bytes(message[4 : 4 + length]))
    except _Short:
        return Hello(True)  # the handshake will refuse it


def _vector(data: bytes, at: int, width: int) -> tuple[bytes, int]:
    """A vector with a length of `width` bytes at `at`, and the place behind it."""
    start = at + width
    if start > len(data):
        raise _Short
    end = start + int.from_bytes(data[at:start], "big")
    if end > len(data):
        raise _Short
    return data[start:end], end


def _hello(body: bytes) -> Hello:
    _, at = _vector(body, 34, 1)  # behind version and random: session id
    _, at = _vector(body, at, 2)  # cipher suites
    _, at = _vector(body, at, 1)  # compression methods
    if at == len(body):
        return Hello(True)
    extensions, _ = _vector(body, at, 2)
    name, at = "", 0
    applications: tuple[str, ...] = ()
    while at + 4 <= len(extensions):
        kind = int.from_bytes(extensions[at : at + 2], "big")
        value, at = _vector(extensions, at + 2, 2)
        if kind == _SERVER_NAME:
            name = _server_name(value)
        elif kind == _ALPN:
            applications = _applications(value)
    return Hello(True, name, applications)


def _server_name(value: bytes) -> str:
    names, _ = _vector(value, 0, 2)
    if not names or names[0] != 0:
        return ""
    name, _ = _vector(names, 1, 2)
    return name.decode("ascii", "replace").lower()


def _applications(value: bytes) -> tuple[str, ...]:
    names, _ = _vector(value, 0, 2)
    found: list[str] = []
    at = 0
    while at < len(names):
        name, at = _vector(names, at, 1)
        found.append(name.decode("latin-1"))
    return tuple(found)


def http(data: bytes) -> str | None:
    """`h2c`, `http/1.1`, `http/1.0`, or empty for something else."""
    if PREFACE.startswith(data[: len(PREFACE)]):
        return "h2c" if len(data) >= len(PREFACE) else None
    found = _REQUEST_LINE.match(data)
    if found is not None:
        return f"http/1.{found[1].decode()}"
    line, end, _ = data.partition(b"\n")
    if end or len(data) > MAX_LINE:
        return ""
    method = _METHOD.match(line)
    assert method is not None
    rest = line[method.end() :]
    return None if (not rest or (rest.startswith(b" ") and method.end())) else ""
