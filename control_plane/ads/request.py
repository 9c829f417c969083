"""What nodes ask, read from its bytes.

State of the world repeats all names in each request: an ACK of one endpoint among a thousand is 30 KiB, and nodes that ask for the same say
the same. What was read before is found by its bytes, and equal sets of names are one object that nodes share.
"""

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.message import DecodeError

MAX_NAMES: Final = 100_000
"""Names in one request."""
MAX_REASON: Final = 4096
"""Characters of a node's own words that are kept."""
MAX_REMEMBERED_BYTES: Final = 8 * 1024 * 1024
"""Of requests that are found by their bytes; above that it begins anew."""
_MAX_NONCE: Final = 20
"""Characters; ours are numbers."""
_VERSION_TAG, _NONCE_TAG = b"\x0a", b"\x2a"


class BadRequest(Exception):
    """A request that breaks the protocol; the stream ends with this text."""


class Request(NamedTuple):
    """A DiscoveryRequest."""

    type_url: str
    names: frozenset[str]
    nonce: str
    fault: str | None = None
    """The reason of a NACK."""


class DeltaRequest(NamedTuple):
    """A DeltaDiscoveryRequest."""

    type_url: str
    subscribe: frozenset[str]
    unsubscribe: frozenset[str]
    initial: Mapping[str, str]
    """The versions of what the node has from an earlier stream."""
    nonce: str
    fault: str | None = None
    """The reason of a NACK."""


# -- state of the world ---------------------------------------------------------------------------------


def read(data: bytes) -> Request:
    """From a DiscoveryRequest. Raises BadRequest."""
    section, nonce = _without_ends(data)
    if section is not None:
        try:
            return _remembered(section)._replace(nonce=nonce)
        except DecodeError:
            pass  # what looked like a nonce was none
    return _request(_parsed(discovery_pb2.DiscoveryRequest, data))


def _without_ends(data: bytes) -> tuple[bytes | None, str]:
    """What is between version and nonce, which differ from request to request, and the nonce.

    A message is its fields, one after the other: if what is left can be read by itself, the whole is the three together.
    """
    start = 2 + data[1] if data[:1] == _VERSION_TAG and len(data) > 1 and data[1] < 0x80 else 0
    end = data.rfind(_NONCE_TAG, max(start, len(data) - 2 - _MAX_NONCE))
    if end < 0 or end + 1 >= len(data) or end + 2 + data[end + 1] != len(data) or not data[end:].isascii():
        return None, ""
    return data[start:end], data[end + 2 :].decode("ascii")


class _Memory:
    """Requests by their bytes."""

    def __init__(self) -> None:
        self.known: dict[bytes, Request] = {}
        self.bytes = 0


_memory: Final = _Memory()


def _remembered(section: bytes) -> Request:
    found = _memory.known.get(section)
    if found is None:
        found = _request(discovery_pb2.DiscoveryRequest.FromString(section))
        if _memory.bytes + len(section) > MAX_REMEMBERED_BYTES:
            _memory.known, _memory.bytes = {}, 0
        _memory.known[section] = found
        _memory.bytes += len(section)
    return found


def _request(message: Any) -> Request:
    _check(message.resource_names)
    return Request(message.type_url, shared(frozenset(message.resource_names)), message.response_nonce, _fault(message))


# -- delta ----------------------------------------------------------------------------------------------


def read_delta(data: bytes) -> DeltaRequest:
    """From a DeltaDiscoveryRequest. Raises BadRequest."""
    message = _parsed(discovery_pb2.DeltaDiscoveryRequest, data)
    for names in (
        message.resource_names_subscribe,
        message.resource_names_unsubscribe,
        message.initial_resource_versions,
    ):
        _check(names)
    return DeltaRequest(
        message.type_url,
        shared(frozenset(message.resource_names_subscribe)),
        frozenset(message.resource_names_unsubscribe),
        dict(message.initial_resource_versions),
        message.response_nonce,
        _fault(message),
    )


# -- both -----------------------------------------------------------------------------------------------


@lru_cache(1024)
def shared(names: frozenset[str]) -> frozenset[str]:
    """The one object that stands for all equal sets of names."""
    return names


def _parsed(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError:
        raise BadRequest(f"{len(data)} bytes that are no {kind.DESCRIPTOR.name}") from None


def _check(names: Collection[str]) -> None:
    if len(names) > MAX_NAMES:
        raise BadRequest(f"{len(names)} names; at most {MAX_NAMES} are taken")


def _fault(message: Any) -> str | None:
    return str(message.error_detail.message[:MAX_REASON]) if message.HasField("error_detail") else None
