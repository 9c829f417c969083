"""Is a resource valid? The same answer at every entrance: command line, API, Kubernetes."""

import ipaddress
import json
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from google.protobuf.message import Message
from joserfc import jwk
from joserfc.errors import JoseError

from control_plane.resources import regex, resilience, rules
from control_plane.resources.errors import Fault, quoted
from proto.mesh.v1 import api_pb2, policy_pb2, route_pb2, service_pb2

_GRPC_SERVICE: Final = re.compile(r"\.?[A-Za-z_][A-Za-z_0-9]*(\.[A-Za-z_][A-Za-z_0-9]*)*")
_GRPC_METHOD: Final = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
MAX_LOGGED: Final = 10_000
"""Calls whose times a sliding log remembers."""
_FILTER_FIELDS: Final = {
    "RequestHeaderModifier": "request_header_modifier",
    "ResponseHeaderModifier": "response_header_modifier",
    "RequestMirror": "request_mirror",
}
LIMIT_FIELDS: Final = {
    "interval": ("TokenBucket", "LeakyBucket", "SlidingWindow", "SlidingLog", "Gcra"),
    "burst": ("TokenBucket", "Gcra"),
    "max_wait": ("LeakyBucket",),
}
"""Fields of a rate limit that only some algorithms have."""
BALANCING_FIELDS: Final = {
    "hash_on": ("RingHash", "Maglev"),
    "choices": ("LeastRequest",),
    "ring_size": ("RingHash",),
    "slow_start": ("RoundRobin", "LeastRequest"),
    "decay": ("PeakEwma",),
    "penalty": ("PeakEwma",),
}
"""Fields of balancing that only some algorithms have."""
HASH_KEYS: Final = ("header", "cookie", "query_parameter", "source")


def check(resource: api_pb2.Resource) -> list[Fault]:
    """Every fault of a resource; an empty list if it is valid. Fields of the spec are named `spec.…`."""
    found = list(rules.faults(resource))
    spec = resource.WhichOneof("spec")
    if spec is None:
        return found
    spelled = api_pb2.Resource.DESCRIPTOR.fields_by_name[spec].json_name
    found = [Fault(re.sub(rf"^{spelled}\b", "spec", fault.path), fault.text, fault.code) for fault in found]
    if resource.HasField("service"):
        found += _service(resource.service)
        if resource.service.HasField("external"):
            found += _external(resource.service)
    if resource.HasField("grpc_route"):
        found += _route(resource.grpc_route)
    for policy in (
        "load_balancing_policy",
        "rate_limit_policy",
        "authentication_policy",
        "authorization_policy",
        "circuit_breaker_policy",
        "retry_policy",
        "timeout_policy",
        "fault_policy",
    ):
        if resource.HasField(policy):
            found += _targets(getattr(resource, policy).target_refs)
    if resource.HasField("rate_limit_policy"):
        found += _rate_limit(resource.rate_limit_policy)
    if resource.HasField("load_balancing_policy"):
        found += _balancing(resource.load_balancing_policy)
    if resource.HasField("authentication_policy"):
        found += _issuers(resource.authentication_policy)
    if resource.HasField("authorization_policy"):
        found += _authorization(resource.authorization_policy)
    found += resilience.faults(resource)
    return found


def _issuers(spec: policy_pb2.AuthenticationPolicySpec) -> Iterator[Fault]:
    if spec.require and not spec.jwt:
        yield Fault("spec.require", "asks for a token of nobody; name its issuer in spec.jwt", "RMR0024")
    for number, issuer in enumerate(spec.jwt):
        path = f"spec.jwt[{number}]"
        if issuer.issuer in [other.issuer for other in spec.jwt[:number]]:
            yield Fault(f"{path}.issuer", f"{quoted(issuer.issuer)} stands here twice", "RMR0024")
        yield from _keys(issuer.jwks, f"{path}.jwks")


def _keys(text: str, path: str) -> Iterator[Fault]:
    """Errors say nothing of what is in it: it may be a private key."""
    try:
        keys = json.loads(text).get("keys")
    except (ValueError, AttributeError, RecursionError):
        keys = None
    if not isinstance(keys, list) or not keys or not all(isinstance(key, dict) for key in keys):
        yield Fault(path, 'is no JWK Set: a JSON object with a list "keys"', "RMR0024")
        return
    for number, key in enumerate(keys):
        if "d" in key or "k" in key:
            yield Fault(path, f"keys[{number}] is a private key or a secret; give the public one only", "RMR0024")
        elif key.get("kty") not in ("RSA", "EC", "OKP"):
            yield Fault(path, f"keys[{number}] is neither RSA, EC nor OKP", "RMR0024")
        elif not _is_key(key):
            yield Fault(path, f"keys[{number}] cannot be read as a public key of its type", "RMR0024")


