"""gRPC statuses: names, what an HTTP/2 error or an HTTP status means as one, and answers that the mesh itself gives.

Sources: gRPC's PROTOCOL-HTTP2 (errors), http-grpc-status-mapping, Envoy's response flags.
"""

from enum import IntEnum
from typing import Final
from urllib.parse import quote_from_bytes

from sidecar.http2 import headers
from sidecar.http2.frames import ErrorCode


class Status(IntEnum):
    """The canonical gRPC status codes."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


NAMES: Final = tuple(status.name for status in Status)
"""By code."""
NOT_GRPC: Final = 17
"""Index of answers without a grpc-status in the counters."""

HTTP_OF_FLAG: Final = {
    "UF": 503,
    "UC": 503,
    "UR": 503,
    "UO": 503,
    "UH": 503,
    "NC": 503,
    "UPE": 502,
    "UT": 504,
    "RL": 429,
    "RBAC": 403,
    "SI": 504,
    "OM": 503,
}
"""The HTTP status of an answer of the mesh's own, by Envoy's response flag."""
_STATUS_OF_HTTP: Final = {
    400: Status.INTERNAL,
    401: Status.UNAUTHENTICATED,
    403: Status.PERMISSION_DENIED,
    404: Status.UNIMPLEMENTED,
    429: Status.UNAVAILABLE,
    502: Status.UNAVAILABLE,
    503: Status.UNAVAILABLE,
    504: Status.UNAVAILABLE,
}
_STATUS_OF_RESET: Final = {
    ErrorCode.REFUSED_STREAM: Status.UNAVAILABLE,
    ErrorCode.CANCEL: Status.CANCELLED,
    ErrorCode.ENHANCE_YOUR_CALM: Status.RESOURCE_EXHAUSTED,
    ErrorCode.INADEQUATE_SECURITY: Status.PERMISSION_DENIED,
}


def of_http(status: int) -> Status:
    """What an HTTP status means when there is no grpc-status."""
    return _STATUS_OF_HTTP.get(status, Status.UNKNOWN)


def of_reset(code: int) -> Status:
    """What a RST_STREAM code means."""
    try:
        return _STATUS_OF_RESET.get(ErrorCode(code), Status.INTERNAL)
    except ValueError:
        return Status.INTERNAL


def _marks(flag: str) -> list[tuple[bytes, bytes]]:
    """Tells a proxy on the way that another try would only add to the load (Envoy: router.v3)."""
    return [(b"x-envoy-overloaded", b"true")] if flag == "UO" else []


def status_field(http_status: int) -> bytes:
    """The first field of every answer."""
    return headers.encode_field(b":status", b"%d" % http_status)


def trailers_only(status: Status, message: str, flag: str) -> bytes:
    """What answers a gRPC call with an error, behind `:status`; goes with END_STREAM."""
    escaped = quote_from_bytes(message.encode(), safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~").encode()
    return headers.encode(
        [
            *_marks(flag),
            (b"content-type", b"application/grpc"),
            (b"grpc-status", b"%d" % status),
            (b"grpc-message", escaped),
        ]
    )


def plain_headers(length: int, flag: str) -> bytes:
    """The headers, behind `:status`, of an answer to a call that is not gRPC; a text of `length` bytes follows."""
    return headers.encode(
        [
            *_marks(flag),
            (b"content-type", b"text/plain"),
            (b"content-length", b"%d" % length),
        ]
    )
