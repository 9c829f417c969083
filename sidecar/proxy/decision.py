"""The decision cache: what to do with a request, once per distinct header block.

A client sends the same block again and again, so the raw block is the key (`exact`): a hit is one dict look-up, about 0.1 µs.
Where some headers differ from call to call (`grpc-timeout`, trace ids, tokens), the block is split, not decoded; the decision is found by the
fields that routing reads (`_masked`), and the other fields are forwarded as they came: about 8 µs for ten fields.

Bounds: both dicts hold at most MAX_ENTRIES entries and MAX_BYTES bytes of keys; a block gets into `exact` only when the same connection
sent it twice within its last `DOORKEEPER` distinct blocks, so a client whose blocks all differ cannot push others out. `reconfigure` drops everything at once.
"""

import re
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Final

from sidecar.http2 import fields as field_rules
from sidecar.http2 import headers
from sidecar.http2.fields import Malformed
from sidecar.http2.headers import RawField, TooLarge
from sidecar.proxy.attempts import Retry
from sidecar.proxy.cluster import Cluster
from sidecar.proxy.config import Redirect, Route, VirtualHost
from sidecar.proxy.copies import MirrorTarget
from sidecar.proxy.direct import DirectAnswer, redirected
from sidecar.proxy.edit import RequestEdit, ResponseEdit, edits
from sidecar.proxy.filters import FilterBook
from sidecar.proxy.hash_policy import Keyed
from sidecar.proxy.route import Request, Router, is_grpc, may_retry
from sidecar.proxy.status import Status
from sidecar.proxy.step import Step
from sidecar.telemetry.stats import Stats

MAX_ENTRIES: Final = 4096
MAX_BYTES: Final = 8 * 1024 * 1024
MAX_CACHED_BLOCK: Final = 8192
"""Bytes; a longer block is decided anew each time."""
MAX_REMEMBERED_FIELD: Final = 1024
"""Bytes; a longer name is read, a longer value is checked anew each time."""
DOORKEEPER: Final = 64
MAX_NAMES: Final = 2048
MAX_REPLAY: Final = 64 * 1024
"""Bytes of a request that are kept for another try, where the route says nothing; a longer request is tried once."""
MAX_LENGTH_DIGITS: Final = 18
"""Of a content-length; what is longer is no length that anybody could send."""

_PSEUDO: Final = 1
_AUTHORITY: Final = 2
_KEY: Final = 3
_FORWARD: Final = 4
_TIMEOUT: Final = 5
_TE: Final = 6
_HOST: Final = 7
_FORBIDDEN: Final = 8
_DROP: Final = 9

_REQUEST_PSEUDO: Final = frozenset((b":method", b":scheme", b":path"))
_ONE_VALUE: Final = (
    b"content-type",
    b"grpc-timeout",
    b"user-agent",
    b"via",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-port",
    b"x-forwarded-proto",
    b"x-request-id",
)
"""Headers whose values are read as one, with commas, however often they are given (as Envoy reads them)."""
_READ_ALWAYS: Final = frozenset((b"content-type", b"content-length"))
_AUTHORITY_FORM: Final = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]+")
"""Host and port (RFC 3986 §3.2); no user."""
_PATH_FORM: Final = re.compile(rb"/[^\x00-\x20\x7f]*")
_CLIENT_CERTIFICATE: Final = b"x-forwarded-client-cert"
"""What a client says of its own certificate is neither read nor forwarded (Envoy: forward_client_cert_details SANITIZE, the default)."""
_ENVOYS_OWN: Final = frozenset(
    b"x-envoy-" + name
    for name in (
        b"expected-rq-timeout-ms",
        b"force-trace",
        b"hedge-on-per-try-timeout",
        b"ip-tags",
        b"max-retries",
        b"original-url",
        b"retriable-header-names",
        b"retriable-status-codes",
        b"retry-grpc-on",
        b"retry-on",
        b"upstream-alt-stat-name",
        b"upstream-rq-per-try-timeout-ms",
        b"upstream-rq-timeout-alt-response",
        b"upstream-rq-timeout-ms",
    )
)
"""Wishes that a proxy hears from those it trusts: nobody is told to be (Envoy: internal_address_config), so they are taken off."""
_UNITS_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


