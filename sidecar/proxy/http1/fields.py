"""Header fields between HTTP/1.1 and HTTP/2. Pure."""

from collections.abc import Iterable
from typing import Final

from sidecar.proxy.http1.pipe import UPGRADE

Fields = list[tuple[bytes, bytes]]

HOP_BY_HOP: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"te", b"http2-settings")
)
"""Headers that speak of one connection (RFC 9110 §7.6.1)."""


def without_hops(fields: Iterable[tuple[bytes, bytes]]) -> Fields:
    """The fields that go on to the next hop: not those of this connection, nor those that its `Connection` names."""
    kept = list(fields)
    named = {word.strip().lower() for name, value in kept if name == b"connection" for word in value.split(b",")}
    return [(name, value) for name, value in kept if name not in HOP_BY_HOP and name not in named and name != UPGRADE]


def target(raw: bytes, host: bytes) -> tuple[bytes, bytes, bytes]:
    """Scheme, authority and path of a request's target (RFC 9112 §3.2): absolute form goes before the `Host` header."""
    for scheme in (b"http", b"https"):
        if raw.lower().startswith(scheme + b"://"):
            authority, slash, path = raw[len(scheme) + 3 :].partition(b"/")
            return scheme, authority, (slash + path) or b"/"
    return b"http", host, raw


def wanted_upgrade(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The protocol that a client wants to go over to, lower case; empty if it does not."""
    found = dict(fields)
    words = [word.strip().lower() for word in found.get(b"connection", b"").split(b",")]
    return found.get(b"upgrade", b"").lower() if b"upgrade" in words else b""
