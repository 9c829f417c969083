"""Envoy's token filter (extensions.filters.http.jwt_authn.v3) to the proxy's."""

from typing import Any, Final

from sidecar.http2 import fields as field_rules
from sidecar.policy.tokens import Demands, KeysError, read_keys
from sidecar.proxy.tokens import (
    AllOf,
    AnyOf,
    Optional,
    Requirement,
    TokenOf,
    TokenProvider,
    TokenRule,
    Tokens,
    TokensOfRoute,
)
from sidecar.xds.routing import route_match
from sidecar.xds.supported import ConfigError
from sidecar.xds.tls import data_source
from sidecar.xds.values import seconds

DEFAULT_SKEW_S: Final = 60.0
"""Envoy's own."""
MAX_NESTING: Final = 16
"""Of requirements."""
_FIXED: Final = frozenset((b"te", b"host", b"content-type", b"content-length", b"grpc-timeout"))
"""Headers that no token may set: calls, or what is counted of them, depend on them."""


def tokens(message: Any, path: str) -> Tokens:
    """extensions.filters.http.jwt_authn.v3.JwtAuthentication."""
    providers = tuple(
        _provider(name, message.providers[name], f"{path}.providers[{name}]") for name in sorted(message.providers)
    )
    names = frozenset(message.providers)
    named = tuple(
        (name, _requirement(message.requirement_map[name], names, f"{path}.requirement_map[{name}]"))
        for name in sorted(message.requirement_map)
    )
    rules = tuple(_rule(item, names, dict(named), f"{path}.rules[{n}]") for n, item in enumerate(message.rules))
    return Tokens(providers, rules, named)


def tokens_of_route(message: Any, path: str) -> TokensOfRoute:
    """extensions.filters.http.jwt_authn.v3.PerRouteConfig."""
    match message.WhichOneof("requirement_specifier"):
        case "disabled":
            if not message.disabled:
                raise ConfigError(f"{path}.disabled", "only true is possible (RMR0151)")
            return TokensOfRoute()
        case "requirement_name":
            if not message.requirement_name:
                raise ConfigError(f"{path}.requirement_name", "a name is needed (RMR0151)")
            return TokensOfRoute(message.requirement_name)
    raise ConfigError(path, "disabled or requirement_name is needed (RMR0151)")


def _provider(name: str, message: Any, path: str) -> TokenProvider:
    if message.WhichOneof("jwks_source_specifier") != "local_jwks":
        raise ConfigError(f"{path}.local_jwks", "the issuer's keys are needed (RMR0151)")
    keys = data_source(message.local_jwks, f"{path}.local_jwks")
    try:
        read_keys(keys)
    except KeysError as error:
        raise ConfigError(f"{path}.local_jwks", f"{error} (RMR0151)") from None
    headers = tuple(
        (_header(item.name, f"{path}.from_headers[{n}].name"), item.value_prefix.encode())
        for n, item in enumerate(message.from_headers)
    )
    parameters = tuple(item.encode() for item in message.from_params)
    places: dict[str, Any] = {"headers": headers, "parameters": parameters} if headers or parameters else {}
    payload = message.forward_payload_header
    return TokenProvider(
        name,
        keys,
        Demands(
            issuer=message.issuer,
            skew_s=float(message.clock_skew_seconds or DEFAULT_SKEW_S),
            must_expire=message.require_expiration,
            max_lifetime_s=seconds(message.max_lifetime),
        ),
        audiences=tuple(message.audiences),
        is_forwarded=message.forward,
        payload_header=_header(payload, f"{path}.forward_payload_header") if payload else b"",
        pads_payload=message.pad_forward_payload_header,
        claim_headers=tuple(
            (_header(item.header_name, f"{path}.claim_to_headers[{n}].header_name"), item.claim_name)
            for n, item in enumerate(message.claim_to_headers)
        ),
        payload_key=message.payload_in_metadata,
        header_key=message.header_in_metadata,
        lists=tuple(message.normalize_payload_in_metadata.space_delimited_claims),
        **places,
    )


def _header(name: str, path: str) -> bytes:
    found = name.lower().encode()
    if not field_rules.TOKEN.fullmatch(found) or found in _FIXED or found in field_rules.CONNECTION_SPECIFIC:
        raise ConfigError(path, f'"{name}" is no header for this (RMR0151)')
    return found


def _rule(message: Any, names: frozenset[str], named: dict[str, Requirement], path: str) -> TokenRule:
    match = route_match(message.match, f"{path}.match")
    match message.WhichOneof("requirement_type"):
        case "requires":
            return TokenRule(match, _requirement(message.requires, names, f"{path}.requires"))
        case "requirement_name":
            found = named.get(message.requirement_name)
            if found is None:
                raise ConfigError(
                    f"{path}.requirement_name", f'"{message.requirement_name}" is not in requirement_map (RMR0151)'
                )
            return TokenRule(match, found)
    return TokenRule(match, None)


def _requirement(message: Any, names: frozenset[str], path: str, depth: int = 0) -> Requirement:
    if depth > MAX_NESTING:
        raise ConfigError(path, f"nested deeper than {MAX_NESTING} levels (RMR0151)")
    match message.WhichOneof("requires_type"):
        case "provider_name":
            return TokenOf(_known(message.provider_name, names, f"{path}.provider_name"))
        case "provider_and_audiences":
            item = message.provider_and_audiences
            place = f"{path}.provider_and_audiences.provider_name"
            return TokenOf(_known(item.provider_name, names, place), tuple(item.audiences))
        case "requires_any":
            return AnyOf(_parts(message.requires_any, names, f"{path}.requires_any", depth))
        case "requires_all":
            return AllOf(_parts(message.requires_all, names, f"{path}.requires_all", depth))
        case "allow_missing":
            return Optional()
        case "allow_missing_or_failed":
            return Optional(takes_bad=True)
    raise ConfigError(path, "a requirement is needed (RMR0151)")


def _parts(message: Any, names: frozenset[str], path: str, depth: int) -> tuple[Requirement, ...]:
    if len(message.requirements) < 2:  # Envoy's own bound
        raise ConfigError(f"{path}.requirements", "at least two are needed (RMR0151)")
    return tuple(
        _requirement(item, names, f"{path}.requirements[{n}]", depth + 1) for n, item in enumerate(message.requirements)
    )


def _known(name: str, names: frozenset[str], path: str) -> str:
    if name not in names:
        raise ConfigError(path, f'"{name}" is no provider (RMR0151)')
    return name
