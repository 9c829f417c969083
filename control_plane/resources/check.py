"""Is a resource valid? The same answer at every entrance: command line, API, Kubernetes."""

import re
from collections.abc import Iterable, Iterator

from control_plane.resources import rules
from control_plane.resources.errors import Fault
from proto.mesh.v1 import api_pb2, policy_pb2, route_pb2


def check(resource: api_pb2.Resource) -> list[Fault]:
    """Every fault of a resource; an empty list if it is valid. Fields of the spec are named `spec.…`."""
    found = list(rules.faults(resource))
    spec = resource.WhichOneof("spec")
    if spec is None:
        return found
    spelled = api_pb2.Resource.DESCRIPTOR.fields_by_name[spec].json_name
    found = [Fault(re.sub(rf"^{spelled}\b", "spec", fault.path), fault.text, fault.code) for fault in found]
    if resource.HasField("grpc_route"):
        found += _route(resource.grpc_route)
    for policy in ("load_balancing_policy", "rate_limit_policy"):
        if resource.HasField(policy):
            found += _targets(getattr(resource, policy).target_refs)
    return found


def _route(spec: route_pb2.GRPCRouteSpec) -> Iterator[Fault]:
    for number, rule in enumerate(spec.rules):
        path = f"spec.rules[{number}]"
        if not rule.backend_refs:
            yield Fault(f"{path}.backendRefs", "is empty; name at least one backend", "RMR0011")
        elif not any(weight(backend) for backend in rule.backend_refs):
            yield Fault(
                f"{path}.backendRefs", "weights add up to 0; give at least one backend a weight above 0", "RMR0012"
            )
        for place, match in enumerate(rule.matches):
            where = f"{path}.matches[{place}]"
            if match.HasField("method"):
                method = match.method
                if not method.service and not method.method:
                    yield Fault(
                        f"{where}.method", "names neither service nor method; give one, or leave it out", "RMR0013"
                    )
                if method.type == "RegularExpression":
                    yield from _regexes(f"{where}.method", service=method.service, method=method.method)
            for index, header in enumerate(match.headers):
                if header.type == "RegularExpression":
                    yield from _regexes(f"{where}.headers[{index}]", value=header.value)


def _regexes(path: str, **patterns: str) -> Iterator[Fault]:
    for name, pattern in patterns.items():
        try:
            re.compile(pattern)
        except re.error as error:
            yield Fault(f"{path}.{name}", f'"{pattern}" is no regular expression: {error}', "RMR0014")


def _targets(targets: Iterable[policy_pb2.TargetRef]) -> Iterator[Fault]:
    seen: set[str] = set()
    for number, target in enumerate(targets):
        if target.name in seen:
            yield Fault(f"spec.targetRefs[{number}].name", f'"{target.name}" is named twice; once is enough', "RMR0015")
        seen.add(target.name)


def weight(backend: route_pb2.BackendRef) -> int:
    """A backend's share: 1 unless it says otherwise (Gateway API)."""
    return backend.weight if backend.HasField("weight") else 1
