"""Envoy's access rules (extensions.filters.http.rbac.v3, config.rbac.v3) to the proxy's."""

import ipaddress
from collections.abc import Callable
from typing import Any, Final

from envoy.config.rbac.v3 import rbac_pb2

from sidecar.proxy.access import (
    Access,
    AccessPolicy,
    AccessRules,
    Action,
    AddressIn,
    All,
    Always,
    ClaimIs,
    Condition,
    End,
    HeaderIs,
    Network,
    Not,
    PathIs,
    PeerIs,
    PortIn,
    ServerNameIs,
    Some,
)
from sidecar.proxy.config import HeaderMatch
from sidecar.xds.matching import header_match, string_match
from sidecar.xds.supported import ConfigError

_ACTIONS: Final = {
    rbac_pb2.RBAC.ALLOW: Action.ALLOW,
    rbac_pb2.RBAC.DENY: Action.DENY,
    rbac_pb2.RBAC.LOG: Action.LOG,
}
MAX_PORT: Final = 65_535


def access(message: Any, path: str) -> Access:
    """extensions.filters.http.rbac.v3.RBAC."""
    return Access(
        rules=_rules(message.rules, f"{path}.rules") if message.HasField("rules") else None,
        shadow=_rules(message.shadow_rules, f"{path}.shadow_rules") if message.HasField("shadow_rules") else None,
        stat_prefix=message.rules_stat_prefix,
        shadow_prefix=message.shadow_rules_stat_prefix,
    )


def access_of_route(message: Any, path: str) -> Access:
    """extensions.filters.http.rbac.v3.RBACPerRoute; without rules of its own everybody may pass there."""
    return access(message.rbac, f"{path}.rbac")


def _rules(message: Any, path: str) -> AccessRules:
    found = []
    for name in sorted(message.policies):
        policy, place = message.policies[name], f"{path}.policies[{name}]"
        if not policy.permissions or not policy.principals:
            raise ConfigError(place, "permissions and principals are needed (RMR0147)")
        permissions = tuple(_permission(item, f"{place}.permissions[{n}]") for n, item in enumerate(policy.permissions))
        principals = tuple(_principal(item, f"{place}.principals[{n}]") for n, item in enumerate(policy.principals))
        found.append(AccessPolicy(name, _some(permissions), _some(principals)))
    return AccessRules(_ACTIONS[message.action], tuple(found))


def _some(parts: tuple[Condition, ...]) -> Condition:
    return parts[0] if len(parts) == 1 else Some(parts)


def _parts(messages: Any, read: Callable[[Any, str], Condition], path: str) -> tuple[Condition, ...]:
    return tuple(read(item, f"{path}[{number}]") for number, item in enumerate(messages))


def _permission(message: Any, path: str) -> Condition:
    """config.rbac.v3.Permission."""
    match message.WhichOneof("rule"):
        case "and_rules":
            return All(_parts(message.and_rules.rules, _permission, f"{path}.and_rules.rules"))
        case "or_rules":
            return Some(_parts(message.or_rules.rules, _permission, f"{path}.or_rules.rules"))
        case "not_rule":
            return Not(_permission(message.not_rule, f"{path}.not_rule"))
        case "any":
            return _any(message.any, path)
        case "header":
            return HeaderIs(header_match(message.header, f"{path}.header"))
        case "url_path":
            return _path(message.url_path, f"{path}.url_path")
        case "destination_ip":
            return AddressIn(End.OWN, _network(message.destination_ip, f"{path}.destination_ip"))
        case "destination_port":
            if message.destination_port > MAX_PORT:
                raise ConfigError(f"{path}.destination_port", f"{message.destination_port} is no port (RMR0147)")
            return PortIn(message.destination_port, message.destination_port + 1)
        case "destination_port_range":
            return PortIn(message.destination_port_range.start, message.destination_port_range.end)
        case "requested_server_name":
            return ServerNameIs(string_match(message.requested_server_name, f"{path}.requested_server_name"))
        case "metadata":
            return _claim(message.metadata, f"{path}.metadata")
    raise ConfigError(path, "a rule is needed (RMR0147)")


def _principal(message: Any, path: str) -> Condition:
    """config.rbac.v3.Principal."""
    match message.WhichOneof("identifier"):
        case "and_ids":
            return All(_parts(message.and_ids.ids, _principal, f"{path}.and_ids.ids"))
        case "or_ids":
            return Some(_parts(message.or_ids.ids, _principal, f"{path}.or_ids.ids"))
        case "not_id":
            return Not(_principal(message.not_id, f"{path}.not_id"))
        case "any":
            return _any(message.any, path)
        case "authenticated":
            name = message.authenticated.principal_name
            is_named = message.authenticated.HasField("principal_name")
            return PeerIs(string_match(name, f"{path}.authenticated.principal_name") if is_named else None)
        case "source_ip":
            return AddressIn(End.SOCKET, _network(message.source_ip, f"{path}.source_ip"))
        case "direct_remote_ip":
            return AddressIn(End.SOCKET, _network(message.direct_remote_ip, f"{path}.direct_remote_ip"))
        case "remote_ip":
            return AddressIn(End.CLIENT, _network(message.remote_ip, f"{path}.remote_ip"))
        case "header":
            return HeaderIs(header_match(message.header, f"{path}.header"))
        case "url_path":
            return _path(message.url_path, f"{path}.url_path")
        case "metadata":
            return _claim(message.metadata, f"{path}.metadata")
    raise ConfigError(path, "an identifier is needed (RMR0147)")


def _any(value: bool, path: str) -> Condition:
    if not value:
        raise ConfigError(f"{path}.any", "only true is possible (RMR0147)")
    return Always()


def _path(message: Any, path: str) -> Condition:
    if message.WhichOneof("rule") != "path":
        raise ConfigError(path, "path is needed (RMR0147)")
    return PathIs(string_match(message.path, f"{path}.path"))


def _network(message: Any, path: str) -> Network:
    try:
        address = ipaddress.ip_address(message.address_prefix)
        return ipaddress.ip_network((address, message.prefix_len.value), strict=False)
    except ValueError:
        text = f'"{message.address_prefix}/{message.prefix_len.value}" is no network (RMR0147)'
        raise ConfigError(path, text) from None


def _claim(message: Any, path: str) -> Condition:
    """type.matcher.v3.MetadataMatcher."""
    keys = tuple(segment.key for segment in message.path)
    if not message.filter or not keys:
        raise ConfigError(path, "filter and path are needed (RMR0147)")
    value = message.value
    is_in_list = value.WhichOneof("match_pattern") == "list_match"
    if is_in_list:
        value = value.list_match.one_of
    match = _value(value, f"{path}.value")
    return ClaimIs(message.filter, keys, match, is_in_list, message.invert)


def _value(message: Any, path: str) -> HeaderMatch | bool | float | None:
    """type.matcher.v3.ValueMatcher."""
    match message.WhichOneof("match_pattern"):
        case "string_match":
            return string_match(message.string_match, f"{path}.string_match")
        case "bool_match":
            return bool(message.bool_match)
        case "double_match":
            if message.double_match.WhichOneof("match_pattern") != "exact":
                raise ConfigError(f"{path}.double_match", "exact is supported (RMR0147)")
            return float(message.double_match.exact)
        case "present_match":
            if not message.present_match:
                raise ConfigError(f"{path}.present_match", "only true is supported; use invert (RMR0147)")
            return None
    raise ConfigError(path, "string_match, bool_match, double_match, present_match or list_match is needed (RMR0147)")
