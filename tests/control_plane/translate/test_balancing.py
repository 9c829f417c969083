"""LoadBalancingPolicy: what it becomes on clusters, endpoints and routes, and which of several counts."""

from typing import Any, Final

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.route.v3 import route_pb2
from google.protobuf import json_format
from xds.type.v3 import typed_struct_pb2

from control_plane.translate.snapshot import CLUSTER, ENDPOINTS, ROUTES, Snapshot
from proto.mesh.v1 import balancing_pb2
from tests.control_plane.translate.meshes import read

INSTANCES: Final = """
instance stock.shop s1 10.0.0.1:1 region=eu zone=a weight=2
instance stock.shop s2 10.0.0.2:1 region=eu zone=b
instance stock.shop s3 10.0.0.3:1 region=us zone=c
"""


def policy(spec: str, name: str = "balancing", namespace: str = "shop", target: str = "stock", day: int = 1) -> str:
    targets = f"targetRefs: [{{name: {target}}}], " if target else ""
    return f"""---
apiVersion: remora.dev/v1
kind: LoadBalancingPolicy
metadata: {{name: {name}, namespace: {namespace}, creationTimestamp: "2026-01-0{day}T00:00:00Z"}}
spec: {{{targets}{spec}}}
"""


def told(*documents: str) -> Snapshot:
    return read(INSTANCES + "".join(documents)).snapshot()


def cluster(snapshot: Snapshot, name: str = "stock") -> Any:
    return cluster_pb2.Cluster.FromString(snapshot.types[CLUSTER][f"outbound|{name}.shop"])


def localities(snapshot: Snapshot) -> dict[str, tuple[int, int | None]]:
    """Priority and weight by zone."""
    found = endpoint_pb2.ClusterLoadAssignment.FromString(snapshot.types[ENDPOINTS]["outbound|stock.shop"])
    return {
        group.locality.zone: (
            group.priority,
            group.load_balancing_weight.value if group.HasField("load_balancing_weight") else None,
        )
        for group in found.endpoints
    }


def keys(snapshot: Snapshot, name: str = "stock.shop") -> list[Any]:
    table = route_pb2.RouteConfiguration.FromString(snapshot.types[ROUTES]["outbound"])
    [host] = [host for host in table.virtual_hosts if host.name == name]
    return [json_format.MessageToDict(each) for each in host.routes[0].route.hash_policy]


ALGORITHMS: Final[list[tuple[str, str, dict[str, Any]]]] = [
    ("algorithm: Random", "RANDOM", {}),
    ("algorithm: LeastRequest", "LEAST_REQUEST", {}),
    ("algorithm: LeastRequest, choices: 4", "LEAST_REQUEST", {"leastRequestLbConfig": {"choiceCount": 4}}),
    (
        "algorithm: LeastRequest, slowStart: 60s",
        "LEAST_REQUEST",
        {"leastRequestLbConfig": {"slowStartConfig": {"slowStartWindow": "60s"}}},
    ),
    ("slowStart: 5s", "ROUND_ROBIN", {"roundRobinLbConfig": {"slowStartConfig": {"slowStartWindow": "5s"}}}),
    ("algorithm: RingHash, hashOn: [{header: x-user}]", "RING_HASH", {}),
    (
        "algorithm: RingHash, hashOn: [{header: x-user}], ringSize: 4096",
        "RING_HASH",
        {"ringHashLbConfig": {"minimumRingSize": "4096"}},
    ),
    ("algorithm: Maglev, hashOn: [{header: x-user}]", "MAGLEV", {}),
]


@pytest.mark.parametrize(("spec", "name", "more"), ALGORITHMS)
def test_an_algorithm_is_envoys_own(spec: str, name: str, more: dict[str, Any]) -> None:
    made = cluster(told(policy(spec)))
    assert cluster_pb2.Cluster.LbPolicy.Name(made.lb_policy) == name
    shown = json_format.MessageToDict(made)
    assert {key: value for key, value in shown.items() if key.endswith("LbConfig") and key != "commonLbConfig"} == more
    assert shown["commonLbConfig"] == {
        "healthyPanicThreshold": {},
        "zoneAwareLbConfig": {"routingEnabled": {}},
    }, "neither panic nor zones unless somebody asks for them"


def test_peak_ewma_stands_before_what_comes_nearest_in_envoy() -> None:
    made = cluster(told(policy("algorithm: PeakEwma, decay: 5s, penalty: 1s")))
    first, second = (item.typed_extension_config for item in made.load_balancing_policy.policies)
    typed = typed_struct_pb2.TypedStruct()
    assert first.typed_config.Unpack(typed) and typed.type_url == "type.googleapis.com/remora.mesh.v1.PeakEwma"
    ours = json_format.ParseDict(json_format.MessageToDict(typed.value), balancing_pb2.PeakEwma())
    assert (ours.decay.seconds, ours.penalty.seconds) == (5, 1)
    assert second.name == "envoy.load_balancing_policies.least_request"


