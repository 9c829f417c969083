"""Copies of calls for other clusters (Envoy: route.v3.RouteAction.RequestMirrorPolicy): what they answer is dropped."""

from typing import TYPE_CHECKING, Final

from sidecar.http2 import headers
from sidecar.proxy.cluster import Cluster

if TYPE_CHECKING:
    from sidecar.proxy.downstream import Downstream

MAX_COPIED: Final = 1024 * 1024
"""Bytes of a request that are kept to be copied; a longer one is not copied, and that is counted."""


class MirrorTarget:
    """Where a share of a route's calls is copied to."""

    def __init__(self, cluster: Cluster, share: float, keeps_host: bool, timeout_s: float) -> None:
        self.cluster = cluster
        self.share = share
        self.keeps_host = keeps_host
        """False: the authority gets `-shadow`, so that whoever reads logs sees what is real."""
        self.timeout_s = timeout_s


class Copy:
    """A request as it goes by, until it is whole; then it is sent again elsewhere."""

    def __init__(self, down: "Downstream", targets: list[MirrorTarget], block: bytes, body: list[bytes]) -> None:
        self._down = down
        self._targets = targets
        self._block = block
        self._body = body
        self._size = sum(map(len, body))

    def add(self, payload: bytes) -> None:
        """More of the request came."""
        self._size += len(payload)
        if self._size <= MAX_COPIED:
            self._body.append(payload)
        else:
            self._body = []

    def send(self, trailers: bytes | None) -> None:
        """The request is whole."""
        stats = self._down.worker.stats
        for target in self._targets:
            if self._size > MAX_COPIED:
                stats.count_limit("mirror_request_size")
                continue
            block = self._block if target.keeps_host else shadow(self._block)
            if not target.cluster.mirror(self._down, target.timeout_s).send(block, self._body, trailers):
                stats.count_limit("mirror_requests")


def shadow(block: bytes) -> bytes:
    """The block with an authority that says that it is a copy: `-shadow` behind the host (as Envoy)."""
    fields: list[bytes] = []
    for field in headers.split(block):
        if headers.name_of(field) == b":authority":
            fields.append(headers.encode_field(b":authority", _shadowed(headers.value_of(field))))
        else:
            fields.append(field[1])
    return b"".join(fields)


def _shadowed(authority: bytes) -> bytes:
    host, mark, port = authority.rpartition(b":")
    if mark and port.isdigit():
        return host + b"-shadow:" + port
    return authority + b"-shadow"