@dataclass(slots=True)
class Decision:
    """All that is the same for every call that goes this way."""

    route: Route | None
    cluster: Cluster | None
    """Where to, if there is only one."""
    shares: tuple[tuple[float, Cluster | None], ...]
    """Otherwise: cumulative share of 1 and cluster, None for one that is not there."""
    steps: tuple[Step, ...]
    """What is decided per call, in order, before a cluster is chosen."""
    is_grpc: bool
    content_length: int = -1
    """As declared, -1 if it was not."""
    is_head: bool = False
    """The answer to HEAD has no body."""
    reply: tuple[Status, str, str, int] | None = None
    """Answer with this status, message, response flag, and HTTP status for what is not gRPC, once the steps let the call pass."""
    has_watchers: bool = False
    """True if a step is to be told of a call's end."""
    edits_answers: bool = False
    """True if a step is to see the heads of answers."""
    retry: Retry | None = None
    """When a call is tried again; None is never."""
    is_urgent: bool = False
    """Counts against the cluster's limits for priority HIGH."""
    replay_limit: int = 0
    """Bytes of a request that are kept for that."""
    direct: DirectAnswer | None = None
    """The route's own answer, once the steps let the call pass."""
    request_edit: RequestEdit | None = None
    response_edit: ResponseEdit | None = None
    mirrors: tuple[MirrorTarget, ...] = ()

    def draw(self, chance: float) -> int:
        """The place in `shares` for a number between 0 and 1."""
        for place, (share, _) in enumerate(self.shares):
            if chance < share:
                return place
        return len(self.shares) - 1


class Plan:
    """A decision and the header block to send upstream."""

    __slots__ = ("block", "decision", "keyed", "notes", "response_timeout_s", "timeout_s", "values")

    def __init__(
        self, decision: Decision, block: bytes, timeout_s: float, values: dict[bytes, list[bytes]] | None = None
    ) -> None:
        self.decision = decision
        self.block = block
        self.timeout_s = timeout_s
        """Of the whole call: `grpc-timeout`; 0 is none."""
        self.response_timeout_s = decision.route.timeout_s if decision.route else 0.0
        """From the end of the request to the end of the response: the route's; 0 is none."""
        self.values = values
        """Of the headers that steps read, by lower-case name; None if there are none."""
        self.notes: dict[object, object] | None = None
        """What steps remember of calls with this block, by step."""
        route = decision.route
        self.keyed = Keyed(route, values or {}) if route is not None and (route.hash_policies or route.labels) else None
        """What is asked of balancers, None if nothing is."""

    def edited(self, block: bytes, values: dict[bytes, list[bytes]]) -> "Plan":
        """The same with another block to send, as a step wants it."""
        return Plan(self.decision, block, self.timeout_s, values)

    def after(self, seconds: float) -> "Plan":
        """The same for a call that was held for some time: its `grpc-timeout` is what is left."""
        if all(headers.name_of(field) != b"grpc-timeout" for field in headers.split(self.block)):
            return self
        left = write_timeout(self.timeout_s - seconds)
        return Plan(self.decision, _with_timeout(self.block, left), self.timeout_s, self.values)


def _bounds_calls(route: Route) -> bool:
    """True if the route bounds how long a call may take: the upstream is told so (Envoy: route.v3.RouteAction.max_stream_duration)."""
    return route.max_duration_s is not None or route.grpc_timeout_max_s is not None


def _with_timeout(block: bytes, value: bytes) -> bytes:
    """The block with this `grpc-timeout`."""
    fields = [field[1] for field in headers.split(block) if headers.name_of(field) != b"grpc-timeout"]
    return b"".join([*fields, headers.encode_field(b"grpc-timeout", value)])