def test_keys_are_made_where_calls_are_routed() -> None:
    spec = (
        "algorithm: Maglev, hashOn: [{header: x-user, terminal: true}, {cookie: session, cookieTtl: 60s}, "
        "{queryParameter: page}, {source: RemoteAddress}, {source: Path}]"
    )
    assert keys(told(policy(spec))) == [
        {"header": {"headerName": "x-user"}, "terminal": True},
        {"cookie": {"name": "session", "ttl": "60s"}},
        {"queryParameter": {"name": "page"}},
        {"connectionProperties": {"sourceIp": True}},
        {"header": {"headerName": ":path"}},
    ]


def test_a_route_makes_the_keys_that_its_backends_go_by() -> None:
    route = """---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: to-stock, namespace: shop}
spec:
  parentRefs: [{name: front}]
  rules: [{backendRefs: [{name: other, weight: 1}, {name: stock, weight: 9}]}]
"""
    snapshot = told(route, policy("algorithm: Maglev, hashOn: [{header: x-user}]"))
    assert keys(snapshot, "front.shop") == [{"header": {"headerName": "x-user"}}]
    assert keys(snapshot, "other.shop") == []


def test_failover_goes_by_the_order_that_is_named() -> None:
    assert localities(told()) == {"a": (0, 2), "b": (0, 1), "c": (0, 1)}
    assert {zone: place for zone, (place, _) in localities(told(policy("failover: [us, eu/b]"))).items()} == {
        "c": 0,
        "b": 1,
        "a": 2,
    }
    assert {zone: place for zone, (place, _) in localities(told(policy("failover: [asia, us]"))).items()} == {
        "c": 0,
        "b": 1,
        "a": 1,
    }, "levels have no gaps"


def test_weights_of_localities_count_however_many_endpoints_there_are() -> None:
    snapshot = told(policy("localityWeights: {eu: 10, eu/b: 90}"))
    assert localities(snapshot) == {"a": (0, 10), "b": (0, 90), "c": (0, None)}, "the most exact name counts"
    assert cluster(snapshot).common_lb_config.HasField("locality_weighted_lb_config")


def test_zones_count_on_request() -> None:
    made = cluster(told(policy("preferZone: true")))
    zones = made.common_lb_config.zone_aware_lb_config
    assert (zones.routing_enabled.value, zones.min_cluster_size.value) == (100.0, 2)


@pytest.mark.parametrize(
    ("more", "ours"),
    [
        ("", {}),
        (", preferZone: true", {"minZoned": 2}),
        (", localityWeights: {eu: 10}", {"isLocalityWeighted": True}),
    ],
)
def test_peak_ewma_says_itself_what_of_zones_and_localities_counts(more: str, ours: dict[str, Any]) -> None:
    """Envoy refuses a cluster that says it beside a list of policies."""
    made = cluster(told(policy(f"algorithm: PeakEwma{more}")))
    assert [field.name for field, _ in made.common_lb_config.ListFields()] == ["healthy_panic_threshold"]
    typed = typed_struct_pb2.TypedStruct()
    made.load_balancing_policy.policies[0].typed_extension_config.typed_config.Unpack(typed)
    assert json_format.MessageToDict(typed.value) == ours


def test_a_panic_is_had_on_request() -> None:
    assert cluster(told(policy("panicThreshold: 30"))).common_lb_config.healthy_panic_threshold.value == 30


MESH: Final = policy("algorithm: Random", "mesh", "remora-system", "")
NAMESPACE: Final = policy("algorithm: LeastRequest", "all", "shop", "")
OWN: Final = policy("algorithm: Maglev, hashOn: [{header: x-user}]")


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ((MESH,), "RANDOM"),
        ((MESH, NAMESPACE), "LEAST_REQUEST"),
        ((MESH, NAMESPACE, OWN), "MAGLEV"),
        ((policy("algorithm: LeastRequest", "all", "office", ""),), "ROUND_ROBIN"),
        ((OWN, policy("algorithm: Random", "older", day=0 + 1)), "MAGLEV"),
    ],
)
def test_the_policy_closest_to_a_service_counts(documents: tuple[str, ...], expected: str) -> None:
    made = cluster(told(*documents))
    assert cluster_pb2.Cluster.LbPolicy.Name(made.lb_policy) == expected
