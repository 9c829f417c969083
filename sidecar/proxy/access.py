"""Who may call what (Envoy: config.rbac.v3): rules as values, and what they say of a request. Pure.

What depends on the request alone is decided once per distinct header block; of the rest one says `None`, not yet known, as in Kleene's logic.
"""

import ipaddress
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sidecar.proxy.config import FilterConfig, HeaderMatch
from sidecar.proxy.route import Request, header_holds, value_holds


@dataclass(frozen=True, slots=True)
class Caller:
    """The other end of a connection: as far as rules read it. Equal callers get equal verdicts."""

    is_secure: bool = False
    """It came over TLS; whether it showed a certificate is another question."""
    uris: tuple[str, ...] = ()
    """Names in the certificate."""
    dns: tuple[str, ...] = ()
    subject: str = ""
    """As RFC 2253 writes it."""
    host: str = ""
    """The address of its socket."""
    own_host: str = ""
    own_port: int = 0
    server_name: str = ""
    """That it asked for (SNI)."""

    @property
    def names(self) -> tuple[str, ...]:
        """What `authenticated` is compared with: URIs, DNS names and the subject, which is empty without a certificate (as Envoy)."""
        return (*self.uris, *self.dns, self.subject)


Claims = dict[str, Any]
"""What filters before this one found out, by their names (Envoy: dynamic metadata)."""


class Condition:
    """A part of a rule."""

    def holds(self, request: Request, caller: Caller | None, claims: Claims) -> bool | None:
        """True or False; None if it depends on the caller, which is not known yet."""
        raise NotImplementedError

    def headers(self) -> frozenset[bytes]:
        """Names of the headers that it reads, lower case."""
        return frozenset()


@dataclass(frozen=True, slots=True)
class Always(Condition):
    """Everybody, everything."""

    def holds(self, request: Request, caller: Caller | None, claims: Claims) -> bool | None:
        return True


@dataclass(frozen=True, slots=True)
class All(Condition):
    """Every part holds."""

    parts: tuple[Condition, ...]

    def holds(self, request: Request, caller: Caller | None, claims: Claims) -> bool | None:
        found: bool | None = True
        for part in self.parts:
            verdict = part.holds(request, caller, claims)
            if verdict is False:
                return False
            if verdict is None:
                found = None
        return found

    def headers(self) -> frozenset[bytes]:
        return frozenset().union(*(part.headers() for part in self.parts))


@dataclass(frozen=True, slots=True)
class Some(Condition):
    """At least one part holds."""

    parts: tuple[Condition, ...]

    def holds(self, request: Request, caller: Caller | None, claims: Claims) -> bool | None:
        found: bool | None = False
        for part in self.parts:
            verdict = part.holds(request, caller, claims)
            if verdict:
                return True
            if verdict is None:
                found = None
        return found

    def headers(self) -> frozenset[bytes]:
        return frozenset().union(*(part.headers() for part in self.parts))


@dataclass(frozen=True, slots=True)
class Not(Condition):
    """The part does not hold."""

    part: Condition

    def holds(self, request: Request, caller: Caller | None, claims: Claims) -> bool | None:
        verdict = self.part.holds(request, caller, claims)
        return None if verdict is None else not verdict

    def headers(self) -> frozenset[bytes]:
        return self.part.headers()


@dataclass(frozen=True, slots=True)
class HeaderIs(Condition):
    """A header of the request, pseudo-headers among them."""

    match: HeaderMatch

    def holds(self, request: Request, caller: Caller | None, claims: Claims) -> bool | None:
        return header_holds(self.match, request.headers)

    def headers(self) -> frozenset[bytes]:
        return frozenset((self.match.name,))


@dataclass(frozen=True, slots=True)
class PathIs(Condition):
    """The path without its query."""

    match: HeaderMatch

    def holds(self, request: Request, caller: Caller | None, claims: Claims) -> bool | None:
        return value_holds(self.match, request.path)


@dataclass(frozen=True, slots=True)
class PeerIs(Condition):
    """A name in the caller's certificate; None: any caller over TLS, as in Envoy, even if it showed none."""

    match: HeaderMatch | None

    def holds(self, request: Request, caller: Caller | None, claims: Claims) -> bool | None:
        if caller is None:
            return None
        if not caller.is_secure:
            return False
        match = self.match
        return match is None or any(value_holds(match, name.encode()) for name in caller.names)


