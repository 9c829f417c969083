"""Which names and values a field may have (RFC 9113 §8.2): what would break a connection that others share is not handed on."""

import re
from typing import Final

CONNECTION_SPECIFIC: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
TOKEN: Final = re.compile(rb"[a-z0-9!#$%&'*+.^_`|~-]+")
"""A field name, which is lower case in HTTP/2."""
BAD_VALUE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
"""Control characters other than tab: the RFC forbids three of them, Envoy all."""


class Malformed(Exception):
    """The message breaks HTTP/2 (RFC 9113 §8.1.1): its stream is reset with PROTOCOL_ERROR."""


def check(name: bytes, value: bytes) -> None:
    """A field that is no pseudo-header. Raises Malformed."""
    if name in CONNECTION_SPECIFIC or not TOKEN.fullmatch(name):
        raise Malformed("connection-specific header or bad name")
    if BAD_VALUE.search(value):
        raise Malformed("control character in a value")