def _is_key(key: dict[str, Any]) -> bool:
    """An engine that cannot read one refuses all that a node is told."""
    try:
        return jwk.import_key(key).raw_value is not None
    except (JoseError, ValueError, TypeError, KeyError):
        return False


def _authorization(spec: policy_pb2.AuthorizationPolicySpec) -> Iterator[Fault]:
    for number, rule in enumerate(spec.rules):
        path = f"spec.rules[{number}]"
        for place, source in enumerate(getattr(rule, "from")):
            if not source.ListFields():
                yield Fault(f"{path}.from[{place}]", "names nobody; give one of its fields, or leave it out", "RMR0023")
            for each, identity in enumerate(source.identities):
                if "*" in identity.strip("*") or identity.count("*") > 1:
                    text = f"{quoted(identity)}: one * is possible, at the beginning or at the end"
                    yield Fault(f"{path}.from[{place}].identities[{each}]", text, "RMR0023")
            for each, network in enumerate(source.addresses):
                try:
                    ipaddress.ip_network(network)
                except ValueError as error:
                    text = f"{quoted(network)} is no network, such as 10.0.0.0/8: {error}"
                    yield Fault(f"{path}.from[{place}].addresses[{each}]", text, "RMR0023")
        for place, target in enumerate(rule.to):
            if not target.ListFields():
                yield Fault(f"{path}.to[{place}]", "names no call; give one of its fields, or leave it out", "RMR0023")
            for each, header in enumerate(target.headers):
                if header.type == "RegularExpression":
                    yield from _regexes(f"{path}.to[{place}].headers[{each}]", value=header.value)


def _foreign_fields(spec: Any, chosen: str, fields: Mapping[str, tuple[str, ...]], code: str) -> Iterator[Fault]:
    """Fields that the chosen algorithm does not have."""
    set_fields = {field.name for field, _ in spec.ListFields()}
    for field, takers in fields.items():
        if field in set_fields and chosen and chosen not in takers:
            name = spec.DESCRIPTOR.fields_by_name[field].json_name
            yield Fault(
                f"spec.{name}", f"means nothing with {chosen}; only with {', '.join(takers)}: leave it out", code
            )


def _balancing(spec: policy_pb2.LoadBalancingPolicySpec) -> Iterator[Fault]:
    algorithm = policy_pb2.LoadBalancingPolicySpec.Algorithm
    chosen = algorithm.Name(spec.algorithm) if spec.algorithm in algorithm.values() else ""
    yield from _foreign_fields(spec, chosen, BALANCING_FIELDS, "RMR0019")
    if chosen in BALANCING_FIELDS["hash_on"] and not spec.hash_on:
        text = f"is empty, so {chosen} has no key to go by; name a header, a cookie, a query parameter or a source"
        yield Fault("spec.hashOn", text, "RMR0019")
    if spec.prefer_zone and (spec.locality_weights or chosen in BALANCING_FIELDS["hash_on"]):
        other = "localityWeights" if spec.locality_weights else chosen
        yield Fault("spec.preferZone", f"does not go with {other}; leave one out", "RMR0019")
    if spec.choices == 1:
        yield Fault("spec.choices", "1 leaves no choice; take 2 or more, or algorithm: Random", "RMR0019")
    for number, key in enumerate(spec.hash_on):
        path = f"spec.hashOn[{number}]"
        if sum(bool(getattr(key, name)) for name in HASH_KEYS) != 1:
            yield Fault(path, "one of header, cookie, queryParameter and source must be given", "RMR0019")
        if key.HasField("cookie_ttl") and not key.cookie:
            yield Fault(f"{path}.cookieTtl", "means nothing without cookie; leave it out", "RMR0019")
    for number in _repeated(tuple(getattr(key, name) for name in HASH_KEYS) for key in spec.hash_on):
        yield Fault(f"spec.hashOn[{number}]", "stands twice; once is enough", "RMR0015")
    for number in _repeated(spec.failover):
        yield Fault(f"spec.failover[{number}]", f"{quoted(spec.failover[number])} stands twice; keep one", "RMR0015")
    for field, names in (("failover", list(spec.failover)), ("localityWeights", sorted(spec.locality_weights))):
        for number, name in enumerate(names):
            if not all(name.split("/")) or name.count("/") > 2:
                text = f"{quoted(name)} is no locality; write REGION, REGION/ZONE or REGION/ZONE/SUBZONE"
                place = f"[{number}]" if field == "failover" else ""
                yield Fault(f"spec.{field}{place}", text, "RMR0019")