def write_timeout(seconds: float) -> bytes:
    """A `grpc-timeout` value, rounded down, in the finest unit that has room for it (gRPC PROTOCOL-HTTP2: 8 digits)."""
    for unit, size in ((b"u", 1e-6), (b"m", 1e-3)):
        count = int(seconds / size)
        if count < 100_000_000:
            return b"%d%s" % (max(count, 1), unit)
    return b"%dS" % min(int(seconds), 99_999_999)


def parse_timeout(value: bytes) -> float:
    """Seconds of a `grpc-timeout` value (gRPC PROTOCOL-HTTP2); 0 if it is not one."""
    unit = _UNITS_S.get(value[-1:])
    digits = value[:-1]
    if unit is None or not digits.isdigit() or len(digits) > 8:
        return 0.0
    return max(int(digits) * unit, 1e-9)


def _refuse(code: Status, text: str, flag: str, http_status: int) -> Decision:
    return Decision(None, None, (), (), False, reply=(code, f"{text} (flag {flag})", flag, http_status))


def _refuse_large(error: TooLarge) -> Decision:
    decision = _refuse(Status.RESOURCE_EXHAUSTED, f"the request has {error}", "DPE", 431)
    decision.is_grpc = any(
        headers.name_of(field) == b"content-type" and is_grpc(headers.value_of(field)) for field in error.fields
    )
    return decision


def _to_answer(route: Route, request: Request) -> Decision:
    """The decision for a route that answers itself."""
    if isinstance(route.answer, Redirect):
        direct = redirected(route.answer, route.match, request)
    else:
        assert route.answer is not None
        direct = DirectAnswer(route.answer.status, route.answer.body)
    return Decision(route, None, (), (), False, direct=direct)


def _check_request_line(method: bytes, path: bytes, authority: bytes, *, has_scheme: bool) -> None:
    """Raises Malformed for pseudo-headers that are missing or have a form that they may not have (RFC 9113 §8.3.1)."""
    if not field_rules.TOKEN.fullmatch(method.lower()):
        raise Malformed("no method")
    if not _AUTHORITY_FORM.fullmatch(authority):
        raise Malformed("the authority is not a host with a port or without")
    if method == b"CONNECT":
        return
    if not has_scheme:
        raise Malformed("no scheme")
    if not _PATH_FORM.fullmatch(path) and not (path == b"*" and method == b"OPTIONS"):
        raise Malformed("the path is no path")


def _content_length(values: dict[bytes, list[bytes]]) -> bytes:
    return b",".join(values.get(b"content-length", []))


def _read(fields: list[RawField]) -> Request:
    """Decode. Raises Malformed."""
    values: dict[bytes, list[bytes]] = {}
    for field in fields:
        name = headers.name_of(field)
        value = headers.value_of(field)
        if field_rules.BAD_VALUE.search(value):
            raise Malformed("control character in a value")
        if name == _CLIENT_CERTIFICATE:
            continue
        known = values.setdefault(name, [])
        if known and name.startswith(b":"):
            raise Malformed("pseudo-header given twice")
        known.append(value)
    for name in _ONE_VALUE:
        if len(values.get(name, ())) > 1:
            values[name] = [b",".join(values[name])]
    values.setdefault(b":authority", values.get(b"host", []))
    values[b"host"] = values[b":authority"]
    [authority] = values[b":authority"]
    [method] = values.get(b":method", [b""])
    [path] = values.get(b":path", [b""])
    length = _content_length(values)
    _check_request_line(method, path, authority, has_scheme=b":scheme" in values)
    if length and not (length.isdigit() and len(length) <= MAX_LENGTH_DIGITS):
        raise Malformed("content-length is not a length")
    return Request(method, path.partition(b"?")[0], authority, values)


