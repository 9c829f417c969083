"""What a call asks of a consistent balancer: a key made of its headers, cookies, query or client (Envoy: route.v3.RouteAction.HashPolicy).

The parts that a header block holds are hashed once per distinct block, in its plan; where a part depends on the connection (the client's
address, a cookie that is yet to be given), a call costs a hash or two more.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidecar.http2 import headers
from sidecar.policy import hashing, pattern
from sidecar.policy.balance import Wish
from sidecar.proxy.config import HashPolicy, HashSource, Route
from sidecar.proxy.limit_actions import FORWARDED_FOR, remote_address

if TYPE_CHECKING:
    from sidecar.proxy.call import Call


@dataclass(frozen=True, slots=True)
class _Later:
    """A part that depends on the connection."""

    policy: HashPolicy


class Keyed:
    """What calls with one header block ask of the balancers of one route."""

    __slots__ = ("_labels", "_parts", "_wishes")

    def __init__(self, route: Route, values: dict[bytes, list[bytes]]) -> None:
        self._labels = route.labels or ((),) * len(route.clusters)
        parts: list[int | _Later] = []
        key: int | None = None
        for policy in route.hash_policies:
            part = _part(policy, values)
            if isinstance(part, int) and not parts:
                key = hashing.combine(key, part)
            elif part is not None:
                if not parts and key is not None:
                    parts.append(key)
                parts.append(part)
            # A part that comes later may yet be none, but then an earlier one decides.
            if policy.is_terminal and (key is not None or parts):
                break
        self._parts: tuple[int | _Later, ...] = tuple(parts)
        self._wishes = None if parts else tuple(Wish(key, labels) for labels in self._labels)

    def wish(self, call: "Call", place: int) -> Wish:
        """For a call to the cluster at this place of the route."""
        if self._wishes is not None:
            return self._wishes[place]
        key: int | None = None
        for part in self._parts:
            made = part if isinstance(part, int) else _from_connection(part.policy, call)
            if made is not None:
                key = hashing.combine(key, made)
        return Wish(key, self._labels[place])


def _part(policy: HashPolicy, values: dict[bytes, list[bytes]]) -> int | _Later | None:
    """The hash of what a policy names; None if the request does not have it."""
    match policy.source:
        case HashSource.HEADER:
            found = sorted(_rewritten(policy, value) for value in values.get(policy.header, ()))
            return hashing.text_key(found) if found else None
        case HashSource.COOKIE:
            cookie = _cookie(b"; ".join(values.get(policy.header, ())), policy.name)
            if cookie:
                return hashing.text_key([cookie])
            return _Later(policy) if policy.cookie_ttl_s is not None else None
        case HashSource.QUERY:
            value = _query(values.get(policy.header, [b""])[0], policy.name)
            return hashing.text_key([value]) if value is not None else None
    return _Later(policy)


def _rewritten(policy: HashPolicy, value: bytes) -> bytes:
    if policy.rewrite is None:
        return value
    return pattern.replace(*policy.rewrite, value)


def _cookie(text: bytes, name: bytes) -> bytes:
    """The value of a cookie, without the quotes that it may have (RFC 6265 §4.1.1); empty if it is not there."""
    for pair in text.split(b";"):
        key, equals, value = pair.lstrip(b" ").partition(b"=")
        if equals and key == name:
            return value[1:-1] if len(value) > 1 and value.startswith(b'"') and value.endswith(b'"') else value
    return b""


def _query(path: bytes, name: bytes) -> bytes | None:
    """The first value of a query parameter, as it stands there."""
    for pair in path.partition(b"?")[2].split(b"&"):
        key, _, value = pair.partition(b"=")
        if key == name:
            return value
    return None


def _from_connection(policy: HashPolicy, call: "Call") -> int | None:
    if policy.source is HashSource.CLIENT:
        values = call.plan.values or {}
        address = remote_address(call, values.get(FORWARDED_FOR))
        return hashing.text_key([address]) if address else None
    value = b"%016x" % hashing.text_key([call.down.addresses])
    cookie = b'%s="%s"' % (policy.name, value)
    if policy.cookie_ttl_s:
        cookie += b"; Max-Age=%d" % policy.cookie_ttl_s
    if policy.cookie_path:
        cookie += b"; Path=" + policy.cookie_path
    for name, said in policy.cookie_attributes:
        cookie += b"; " + (b"%s=%s" % (name, said) if said else name)
    call.response_fields += headers.encode_field(b"set-cookie", cookie + b"; HttpOnly")
    return hashing.text_key([value])
