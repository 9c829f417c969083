"""Authorization policies as Envoy's access rules (extensions.filters.http.rbac.v3): one filter that denies, and one that allows, behind it."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from envoy.config.core.v3 import address_pb2
from envoy.config.rbac.v3 import rbac_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as filter_pb2
from envoy.type.matcher.v3 import metadata_pb2, path_pb2, regex_pb2, string_pb2, value_pb2
from google.protobuf import wrappers_pb2

from control_plane.registry.state import selects
from control_plane.translate import tokens
from control_plane.translate.node import Node
from control_plane.translate.view import AccessView, MeshView
from proto.mesh.v1 import policy_pb2, route_pb2, service_pb2

DENY: Final = "access.deny"
ALLOW: Final = "access.allow"
FILTERS: Final = (DENY, ALLOW)
"""Names of the two filters, in order."""


def in_force(mesh: MeshView, node: Node) -> tuple[AccessView, ...]:
    """The policies for calls to the instance beside a node, by any of its names; each once."""
    said = service_pb2.Instance(service=node.service, namespace=node.namespace, version=node.version)
    beside = [said, *mesh.present.by_node.get(node.id, ())]
    found: dict[str, AccessView] = {}
    for view in mesh.declared.access:
        namespace, name = view.place
        is_about = namespace in ("", node.namespace) and (
            not name or any(item.namespace == namespace and selects(dict(view.selector), item) for item in beside)
        )
        if is_about:
            found.setdefault(view.policy, view)
    return tuple(found.values())


def filter_configs(found: Sequence[AccessView], trust_domain: str) -> Iterator[tuple[str, Any]]:
    """(filter's name, RBACPerRoute) for what the policies ask for."""
    specs = [(view, policy_pb2.AuthorizationPolicySpec.FromString(view.spec)) for view in found]
    actions = policy_pb2.AuthorizationPolicySpec.Action
    for name, action in ((DENY, actions.Deny), (ALLOW, actions.Allow)):
        chosen = [(view, spec) for view, spec in specs if spec.action == action]
        if not chosen:
            continue
        enforced = [(view, spec) for view, spec in chosen if spec.mode == policy_pb2.Enforce]
        config = filter_pb2.RBAC(rules_stat_prefix=name, shadow_rules_stat_prefix=name)
        if enforced:
            config.rules.CopyFrom(_rules(action, enforced, trust_domain))
        if len(enforced) != len(chosen):  # what all would do, were those on trial in force too
            config.shadow_rules.CopyFrom(_rules(action, chosen, trust_domain))
        yield name, filter_pb2.RBACPerRoute(rbac=config)


def _rules(action: int, chosen: Iterable[tuple[AccessView, Any]], trust_domain: str) -> rbac_pb2.RBAC:
    is_deny = action == policy_pb2.AuthorizationPolicySpec.Deny
    message = rbac_pb2.RBAC(action=rbac_pb2.RBAC.DENY if is_deny else rbac_pb2.RBAC.ALLOW)
    for view, spec in chosen:
        for number, rule in enumerate(spec.rules):
            policy = message.policies[f"{view.policy} rule {number}"]
            policy.permissions.extend([_permission(target) for target in rule.to] or [rbac_pb2.Permission(any=True)])
            sources = [_principal(source, view.namespace, trust_domain) for source in getattr(rule, "from")]
            policy.principals.extend(sources or [rbac_pb2.Principal(any=True)])
    return message


# -- who ----------------------------------------------------------------------------------------------


def _principal(source: policy_pb2.CallSource, namespace: str, trust_domain: str) -> rbac_pb2.Principal:
    parts = []
    if source.services:
        parts.append(_one_of([_service(name, namespace, trust_domain) for name in source.services]))
    if source.namespaces:
        names = [_named(prefix=f"spiffe://{trust_domain}/ns/{name}/") for name in source.namespaces]
        parts.append(_one_of(names))
    if source.identities:
        parts.append(_one_of([_identity(identity) for identity in source.identities]))
    if source.addresses:
        parts.append(_one_of([_address(network) for network in source.addresses]))
    parts += [_claim(match) for match in source.claims]
    return parts[0] if len(parts) == 1 else rbac_pb2.Principal(and_ids=rbac_pb2.Principal.Set(ids=parts))


def _claim(match: policy_pb2.ClaimMatch) -> rbac_pb2.Principal:
    """A claim that is a text may be in a list of texts as well."""
    if not match.values:
        return _metadata(match.name, value_pb2.ValueMatcher(present_match=True))
    values = [value_pb2.ValueMatcher(string_match=string_pb2.StringMatcher(exact=text)) for text in match.values]
    lists = [value_pb2.ValueMatcher(list_match=value_pb2.ListMatcher(one_of=value)) for value in values]
    return _one_of([_metadata(match.name, value) for value in (*values, *lists)])


def _metadata(claim: str, value: value_pb2.ValueMatcher) -> rbac_pb2.Principal:
    segment = metadata_pb2.MetadataMatcher.PathSegment
    path = [segment(key=key) for key in (tokens.CLAIMS, *claim.split("."))]
    matcher = metadata_pb2.MetadataMatcher(filter=tokens.METADATA, path=path, value=value)
    return rbac_pb2.Principal(metadata=matcher)


def _one_of(parts: list[rbac_pb2.Principal]) -> rbac_pb2.Principal:
    return parts[0] if len(parts) == 1 else rbac_pb2.Principal(or_ids=rbac_pb2.Principal.Set(ids=parts))


def _named(**pattern: str) -> rbac_pb2.Principal:
    name = string_pb2.StringMatcher(**pattern)
    return rbac_pb2.Principal(authenticated=rbac_pb2.Principal.Authenticated(principal_name=name))


def _service(name: str, namespace: str, trust_domain: str) -> rbac_pb2.Principal:
    service, _, elsewhere = name.partition(".")
    return _named(exact=f"spiffe://{trust_domain}/ns/{elsewhere or namespace}/sa/{service}")


def _identity(pattern: str) -> rbac_pb2.Principal:
    if pattern == "*":
        return _named(prefix="spiffe://")  # anybody who has an identity
    if pattern.endswith("*"):
        return _named(prefix=pattern[:-1])
    if pattern.startswith("*"):
        return _named(suffix=pattern[1:])
    return _named(exact=pattern)


def _address(network: str) -> rbac_pb2.Principal:
    address, _, length = network.partition("/")
    whole = 128 if ":" in address else 32
    prefix = wrappers_pb2.UInt32Value(value=int(length) if length else whole)
    return rbac_pb2.Principal(direct_remote_ip=address_pb2.CidrRange(address_prefix=address, prefix_len=prefix))


# -- what ---------------------------------------------------------------------------------------------


def _permission(target: policy_pb2.CallTarget) -> rbac_pb2.Permission:
    parts = []
    if target.methods:
        methods = [_method(name) for name in target.methods]
        rules = rbac_pb2.Permission.Set(rules=methods)
        parts.append(methods[0] if len(methods) == 1 else rbac_pb2.Permission(or_rules=rules))
    parts += [_header(header) for header in target.headers]
    return parts[0] if len(parts) == 1 else rbac_pb2.Permission(and_rules=rbac_pb2.Permission.Set(rules=parts))


def _method(name: str) -> rbac_pb2.Permission:
    service, _, method = name.partition("/")
    path = (
        string_pb2.StringMatcher(prefix=f"/{service}/")
        if method == "*"
        else string_pb2.StringMatcher(exact=f"/{service}/{method}")
    )
    return rbac_pb2.Permission(url_path=path_pb2.PathMatcher(path=path))


def _header(header: route_pb2.HeaderMatch) -> rbac_pb2.Permission:
    if header.type == "RegularExpression":
        value = string_pb2.StringMatcher(safe_regex=regex_pb2.RegexMatcher(regex=header.value))
    else:
        value = string_pb2.StringMatcher(exact=header.value)
    return rbac_pb2.Permission(header=route_components_pb2.HeaderMatcher(name=header.name, string_match=value))