def _rate_limit(spec: policy_pb2.RateLimitPolicySpec) -> Iterator[Fault]:
    algorithm = policy_pb2.RateLimitPolicySpec.Algorithm
    chosen = algorithm.Name(spec.algorithm) if spec.algorithm in algorithm.values() else ""
    yield from _foreign_fields(spec, chosen, LIMIT_FIELDS, "RMR0018")
    if chosen == "SlidingLog" and spec.requests > MAX_LOGGED:
        text = f"{spec.requests} times would be remembered for each key; at most {MAX_LOGGED} with SlidingLog, or take SlidingWindow"
        yield Fault("spec.requests", text, "RMR0018")
    if spec.max_keys and not spec.keys:
        yield Fault("spec.maxKeys", "means nothing without keys; name some, or leave it out", "RMR0018")
    for number, key in enumerate(spec.keys):
        if bool(key.header) is bool(key.source):
            yield Fault(f"spec.keys[{number}]", "one of header and source must be given", "RMR0018")
    for number in _repeated((key.header, key.source) for key in spec.keys):
        yield Fault(f"spec.keys[{number}]", "stands twice; once is enough", "RMR0015")


def _service(spec: service_pb2.ServiceSpec) -> Iterator[Fault]:
    for number in _repeated(port.port for port in spec.ports):
        yield Fault(f"spec.ports[{number}].port", f"{spec.ports[number].port} stands twice; keep one", "RMR0015")
    called = spec.dependencies.services
    for number in _repeated((each.namespace, each.name) for each in called):
        text = f"{quoted(called[number].name)} is named twice; once is enough"
        yield Fault(f"spec.dependencies.services[{number}].name", text, "RMR0015")


def _external(spec: service_pb2.ServiceSpec) -> Iterator[Fault]:
    external, path = spec.external, "spec.external"
    if bool(external.dns) == bool(external.addresses):
        yield Fault(path, "says not where it is; give dns, or addresses, and not both", "RMR0025")
    if external.dns and not external.port:
        yield Fault(f"{path}.port", "is missing; a name needs the port behind it", "RMR0025")
    if external.addresses and external.port:
        yield Fault(f"{path}.port", "means nothing with addresses; give each its own", "RMR0025")
    if spec.selector:
        yield Fault("spec.selector", "means nothing with external; leave one of them out", "RMR0025")
    for number in _repeated((each.address, each.port) for each in external.addresses):
        text = f"{quoted(external.addresses[number].address)} stands twice with one port; keep one"
        yield Fault(f"{path}.addresses[{number}].address", text, "RMR0015")


def _route(spec: route_pb2.GRPCRouteSpec) -> Iterator[Fault]:
    for number in _repeated((parent.namespace, parent.name, parent.port) for parent in spec.parent_refs):
        parent = spec.parent_refs[number]
        yield Fault(
            f"spec.parentRefs[{number}].name", f"{quoted(parent.name)} is named twice; once is enough", "RMR0015"
        )
    for number in _repeated(rule.name or index for index, rule in enumerate(spec.rules)):
        name = spec.rules[number].name
        yield Fault(f"spec.rules[{number}].name", f"{quoted(name)} names two rules; give each its own", "RMR0015")
    for number, rule in enumerate(spec.rules):
        path = f"spec.rules[{number}]"
        if not rule.backend_refs:
            yield Fault(f"{path}.backendRefs", "is empty; name at least one backend", "RMR0011")
        elif not any(weight(backend) for backend in rule.backend_refs):
            yield Fault(
                f"{path}.backendRefs", "weights add up to 0; give at least one backend a weight above 0", "RMR0012"
            )
        yield from _filters(path, rule.filters)
        for place, match in enumerate(rule.matches):
            yield from _match(f"{path}.matches[{place}]", match)


