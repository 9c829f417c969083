"""What authentication policies say of tokens, as Envoy's filter (extensions.filters.http.jwt_authn.v3).

Envoy keeps connections on the listener that accepted them, and has issuers and keys only there. So that what policies say counts for calls
on connections that stand, it gets a place on the listener (a composite filter), which is off until routes fill it with the filter. Our
sidecar's connections follow its listener: it has the filter there, and routes say what is asked of calls.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from envoy.config.core.v3 import base_pb2
from envoy.extensions.common.matching.v3 import extension_matcher_pb2 as base_matching_pb2
from envoy.extensions.filters.common.matcher.action.v3 import skip_action_pb2 as skip_pb2
from envoy.extensions.filters.http.composite.v3 import composite_pb2
from envoy.extensions.filters.http.jwt_authn.v3 import config_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from google.protobuf import empty_pb2
from xds.type.matcher.v3 import matcher_pb2

from control_plane.translate.view import TokensView
from proto.mesh.v1 import policy_pb2

ENVOY: Final = "envoy"
FILTER: Final = "tokens"
METADATA: Final = "envoy.filters.http.jwt_authn"
"""Where access rules find the claims: Envoy's own name, whatever the filter's is."""
CLAIMS: Final = "claims"
REQUIRED: Final = "required"
OPTIONAL: Final = "optional"
SHADOW: Final = "shadow"
LISTS: Final = ("scope",)
"""Claims whose words are a list for rules (RFC 8693 §4.2)."""


def filters(views: Sequence[TokensView], engine: str) -> Iterator[Any]:
    """What stands on the listener (HttpFilter)."""
    if engine == ENVOY:
        place = base_matching_pb2.ExtensionWithMatcher(xds_matcher=_always("nothing", skip_pb2.SkipFilter()))
        place.extension_config.name = "composite"
        place.extension_config.typed_config.Pack(composite_pb2.Composite())
        yield _filter(place, is_disabled=True)
    elif views:
        yield _filter(_config(views))


def of_routes(views: Sequence[TokensView], engine: str) -> Iterator[Any]:
    """What routes say to that filter, if there is anything to verify."""
    if not views:
        return
    if engine != ENVOY:
        yield config_pb2.PerRouteConfig(requirement_name=_needed(views))
        return
    config = _config(views)
    rule = config.rules.add(requirement_name=_needed(views))
    rule.match.prefix = "/"
    action = composite_pb2.ExecuteFilterAction()
    action.typed_config.name = FILTER
    action.typed_config.typed_config.Pack(config, deterministic=True)
    yield base_matching_pb2.ExtensionWithMatcherPerRoute(xds_matcher=_always("verify", action))


def _always(name: str, action: Any) -> matcher_pb2.Matcher:
    found = matcher_pb2.Matcher()
    found.on_no_match.action.name = name
    found.on_no_match.action.typed_config.Pack(action, deterministic=True)
    return found


def _filter(config: Any, *, is_disabled: bool = False) -> Any:
    made = http_connection_manager_pb2.HttpFilter(name=FILTER, disabled=is_disabled)
    made.typed_config.Pack(config, deterministic=True)
    return made


def _config(views: Sequence[TokensView]) -> Any:
    message = config_pb2.JwtAuthentication()
    for view in views:
        spec = policy_pb2.AuthenticationPolicySpec.FromString(view.spec)
        for number, issuer in enumerate(spec.jwt):
            message.providers[f"{view.policy}/{number}"].CopyFrom(_provider(issuer))
    named = [config_pb2.JwtRequirement(provider_name=name) for name in sorted(message.providers)]
    missing = config_pb2.JwtRequirement(allow_missing=empty_pb2.Empty())
    message.requirement_map[REQUIRED].CopyFrom(_any_of(named))
    message.requirement_map[OPTIONAL].CopyFrom(_any_of([*named, missing]))
    message.requirement_map[SHADOW].allow_missing_or_failed.SetInParent()
    return message


def _needed(views: Sequence[TokensView]) -> str:
    specs = [policy_pb2.AuthenticationPolicySpec.FromString(view.spec) for view in views]
    enforced = [spec for spec in specs if spec.mode == policy_pb2.Enforce]
    return REQUIRED if any(spec.require for spec in enforced) else OPTIONAL if enforced else SHADOW


def _any_of(parts: list[Any]) -> Any:
    if len(parts) == 1:
        return parts[0]
    return config_pb2.JwtRequirement(requires_any=config_pb2.JwtRequirementOrList(requirements=parts))


def _provider(issuer: policy_pb2.TokenIssuer) -> Any:
    message = config_pb2.JwtProvider(
        issuer=issuer.issuer,
        audiences=issuer.audiences,
        local_jwks=base_pb2.DataSource(inline_string=issuer.jwks),
        forward=issuer.forward,
        payload_in_metadata=CLAIMS,
    )
    message.normalize_payload_in_metadata.space_delimited_claims.extend(LISTS)
    for header in issuer.from_headers:
        message.from_headers.add(name=header.name, value_prefix=header.prefix)
    for claim in issuer.claim_to_headers:
        message.claim_to_headers.add(header_name=claim.header, claim_name=claim.claim)
    return message