class End(Enum):
    """Whose address."""

    SOCKET = "direct_remote_ip"
    CLIENT = "remote_ip"
    """As the last proxy before us said, else the socket's."""
    OWN = "destination_ip"


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class AddressIn(Condition):
    """An address in a network."""

    end: End
    network: Network

    def holds(self, request: Request, caller: Caller | None, claims: Claims) -> bool | None:
        if caller is None:
            return None
        address = _address(caller.own_host if self.end is End.OWN else caller.host)
        if self.end is End.CLIENT:
            address = _address(_forwarded(request)) or address
        return address is not None and address in self.network

    def headers(self) -> frozenset[bytes]:
        return frozenset((b"x-forwarded-for",)) if self.end is End.CLIENT else frozenset()


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _forwarded(request: Request) -> str:
    values = request.headers.get(b"x-forwarded-for")
    return values[-1].rpartition(b",")[2].strip().decode("latin-1") if values else ""


@dataclass(frozen=True, slots=True)
class PortIn(Condition):
    """The port that the caller came to: from the first up to, not with, the second."""

    first: int
    behind: int

    def holds(self, request: Request, caller: Caller | None, claims: Claims) -> bool | None:
        return None if caller is None else self.first <= caller.own_port < self.behind


@dataclass(frozen=True, slots=True)
class ServerNameIs(Condition):
    """The name that the caller asked for (SNI)."""

    match: HeaderMatch

    def holds(self, request: Request, caller: Caller | None, claims: Claims) -> bool | None:
        return None if caller is None else value_holds(self.match, caller.server_name.encode())


@dataclass(frozen=True, slots=True)
class ClaimIs(Condition):
    """Something that a filter before found out, such as a claim of a token (Envoy: type.matcher.v3.MetadataMatcher)."""

    filter_name: str
    path: tuple[str, ...]
    match: HeaderMatch | bool | float | None
    """A text; a truth or a number; None: it is there."""
    is_in_list: bool = False
    """One of a list is enough."""
    invert: bool = False

    def holds(self, request: Request, caller: Caller | None, claims: Claims) -> bool | None:
        if caller is None:
            return None
        value: Any = claims.get(self.filter_name)
        for key in self.path:
            value = value.get(key) if isinstance(value, dict) else None
        return self._is_right(value) is not self.invert

    def _is_right(self, value: Any) -> bool:
        if self.is_in_list:
            return isinstance(value, list) and any(self._is_one(item) for item in value)
        return self._is_one(value)

    def _is_one(self, value: Any) -> bool:
        if self.match is None:
            return value is not None
        if isinstance(self.match, HeaderMatch):
            return isinstance(value, str) and value_holds(self.match, value.encode())
        return value == self.match and isinstance(value, bool) is isinstance(self.match, bool)


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """One policy: who may do what."""

    name: str
    permission: Condition
    principal: Condition

    def holds(self, request: Request, caller: Caller | None, claims: Claims) -> bool | None:
        """True if the policy is about this request."""
        permitted = self.permission.holds(request, caller, claims)
        if permitted is False:
            return False
        known = self.principal.holds(request, caller, claims)
        return known if known is False or permitted else None


class Action(Enum):
    """What becomes of a request that a policy is about."""

    ALLOW = "ALLOW"
    """It may pass, and no other may."""
    DENY = "DENY"
    """It may not pass, and all others may."""
    LOG = "LOG"
    """Everything may pass."""


@dataclass(frozen=True, slots=True)
class AccessRules:
    """Policies with one action (Envoy: config.rbac.v3.RBAC)."""

    action: Action
    policies: tuple[AccessPolicy, ...] = ()
    """In order of their names."""

    def headers(self) -> frozenset[bytes]:
        """Names of the headers that policies read."""
        parts = [part for policy in self.policies for part in (policy.permission, policy.principal)]
        return frozenset().union(*(part.headers() for part in parts))

    def decide(self, request: Request, caller: Caller | None, claims: Claims) -> "Ruling | None":
        """What becomes of a request; None if that depends on the caller."""
        for policy in self.policies:
            verdict = policy.holds(request, caller, claims)
            if verdict is None:
                return None
            if verdict:
                return Ruling(self.action is not Action.DENY, policy.name)
        return Ruling(self.action is not Action.ALLOW, "")


@dataclass(frozen=True, slots=True)
class Ruling:
    """What rules say of a request."""

    is_allowed: bool
    policy: str
    """That is about it; empty if none is."""


@dataclass(frozen=True, slots=True)
class Access(FilterConfig):
    """Rules in force, and rules on trial (Envoy: extensions.filters.http.rbac.v3.RBAC)."""

    rules: AccessRules | None = None
    """None lets everybody pass."""
    shadow: AccessRules | None = None
    """What they would have done is counted."""
    stat_prefix: str = ""
    shadow_prefix: str = ""