def _filters(path: str, filters: Sequence[route_pb2.RouteFilter]) -> Iterator[Fault]:
    """Filters of a rule: each has the field of its type and no other, and none but a mirror stands twice."""
    for number, each in enumerate(filters):
        wanted = _FILTER_FIELDS.get(each.type, "")
        given = {field.name for field, _ in each.ListFields()} - {"type"}
        if wanted and given != {wanted}:
            name = each.DESCRIPTOR.fields_by_name[wanted].json_name
            yield Fault(f"{path}.filters[{number}]", f"{each.type} needs the field {name}, and no other", "RMR0022")
        mirror = each.request_mirror
        if mirror.HasField("percent") and mirror.HasField("fraction"):
            yield Fault(
                f"{path}.filters[{number}].requestMirror.percent", "goes not with fraction; give one of them", "RMR0022"
            )
        whole = mirror.fraction.denominator or 100
        if mirror.fraction.numerator > whole:
            text = f"{mirror.fraction.numerator} of {whole} is more than all; at most {whole} is possible"
            yield Fault(f"{path}.filters[{number}].requestMirror.fraction.numerator", text, "RMR0022")
        for field in ("request_header_modifier", "response_header_modifier"):
            yield from _headers_changed(f"{path}.filters[{number}].{_json_name(each, field)}", getattr(each, field))
    for number in _repeated(each.type if each.type != "RequestMirror" else index for index, each in enumerate(filters)):
        yield Fault(f"{path}.filters[{number}].type", f"{filters[number].type} stands twice; write it once", "RMR0015")


def _json_name(message: Message, field: str) -> str:
    return str(message.DESCRIPTOR.fields_by_name[field].json_name)


def _headers_changed(path: str, modifier: route_pb2.HeaderModifier) -> Iterator[Fault]:
    named = [(f"{path}.set[{n}].name", item.name) for n, item in enumerate(modifier.set)]
    named += [(f"{path}.add[{n}].name", item.name) for n, item in enumerate(modifier.add)]
    named += [(f"{path}.remove[{n}]", name) for n, name in enumerate(modifier.remove)]
    for number in _repeated(name.lower() for _, name in named):
        place, name = named[number]
        yield Fault(place, f"{quoted(name)} is changed twice; once is enough", "RMR0015")
    for place, name in named:
        if name.lower() == "host" or name.lower().startswith("grpc-") or name.lower() in ("te", "content-type"):
            yield Fault(place, f"{quoted(name)} belongs to the protocol; routes do not change it", "RMR0022")


def _match(path: str, match: route_pb2.GRPCRouteMatch) -> Iterator[Fault]:
    if match.HasField("method"):
        method = match.method
        if not method.service and not method.method:
            yield Fault(f"{path}.method", "names neither service nor method; give one, or leave it out", "RMR0013")
        if method.type == "RegularExpression":
            yield from _regexes(f"{path}.method", service=method.service, method=method.method)
        else:
            yield from _grpc_names(f"{path}.method", method)
    for number in _repeated(header.name for header in match.headers):
        text = f"{quoted(match.headers[number].name)} is matched twice; keep one"
        yield Fault(f"{path}.headers[{number}].name", text, "RMR0015")
    for number, header in enumerate(match.headers):
        if header.type == "RegularExpression":
            yield from _regexes(f"{path}.headers[{number}]", value=header.value)


def _grpc_names(path: str, method: route_pb2.GRPCMethodMatch) -> Iterator[Fault]:
    """What an exact match names must be able to be the name of a service and a method (Gateway API: GRPCMethodMatch)."""
    if method.service and not _GRPC_SERVICE.fullmatch(method.service):
        text = f"{quoted(method.service)} is no full name of a gRPC service, such as bookstore.v1.Warehouse"
        yield Fault(f"{path}.service", text, "RMR0017")
    if method.method and not _GRPC_METHOD.fullmatch(method.method):
        yield Fault(
            f"{path}.method", f"{quoted(method.method)} is no name of a gRPC method, such as Reserve", "RMR0017"
        )


def _regexes(path: str, **patterns: str) -> Iterator[Fault]:
    for name, pattern in patterns.items():
        reason = regex.fault(pattern)
        if reason is not None:
            yield Fault(
                f"{path}.{name}", f"{quoted(pattern)} is no regular expression that is taken: {reason}", "RMR0014"
            )


def _targets(targets: Iterable[policy_pb2.TargetRef]) -> Iterator[Fault]:
    names = [target.name for target in targets]
    for number in _repeated(names):
        yield Fault(
            f"spec.targetRefs[{number}].name", f"{quoted(names[number])} is named twice; once is enough", "RMR0015"
        )


def _repeated(values: Iterable[Hashable]) -> Iterator[int]:
    """Where a value stands that stood before."""
    seen: set[Hashable] = set()
    for number, value in enumerate(values):
        if value in seen:
            yield number
        seen.add(value)


def weight(backend: route_pb2.BackendRef) -> int:
    """A backend's share: 1 unless it says otherwise (Gateway API)."""
    return backend.weight if backend.HasField("weight") else 1