class DecisionCache:
    """The cache of one listener. Connections keep it; a new configuration refills it."""

    def __init__(self, stats: Stats, chance: Random) -> None:
        self.exact: dict[bytes, Plan] = {}
        self.max_duration_s = 0.0
        """Of a call, where its route says nothing; 0 is for ever."""
        self.max_fields = headers.MAX_FIELDS
        self.max_bytes = headers.MAX_BYTES
        """Of a request's headers; more is refused."""
        self._stats = stats
        self._chance = chance
        self._exact_bytes = 0
        self._masked: dict[bytes, Decision] = {}
        self._masked_bytes = 0
        self._kinds: dict[bytes, int] = {}
        self._checked: dict[bytes, None] = {}
        self._router: Router | None = None
        self._routes_by_timeout = False
        self._clusters: dict[str, Cluster] = {}
        self._filters: FilterBook | None = None
        self._names_read: frozenset[bytes] = frozenset()
        self._value_names: frozenset[bytes] = frozenset()
        self._edits: dict[int, tuple[RequestEdit | None, ResponseEdit | None]] = {}
        """By identity of the route, which the router holds."""
        self.what_is_missing = "no configuration yet"

    def reconfigure(self, router: Router | None, clusters: dict[str, Cluster], filters: FilterBook | None) -> None:
        """From now on decide by these; what runs goes on as it was decided."""
        self._router = router
        self._names_read = (router.header_names if router is not None else frozenset()) | (
            filters.header_names if filters is not None else frozenset()
        )
        self._value_names = (router.hash_names if router is not None else frozenset()) | (
            filters.value_names if filters is not None else frozenset()
        )
        self._routes_by_timeout = b"grpc-timeout" in self._names_read
        self._clusters = clusters
        self._filters = filters
        self._edits = {}
        self.exact = {}
        self._exact_bytes = 0
        self._masked = {}
        self._masked_bytes = 0
        self._kinds = {}
        self._checked = {}

    def plan(self, block: bytes, seen: dict[int, None]) -> Plan:
        """What to do with a block that `exact` does not hold; `seen` is the connection's doorkeeper: hashes of its last blocks.

        Raises HeaderError (the connection's fault) and Malformed (the stream's).
        """
        self._stats.decision_misses += 1
        try:
            fields = headers.split(block, self.max_fields, self.max_bytes)
        except TooLarge as error:
            return Plan(_refuse_large(error), b"", 0.0)
        key, forwarded, timeout = self._sort(fields)
        decision = self._masked.get(key)
        if decision is None:
            decision = self._decide(_read(fields))
            self._remember(key, decision)
        plan = self._made(decision, fields, forwarded, timeout)
        if len(block) <= MAX_CACHED_BLOCK:
            number = hash(block)
            if number in seen:
                self._admit(block, plan)
            else:
                if len(seen) >= DOORKEEPER:
                    seen.clear()
                seen[number] = None
        return plan

    def _made(self, decision: Decision, fields: list[RawField], forwarded: bytes, timeout: float) -> Plan:
        route = decision.route
        longest = self._longest(route, timeout)
        if longest and decision.is_grpc and route is not None and _bounds_calls(route):
            forwarded = _with_timeout(forwarded, b"%dm" % max(int(longest * 1000), 1))
        if decision.request_edit is not None:
            forwarded = decision.request_edit.apply(forwarded)
        return Plan(decision, forwarded, longest, self._values(fields) if self._value_names else None)

    def foresee(self, block: bytes) -> tuple[Request, Plan]:
        """What `plan` would say of a block, and how it is read; nothing is counted or remembered. Raises as `plan`, and TooLarge."""
        fields = headers.split(block)
        _, forwarded, timeout = self._sort(fields)
        request = _read(fields)
        return request, self._made(self._decide(request), fields, forwarded, timeout)

    def _values(self, fields: list[RawField]) -> dict[bytes, list[bytes]] | None:
        found: dict[bytes, list[bytes]] = {}
        for field in fields:
            name = headers.name_of(field)
            if name in self._value_names:
                found.setdefault(name, []).append(headers.value_of(field))
        return found or None

    def _remember(self, key: bytes, decision: Decision) -> None:
        if len(key) > MAX_CACHED_BLOCK:
            return
        if len(self._masked) >= MAX_ENTRIES or self._masked_bytes > MAX_BYTES:
            self._masked.clear()
            self._masked_bytes = 0
        self._masked[key] = decision
        self._masked_bytes += len(key)

    def _admit(self, block: bytes, plan: Plan) -> None:
        if len(self.exact) >= MAX_ENTRIES or self._exact_bytes > MAX_BYTES:
            for old in list(self.exact)[: max(1, len(self.exact) // 8)]:
                del self.exact[old]
                self._exact_bytes -= len(old)
        self.exact[block] = plan
        self._exact_bytes += len(block)

    def _longest(self, route: Route | None, grpc_timeout_s: float) -> float:
        """Seconds that the whole call may take; 0 is for ever."""
        if route is None:
            return grpc_timeout_s
        most = route.grpc_timeout_max_s
        if grpc_timeout_s and most is not None:
            return min(grpc_timeout_s, most) if most else grpc_timeout_s
        duration = self.max_duration_s if route.max_duration_s is None else route.max_duration_s
        return min(grpc_timeout_s or duration, duration or grpc_timeout_s)

    def _sort(self, fields: list[RawField]) -> tuple[bytes, bytes, float]:
        """(what the decision depends on, block to forward, seconds of grpc-timeout)."""
        kinds = self._kinds
        checked = self._checked
        key: list[bytes] = []
        forward: list[bytes] = []
        timeout = 0.0
        is_pseudo_over = False
        has_authority = False
        hosts: list[RawField] = []
        for field in fields:
            head, whole = field
            kind = kinds.get(head)
            if kind is None:
                kind = self._kind_of(field)
            if kind <= _AUTHORITY:
                if is_pseudo_over:
                    raise Malformed("pseudo-header after a header")
                if kind == _AUTHORITY:
                    has_authority = True
                key.append(whole)
            else:
                is_pseudo_over = True
                if kind == _KEY:
                    key.append(whole)
                elif kind == _TIMEOUT:
                    timeout = parse_timeout(headers.value_of(field))
                    if not timeout:
                        self._check(field)
                    if self._routes_by_timeout:
                        key.append(whole)
                elif kind == _DROP:
                    continue
                elif kind == _FORBIDDEN:
                    raise Malformed("connection-specific header or bad name")
                elif kind == _TE:
                    if headers.value_of(field) != b"trailers":
                        raise Malformed("te is not trailers")
                    if whole in forward:
                        continue
                    key.append(whole)
                elif kind == _HOST:
                    self._check(field)
                    hosts.append(field)  # the authority says it already, or is made of it
                    continue
                elif whole not in checked:
                    self._check(field)
            forward.append(whole)
        if not has_authority:
            if len(hosts) != 1:
                raise Malformed("no authority")
            authority = headers.encode_field(b":authority", headers.value_of(hosts[0]))
            key.append(authority)
            forward.insert(0, authority)
        return b"".join(key), b"".join(forward), timeout

    def _check(self, field: RawField) -> None:
        """Refuse a value that would break the connection upstream, which other callers share.

        Raises HeaderError for a bad Huffman code, Malformed for control characters (RFC 9113 §8.2.1).
        """
        if field_rules.BAD_VALUE.search(headers.value_of(field)):
            raise Malformed("control character in a value")
        if len(self._checked) >= MAX_ENTRIES:
            self._checked.clear()
        if len(field[1]) <= MAX_REMEMBERED_FIELD:
            self._checked[field[1]] = None

    def _kind_of(self, field: RawField) -> int:
        """How fields with this raw name are treated; remembered."""
        name = headers.name_of(field)
        if name == b":authority":
            kind = _AUTHORITY
        elif name.startswith(b":"):
            kind = _PSEUDO if name in _REQUEST_PSEUDO else _FORBIDDEN
        elif name in field_rules.CONNECTION_SPECIFIC or not field_rules.TOKEN.fullmatch(name):
            kind = _FORBIDDEN
        elif name == b"host":
            kind = _HOST
        elif name in _ENVOYS_OWN or name == _CLIENT_CERTIFICATE:
            kind = _DROP
        elif name == b"grpc-timeout":
            kind = _TIMEOUT
        elif name == b"te":
            kind = _TE
        elif name in _READ_ALWAYS or name in self._names_read:
            kind = _KEY
        else:
            kind = _FORWARD
        # An indexed field is name and value in one: its kind is that of the name, so it may be remembered too.
        if len(self._kinds) >= MAX_NAMES:
            self._kinds.clear()
        if len(field[0]) <= MAX_REMEMBERED_FIELD:
            self._kinds[field[0]] = kind
        return kind

    def _decide(self, request: Request) -> Decision:
        """Route: once per distinct set of the fields that matter."""
        values = request.headers
        if b"#" in values.get(b":path", [b""])[0]:
            decision = _refuse(Status.INTERNAL, "a path has no fragment", "DPE", 400)
        else:
            decision = self._route(request)
        length = _content_length(values)
        decision.is_grpc = is_grpc(values.get(b"content-type", [b""])[0])
        decision.is_head = request.method == b"HEAD"
        decision.content_length = int(length) if length else -1
        return decision

    def _route(self, request: Request) -> Decision:
        if self._router is None:
            return _refuse(Status.UNAVAILABLE, self.what_is_missing, "NR", 404)
        found = self._router.find(request)
        host, route = found if found is not None else (None, None)
        if route is None or host is None:
            decision = self._no_route(request)
        else:
            decision = self._to_clusters(route) if route.answer is None else _to_answer(route, request)
            decision.request_edit, decision.response_edit = self._edits_of(host, route)
            if route.mirrors:
                decision.mirrors = self._mirrors_of(route)
            decision.is_urgent = route.is_urgent
            if route.retry is not None and may_retry(route.retry, request):
                decision.retry = Retry(route.retry)
                decision.replay_limit = MAX_REPLAY if route.replay_limit is None else route.replay_limit
        if self._filters is not None:
            decision.steps = self._filters.of(host, route, request)
            decision.has_watchers = any(step.watches_end for step in decision.steps)
            decision.edits_answers = any(step.edits_answer for step in decision.steps)
        return decision

    def _mirrors_of(self, route: Route) -> tuple[MirrorTarget, ...]:
        """Where calls of a route are copied to; a cluster that is not there gets nothing (as in Envoy)."""
        found = []
        for policy in route.mirrors:
            cluster = self._clusters.get(policy.cluster)
            if cluster is not None:
                found.append(MirrorTarget(cluster, policy.share, policy.keeps_host, route.timeout_s))
        return tuple(found)

    def _edits_of(self, host: VirtualHost, route: Route) -> tuple[RequestEdit | None, ResponseEdit | None]:
        """What a route changes; made once for all its decisions."""
        known = self._edits.get(id(route))
        if known is None:
            assert self._router is not None
            known = self._edits[id(route)] = edits(self._router.table, host, route)
        return known

    def _to_clusters(self, route: Route) -> Decision:
        clusters = [self._clusters.get(name) for name, _ in route.clusters]
        if all(cluster is None for cluster in clusters):
            return _refuse(Status.UNAVAILABLE, f'cluster "{route.clusters[0][0]}" is not known here', "NC", 503)
        if len(clusters) == 1:
            return Decision(route, clusters[0], (), (), False)
        total = sum(weight for _, weight in route.clusters)
        sums = accumulate(weight for _, weight in route.clusters)
        shares = tuple((at / total, cluster) for at, cluster in zip(sums, clusters, strict=True))
        return Decision(route, None, shares, (), False)

    def _no_route(self, request: Request) -> Decision:
        assert self._router is not None
        authority, path = request.authority.decode("latin-1"), request.path.decode("latin-1")
        if self._router.host(request.authority) is None:
            return _refuse(Status.UNAVAILABLE, f'no service named "{authority}" in the mesh', "NR", 404)
        return _refuse(Status.UNIMPLEMENTED, f'no route for path "{path}" of "{authority}"', "NR", 404)
