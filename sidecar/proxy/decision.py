"""The decision cache: what to do with a request, once per distinct header block.

A client sends the same block again and again, so the raw block is the key (`exact`): a hit is one dict look-up, about 0.1 µs.
Where some headers differ from call to call (`grpc-timeout`, trace ids, tokens), the block is split, not decoded; the decision is found by the
fields that routing reads (`_masked`), and the other fields are forwarded as they came: about 8 µs for ten fields.

Bounds: both dicts hold at most MAX_ENTRIES; a block gets into `exact` only when the same connection sent it twice within its last
`DOORKEEPER` distinct blocks, so a client whose blocks all differ cannot push others out. `reconfigure` drops everything at once.
"""

import re
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Final

from sidecar.http2 import headers
from sidecar.http2.headers import RawField
from sidecar.proxy.cluster import Cluster
from sidecar.proxy.config import Route
from sidecar.proxy.limit import Limit
from sidecar.proxy.route import Request, Router
from sidecar.proxy.status import Status
from sidecar.telemetry.stats import Stats

MAX_ENTRIES: Final = 4096
MAX_CACHED_BLOCK: Final = 8192
"""Bytes; a longer block is decided anew each time."""
DOORKEEPER: Final = 64
_MAX_NAMES: Final = 2048

_PSEUDO: Final = 1
_KEY: Final = 2
_FORWARD: Final = 3
_TIMEOUT: Final = 4
_TE: Final = 5
_FORBIDDEN: Final = 6

_CONNECTION_SPECIFIC: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
_REQUEST_PSEUDO: Final = frozenset((b":method", b":scheme", b":path", b":authority"))
_READ_ALWAYS: Final = frozenset((b"content-type", b"content-length", b"host"))
_TOKEN: Final = re.compile(rb"[a-z0-9!#$%&'*+.^_`|~-]+")
_BAD_VALUE: Final = re.compile(rb"[\0\r\n]")
_UNITS_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


class Malformed(Exception):
    """The request breaks HTTP/2 (RFC 9113 §8.1.1): its stream is reset with PROTOCOL_ERROR."""


@dataclass(slots=True)
class Decision:
    """All that is the same for every call that goes this way."""

    route: Route | None
    cluster: Cluster | None
    """Where to, if there is only one."""
    shares: tuple[tuple[float, Cluster], ...]
    """Otherwise: cumulative share of 1 and cluster."""
    limits: tuple[Limit, ...]
    is_grpc: bool
    content_length: int = -1
    """As declared, -1 if it was not."""
    reply: tuple[Status, str, str] | None = None
    """Answer at once with this status, message and response flag."""

    def draw(self, chance: float) -> Cluster:
        """The cluster for a number between 0 and 1."""
        for share, cluster in self.shares:
            if chance < share:
                return cluster
        return self.shares[-1][1]


class Plan:
    """A decision and the header block to send upstream."""

    __slots__ = ("block", "decision", "timeout_s")

    def __init__(self, decision: Decision, block: bytes, timeout_s: float) -> None:
        self.decision = decision
        self.block = block
        self.timeout_s = timeout_s
        """From `grpc-timeout`, or the route's time-out if that is shorter; 0 is none."""


def parse_timeout(value: bytes) -> float:
    """Seconds of a `grpc-timeout` value (gRPC PROTOCOL-HTTP2); 0 if it is not one."""
    unit = _UNITS_S.get(value[-1:])
    digits = value[:-1]
    if unit is None or not digits.isdigit() or len(digits) > 8:
        return 0.0
    return max(int(digits) * unit, 1e-9)


