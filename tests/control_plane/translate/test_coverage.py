"""The matrix: what each kind of client enforces, and where that leaves a policy."""

from typing import Any, Final

import pytest

from control_plane.resources import kinds
from control_plane.resources.load import load
from control_plane.translate import capabilities
from control_plane.translate.clients import PROXYLESS, SIDECARS, Client, Profile, profile
from control_plane.translate.coverage import Coverage
from proto.mesh.v1 import api_pb2, service_pb2
from tests.control_plane.translate import meshes

BALANCING: Final = """\
apiVersion: remora.dev/v1
kind: LoadBalancingPolicy
metadata: {{name: even, namespace: shop}}
spec: {{targetRefs: [{{name: warehouse}}], algorithm: {0}}}
"""
LIMIT: Final = """\
apiVersion: remora.dev/v1
kind: RateLimitPolicy
metadata: {{name: limit, namespace: shop}}
spec: {{targetRefs: [{{name: warehouse}}], requests: 5, {0}}}
"""
ROUTE: Final = """\
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: split, namespace: shop}
spec: {parentRefs: [{name: warehouse}], rules: [{backendRefs: [{name: warehouse}]}]}
"""
CORE, GO, JAVA = "gRPC C-core linux Python", "gRPC Go", "gRPC Java"
GAPS: Final = [
    (BALANCING.format("RoundRobin"), CORE, []),
    (BALANCING.format("Random"), CORE, ["gRPC C-core has no random balancing; it goes round robin"]),
    (BALANCING.format("LeastRequest"), CORE, ["gRPC C-core has no least request; it goes round robin"]),
    (BALANCING.format("LeastRequest"), f"{JAVA}/1.47.0", ["gRPC Java before 1.48 has no least request; it goes round robin"]),
    (BALANCING.format("LeastRequest"), f"{JAVA}/1.60.1", []),
    (BALANCING.format("LeastRequest"), "envoy", []),
    (BALANCING.format("LeastRequest"), "remora", []),
    (ROUTE, CORE, []),
    (LIMIT.format("interval: 1s"), GO, ["gRPC Go has no rate limit"]),
    (LIMIT.format("interval: 1s"), "envoy", []),
    (LIMIT.format("algorithm: SlidingLog"), "envoy", ["Envoy has no sliding log; it takes a token bucket of the same rate"]),
    (LIMIT.format("algorithm: SlidingLog"), "remora", []),
    (LIMIT.format("mode: Off"), GO, []),
]  # fmt: skip


@pytest.mark.parametrize(("text", "agent", "expected"), GAPS)
def test_what_a_client_does_not_enforce(text: str, agent: str, expected: list[str]) -> None:
    (policy,) = load(text, "f")
    name, _, version = agent.partition("/")
    assert [gap.text for gap in capabilities.gaps(policy, profile(name, version))] == expected


def test_the_matrix_is_about_fields_and_values_that_there_are() -> None:
    """A row of something that a policy cannot ask for yet names a value only; its field must be there."""
    for kind_name, field, value in capabilities.MATRIX:
        kind = kinds.named(kind_name)
        assert kind is not None
        spec = api_pb2.Resource.DESCRIPTOR.fields_by_name[kind.field].message_type
        assert spec is not None
        assert field in spec.fields_by_name, (kind_name, field)
        assert not value or spec.fields_by_name[field].enum_type is not None


def test_what_has_no_row_is_for_sidecars_only() -> None:
    (policy,) = load(LIMIT.format("interval: 1s"), "f")
    for client in Client:
        found = list(capabilities.gaps(policy, Profile(client)))
        assert bool(found) is (client in PROXYLESS) is not (client in SIDECARS)


# -- over a mesh ----------------------------------------------------------------------------------------


def covered(text: str, *agents: str, instances: dict[str, str] | None = None) -> tuple[str, dict[str, list[str]]]:
    """What is said of the policy, and of each node; nodes are `n0`, `n1` … and call, instances stand beside the node named."""
    (policy,) = load(text, "f")
    registered = [
        service_pb2.Instance(id=each, service="warehouse", namespace="shop", address="10.0.0.1", port=1, node_id=node)
        for each, node in (instances or {}).items()
    ]
    state = meshes.state_of([policy], registered)
    nodes = []
    for number, agent in enumerate(agents):
        metadata: dict[str, Any] = {"outbound_port": 15001}
        node = meshes.node_of(f"n{number}", "shop", agent, **metadata)
        nodes.append(node)
    coverage = Coverage(state, nodes)
    of_nodes = {node.service: [missing.gap.text for missing in coverage.of_node(node)] for node in nodes}
    return coverage.summary(policy), {name: found for name, found in of_nodes.items() if found}


def test_a_policy_that_all_callers_enforce() -> None:
    assert covered(BALANCING.format("LeastRequest"), "envoy", "remora") == ("", {})
    assert covered(BALANCING.format("Random")) == ("", {}), "with nobody there"


def test_a_policy_that_some_callers_do_not_enforce() -> None:
    reason = "gRPC C-core has no random balancing; it goes round robin"
    said, of_nodes = covered(BALANCING.format("Random"), "envoy", CORE, "remora", CORE)
    assert said == f"not enforced in full on 2 of 4 nodes: {reason}"
    assert of_nodes == {"n1": [reason], "n3": [reason]}


def test_what_the_callee_enforces_is_asked_of_the_instances() -> None:
    limit = LIMIT.format("interval: 1s")
    beside = {"w0": "n0.shop~1", "w1": "n1.shop~1"}
    assert covered(limit, "envoy", "remora", CORE, instances=beside) == ("", {}), "a proxyless caller needs none"
    said, of_nodes = covered(limit, "envoy", CORE, instances={**beside, "w2": "", "w3": "elsewhere"})
    assert said == (
        "not enforced in full on 2 of 4 instances: no sidecar stands beside w2; gRPC C-core has no rate limit"
    )
    assert of_nodes == {"n1": ["gRPC C-core has no rate limit"]}
