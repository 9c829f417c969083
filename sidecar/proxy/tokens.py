"""Which tokens calls must show, as values (Envoy: extensions.filters.http.jwt_authn.v3)."""

from dataclasses import dataclass

from sidecar.policy.tokens import Demands
from sidecar.proxy.config import FilterConfig, RouteMatch


@dataclass(frozen=True, slots=True)
class TokenProvider:
    """An issuer of tokens, where its tokens are, and what becomes of them (Envoy: JwtProvider)."""

    name: str
    keys: bytes
    """A JWK Set."""
    demands: Demands
    audiences: tuple[str, ...] = ()
    """One of these is in the token's; none: whatever it says."""
    headers: tuple[tuple[bytes, bytes], ...] = ((b"authorization", b"Bearer "),)
    """Names, and what stands before the token there."""
    parameters: tuple[bytes, ...] = (b"access_token",)
    """Of the query."""
    is_forwarded: bool = False
    """The token goes on to the upstream."""
    payload_header: bytes = b""
    """That gets the claims, as they stand in the token."""
    pads_payload: bool = False
    claim_headers: tuple[tuple[bytes, str], ...] = ()
    """Names, and the claims that they get."""
    payload_key: str = ""
    """Under which rules find the claims; empty: not at all."""
    header_key: str = ""
    """The same for the token's header."""
    lists: tuple[str, ...] = ()
    """Claims of words with spaces between, such as `scope`, which rules find as lists."""

    def made_headers(self) -> frozenset[bytes]:
        """Names of the headers that are made of its tokens: nobody else may set them."""
        return frozenset(filter(None, (self.payload_header, *(name for name, _ in self.claim_headers))))


class Requirement:
    """What a call must show."""


@dataclass(frozen=True, slots=True)
class TokenOf(Requirement):
    """A token of a provider."""

    provider: str
    audiences: tuple[str, ...] | None = None
    """Instead of the provider's."""


@dataclass(frozen=True, slots=True)
class AnyOf(Requirement):
    """One of these."""

    parts: tuple[Requirement, ...]


@dataclass(frozen=True, slots=True)
class AllOf(Requirement):
    """All of these."""

    parts: tuple[Requirement, ...]


@dataclass(frozen=True, slots=True)
class Optional(Requirement):
    """No token, or a good one of any provider."""

    takes_bad: bool = False
    """A bad one is as good as none."""


@dataclass(frozen=True, slots=True)
class TokenRule:
    """What calls of a kind must show."""

    match: RouteMatch
    requires: Requirement | None
    """None: nothing."""


@dataclass(frozen=True, slots=True)
class Tokens(FilterConfig):
    """Providers, and the rules in order: the first that is about a call counts; without one it needs nothing."""

    providers: tuple[TokenProvider, ...] = ()
    rules: tuple[TokenRule, ...] = ()
    named: tuple[tuple[str, Requirement], ...] = ()
    """Requirements that routes name."""
    route: "TokensOfRoute | None" = None
    """Instead of the rules."""


@dataclass(frozen=True, slots=True)
class TokensOfRoute(FilterConfig):
    """What calls of a route or a virtual host must show, instead of what the rules say (Envoy: PerRouteConfig)."""

    requirement: str = ""
    """Its name; empty: nothing."""