class DecisionCache:
    """The cache of one listener. Connections keep it; a new configuration refills it."""

    def __init__(self, stats: Stats, chance: Random) -> None:
        self.exact: dict[bytes, Plan] = {}
        self.takes_connect = False
        self._stats = stats
        self._chance = chance
        self._masked: dict[bytes, Decision] = {}
        self._kinds: dict[bytes, int] = {}
        self._checked: dict[bytes, None] = {}
        self._router: Router | None = None
        self._clusters: dict[str, Cluster] = {}
        self._limits: tuple[Limit, ...] = ()
        self.what_is_missing = "no configuration yet"

    def reconfigure(self, router: Router | None, clusters: dict[str, Cluster], limits: tuple[Limit, ...]) -> None:
        """From now on decide by these; what runs goes on as it was decided."""
        self._router = router
        self._clusters = clusters
        self._limits = limits
        self.exact = {}
        self._masked = {}
        self._kinds = {}
        self._checked = {}

    def plan(self, block: bytes, seen: dict[bytes, None]) -> Plan:
        """What to do with a block that `exact` does not hold; `seen` is the connection's doorkeeper.

        Raises HeaderError (the connection's fault) and Malformed (the stream's).
        """
        self._stats.decision_misses += 1
        fields = headers.split(block)
        key, forwarded, timeout = self._sort(fields)
        decision = self._masked.get(key)
        if decision is None:
            decision = self._decide(fields)
            if len(self._masked) >= MAX_ENTRIES:
                self._masked.clear()
            self._masked[key] = decision
        route_timeout = decision.route.timeout_s if decision.route else 0.0
        if not timeout or 0.0 < route_timeout < timeout:
            timeout = route_timeout
        plan = Plan(decision, forwarded, timeout)
        if block in seen:
            if len(self.exact) >= MAX_ENTRIES:
                for old in list(self.exact)[: MAX_ENTRIES // 8]:
                    del self.exact[old]
            self.exact[block] = plan
        elif len(block) <= MAX_CACHED_BLOCK:
            if len(seen) >= DOORKEEPER:
                seen.clear()
            seen[block] = None
        return plan

    def _sort(self, fields: list[RawField]) -> tuple[bytes, bytes, float]:
        """(what the decision depends on, block to forward, seconds of grpc-timeout)."""
        kinds = self._kinds
        checked = self._checked
        key: list[bytes] = []
        forward: list[bytes] = []
        timeout = 0.0
        is_pseudo_over = False
        for field in fields:
            head, whole = field
            kind = kinds.get(head)
            if kind is None:
                kind = self._kind_of(field)
            if kind == _PSEUDO:
                if is_pseudo_over:
                    raise Malformed("pseudo-header after a header")
                key.append(whole)
            else:
                is_pseudo_over = True
                if kind == _KEY:
                    key.append(whole)
                elif kind == _TIMEOUT:
                    timeout = parse_timeout(headers.value_of(field))
                elif kind == _FORBIDDEN:
                    raise Malformed("connection-specific header or bad name")
                elif kind == _TE:
                    if headers.value_of(field) != b"trailers":
                        raise Malformed("te is not trailers")
                elif whole not in checked:
                    self._check(field)
            forward.append(whole)
        return b"".join(key), b"".join(forward), timeout

    def _check(self, field: RawField) -> None:
        """Refuse a value that would break the connection upstream, which other callers share.

        Raises HeaderError for a bad Huffman code, Malformed for NUL, CR or LF (RFC 9113 §8.2.1).
        """
        value = headers.value_of(field)
        if _BAD_VALUE.search(value):
            raise Malformed("NUL, CR or LF in a value")
        if len(self._checked) >= MAX_ENTRIES:
            self._checked.clear()
        if len(field[1]) <= MAX_CACHED_BLOCK:
            self._checked[field[1]] = None

    def _kind_of(self, field: RawField) -> int:
        """How fields with this raw name are treated; remembered."""
        name = headers.name_of(field)
        if name.startswith(b":"):
            kind = _PSEUDO if name in _REQUEST_PSEUDO else _FORBIDDEN
        elif name in _CONNECTION_SPECIFIC or not _TOKEN.fullmatch(name):
            kind = _FORBIDDEN
        elif name == b"grpc-timeout":
            kind = _TIMEOUT
        elif name == b"te":
            kind = _TE
        elif name in _READ_ALWAYS or (self._router is not None and name in self._router.header_names):
            kind = _KEY
        else:
            kind = _FORWARD
        # An indexed field is name and value in one: its kind is that of the name, so it may be remembered too.
        if len(self._kinds) >= _MAX_NAMES:
            self._kinds.clear()
        self._kinds[field[0]] = kind
        return kind

    def _decide(self, fields: list[RawField]) -> Decision:
        """Decode and route: once per distinct set of the fields that matter."""
        pseudo: dict[bytes, bytes] = {}
        values: dict[bytes, bytes] = {}
        for field in fields:
            name = headers.name_of(field)
            value = headers.value_of(field)
            if name.startswith(b":"):
                if name in pseudo:
                    raise Malformed("pseudo-header given twice")
                pseudo[name] = value
            elif name in values:
                values[name] += b"," + value
            else:
                values[name] = value
        method = pseudo.get(b":method")
        if method is None or (method != b"CONNECT" and not (pseudo.get(b":path") and b":scheme" in pseudo)):
            raise Malformed("a pseudo-header is missing")
        length = values.get(b"content-length", b"")
        if length and not length.isdigit():
            raise Malformed("content-length is not a number")
        path = pseudo.get(b":path", b"").partition(b"?")[0]
        authority = pseudo.get(b":authority") or values.get(b"host", b"")
        decision = self._route(Request(method, path, authority, values))
        decision.is_grpc = values.get(b"content-type", b"").startswith(b"application/grpc")
        decision.content_length = int(length) if length else -1
        return decision

    def _refuse(self, code: Status, text: str, flag: str) -> Decision:
        return Decision(None, None, (), (), False, reply=(code, f"{text} (flag {flag})", flag))

    def _route(self, request: Request) -> Decision:
        if self._router is None:
            return self._refuse(Status.UNAVAILABLE, self.what_is_missing, "NR")
        found = self._router.find(request)
        if found is None:
            authority, path = request.authority.decode("latin-1"), request.path.decode("latin-1")
            if self._router.host(request.authority) is None:
                return self._refuse(Status.UNAVAILABLE, f'no service named "{authority}" in the mesh', "NR")
            return self._refuse(Status.UNIMPLEMENTED, f'no route for path "{path}" of "{authority}"', "NR")
        _, route = found
        missing = [name for name, _ in route.clusters if name not in self._clusters]
        if missing:
            return self._refuse(Status.UNAVAILABLE, f'cluster "{missing[0]}" is not known here', "NC")
        if len(route.clusters) == 1:
            return Decision(route, self._clusters[route.clusters[0][0]], (), self._limits, False)
        total = sum(weight for _, weight in route.clusters)
        sums = accumulate(weight for _, weight in route.clusters)
        shares = tuple((at / total, self._clusters[name]) for at, (name, _) in zip(sums, route.clusters, strict=True))
        return Decision(route, None, shares, self._limits, False)
