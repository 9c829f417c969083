"""What gRPC's own xDS clients are told: by the names that they ask for, and only what they honour."""

from typing import Any, Final

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import health_check_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from google.protobuf import json_format

from control_plane.resources import rules
from control_plane.resources.load import load
from control_plane.translate import proxyless, resources, view
from control_plane.translate.clients import NEWEST, Client, Profile, profile
from control_plane.translate.snapshot import CLUSTER, ENDPOINTS, LISTENER, ROUTES, Snapshot, build
from proto.mesh.v1 import policy_pb2, service_pb2
from tests.control_plane.translate import meshes

CORE: Final = "gRPC C-core linux Python"
SPLIT: Final = """\
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: split, namespace: shop}
spec:
  parentRefs: [{name: warehouse, port: 50052}]
  rules:
  - matches:
    - method: {service: bookstore.v1.Warehouse}
      headers: [{name: tester, value: ada}, {name: version, type: RegularExpression, value: "v[12]"}]
    backendRefs: [{name: warehouse-v1, weight: 3}, {name: warehouse-v2}]
---
apiVersion: remora.dev/v1
kind: Service
metadata: {name: warehouse, namespace: shop}
spec: {ports: [{port: 50051}, {port: 50052}]}
"""


def told(text: str, *, namespace: str = "shop", agent: str = CORE, **metadata: Any) -> Snapshot:
    instance = service_pb2.Instance(id="w", service="cart", namespace="shop", address="10.0.0.1", port=1)
    state = meshes.state_of(load(text, "f"), [instance])
    return build(view.mesh(state), meshes.node_of("cart", namespace, agent, **metadata))


def test_a_service_is_a_target_by_each_of_its_names() -> None:
    ports = {"warehouse": ("", ":50051", ":50052"), "warehouse-v1": ("",), "warehouse-v2": ("",), "cart": ("",)}
    assert set(told(SPLIT).types[LISTENER]) == {
        f"{name}{namespace}{port}" for name in ports for namespace in ("", ".shop") for port in ports[name]
    }
    abroad = told(SPLIT, namespace="office")
    assert "warehouse.shop:50051" in abroad.types[LISTENER] and "warehouse" not in abroad.types[LISTENER]
    assert not abroad.dangling()


def test_rules_for_a_port_are_a_table_of_their_own() -> None:
    snapshot = told(SPLIT)
    plain, own = (
        route_pb2.RouteConfiguration.FromString(snapshot.types[ROUTES][name]).virtual_hosts[0]
        for name in ("grpc|warehouse.shop", "grpc|warehouse.shop:50052")
    )
    assert plain.domains == own.domains == ["*"]
    assert [route.route.cluster for route in plain.routes] == ["outbound|warehouse.shop"]
    (route,) = own.routes
    assert route.match.prefix == "/bookstore.v1.Warehouse/"
    exact, pattern = route.match.headers
    assert (exact.exact_match, pattern.safe_regex_match.regex) == ("ada", "v[12]"), "in the form that all versions take"
    assert [(share.name, share.weight.value) for share in route.route.weighted_clusters.clusters] == [
        ("outbound|warehouse-v1.shop", 3),
        ("outbound|warehouse-v2.shop", 1),
    ]
    assert not route.route.HasField("retry_policy"), "of which gRPC knows none of the conditions"


BALANCING: Final = [
    # (what is asked for, who asks, what it gets)
    ("RoundRobin", CORE, "", "ROUND_ROBIN"),
    ("Random", CORE, "", "ROUND_ROBIN"),
    ("LeastRequest", CORE, "C-core 58.0.0 Python 1.85.3", "ROUND_ROBIN"),
    ("LeastRequest", "gRPC Java", "1.47.0", "ROUND_ROBIN"),
    ("LeastRequest", "gRPC Java", "1.48.0", "LEAST_REQUEST"),
]


@pytest.mark.parametrize(("algorithm", "agent", "version", "expected"), BALANCING)
def test_a_way_to_balance_that_a_client_would_refuse_is_not_sent_to_it(
    algorithm: str, agent: str, version: str, expected: str
) -> None:
    spec = policy_pb2.LoadBalancingPolicySpec(algorithm=policy_pb2.LoadBalancingPolicySpec.Algorithm.Value(algorithm))
    given = resources.cluster("outbound|a.b", spec.SerializeToString(deterministic=True))
    sent = cluster_pb2.Cluster.FromString(proxyless.cluster(given, profile(agent, version)))
    assert cluster_pb2.Cluster.LbPolicy.Name(sent.lb_policy) == expected
    (threshold,) = sent.circuit_breakers.thresholds
    assert [field.name for field, _ in threshold.ListFields()] == ["max_requests"]
    assert not sent.typed_extension_protocol_options


def test_of_a_route_action_only_what_grpc_honours() -> None:
    given = json_format.ParseDict(
        {
            "name": "r",
            "match": {"path": "/a/b"},
            "route": {
                "cluster": "c",
                "timeout": "3s",
                "retryPolicy": {
                    "retryOn": "connect-failure,unavailable,5xx,cancelled",
                    "numRetries": 3,
                    "retryBackOff": {"baseInterval": "0.1s"},
                    "perTryTimeout": "1s",
                },
                "hashPolicy": [{"header": {"headerName": "user"}}, {"cookie": {"name": "c"}}],
                "requestMirrorPolicies": [{"cluster": "d"}],
            },
        },
        route_components_pb2.Route(),
    )
    host = route_components_pb2.VirtualHost(name="h", domains=["h"], routes=[given])
    data = proxyless._table("t", host.SerializeToString(), Profile(Client.GO))
    (route,) = route_pb2.RouteConfiguration.FromString(data).virtual_hosts[0].routes
    assert json_format.MessageToDict(route.route) == {
        "cluster": "c",
        "maxStreamDuration": {"maxStreamDuration": "3s"},
        "retryPolicy": {
            "retryOn": "unavailable,cancelled",
            "numRetries": 3,
            "retryBackOff": {"baseInterval": "0.100s"},
        },
        "hashPolicy": [{"header": {"headerName": "user"}}],
    }


@pytest.mark.parametrize(
    "fields",
    [{"retriableRequestHeaders": [{"name": "idempotency-key", "presentMatch": True}]}, {"numRetries": 0}],
    ids=["only some calls", "none"],
)
def test_what_may_not_be_repeated_by_everybody_is_repeated_by_nobody(fields: dict[str, Any]) -> None:
    given = json_format.ParseDict(
        {"match": {"prefix": "/"}, "route": {"cluster": "c", "retryPolicy": {"retryOn": "unavailable", **fields}}},
        route_components_pb2.Route(),
    )
    assert not proxyless._route(given).route.HasField("retry_policy")


def test_faults_of_a_policy_are_those_that_grpc_injects() -> None:
    text = """\
apiVersion: remora.dev/v1
kind: FaultPolicy
metadata: {name: faults, namespace: shop}
spec:
  targetRefs: [{name: cart}]
  delay: {duration: 0.1s, percent: 50}
  abort: {status: UNAVAILABLE, percent: 10}
  maxActive: 7
"""
    table = route_pb2.RouteConfiguration.FromString(told(text).types[ROUTES]["grpc|cart.shop"])
    fault = fault_pb2.HTTPFault()
    assert table.virtual_hosts[0].routes[0].typed_per_filter_config["fault"].Unpack(fault)
    assert (fault.abort.grpc_status, fault.abort.percentage.numerator, fault.max_active_faults.value) == (
        14,
        100_000,
        7,
    )
    assert fault.delay.fixed_delay.nanos == 100_000_000
    listener = listener_pb2.Listener.FromString(told(text).types[LISTENER]["cart.shop"])
    manager = http_connection_manager_pb2.HttpConnectionManager()
    assert listener.api_listener.api_listener.Unpack(manager)
    assert [each.name for each in manager.http_filters] == ["fault", "envoy.filters.http.router"]
    some = route_pb2.RouteConfiguration.FromString(
        told(text + "  headers: {tester: ada}\n").types[ROUTES]["grpc|cart.shop"]
    )
    assert not some.virtual_hosts[0].routes[0].typed_per_filter_config, "which gRPC would inject into all calls"


def test_of_two_endpoints_with_one_address_the_better_one_stays() -> None:
    message = endpoint_pb2.ClusterLoadAssignment(cluster_name="c")
    for zone, statuses in {"a": ("UNHEALTHY", "HEALTHY"), "b": ("HEALTHY", "DRAINING"), "c": ("DRAINING",)}.items():
        group = message.endpoints.add()
        group.locality.zone = zone
        for number, status in enumerate(statuses):
            endpoint = group.lb_endpoints.add(health_status=health_check_pb2.HealthStatus.Value(status))
            endpoint.endpoint.address.socket_address.address = "10.0.0.1"
            endpoint.endpoint.address.socket_address.port_value = number + 1
            endpoint.load_balancing_weight.value = number + 2
        group.load_balancing_weight.value = 100
    sent = endpoint_pb2.ClusterLoadAssignment.FromString(proxyless.endpoints(message.SerializeToString()))
    found = {
        group.locality.zone: (
            group.load_balancing_weight.value,
            [each.endpoint.address.socket_address.port_value for each in group.lb_endpoints],
        )
        for group in sent.endpoints
    }
    assert found == {"a": (3, [2]), "b": (2, [1])}
    del message.endpoints[1:]
    data = message.SerializeToString()
    assert proxyless.endpoints(data) is data


def test_a_server_finds_its_listener_however_it_listens() -> None:
    snapshot = told("apiVersion: remora.dev/v1\nkind: Service\nmetadata: {name: a}\nspec: {}\n", app_port=50051)
    names = [name for name in snapshot.types[LISTENER] if name.startswith("grpc/server")]
    assert sorted(names) == [
        f"grpc/server?xds.resource.listening_address={host}:50051" for host in ("0.0.0.0", "127.0.0.1", "[::1]", "[::]")
    ]
    for name in names:
        listener = listener_pb2.Listener.FromString(snapshot.types[LISTENER][name])
        where = listener.address.socket_address
        shown = f"[{where.address}]" if ":" in where.address else where.address
        assert name.endswith(f"={shown}:{where.port_value}")
        assert not list(rules.faults(listener))


def test_nothing_that_only_sidecars_have_is_there() -> None:
    snapshot = told(SPLIT, inbound_port=1, app_port=2, outbound_port=3)
    assert all(name.startswith("outbound|") for name in (*snapshot.types[CLUSTER], *snapshot.types[ENDPOINTS]))
    assert all(name.startswith("grpc|") for name in snapshot.types[ROUTES])
    assert not {"inbound", "outbound", "outbound_mesh"} & set(snapshot.types[LISTENER])


AGENTS: Final = [
    ("gRPC C-core linux Python", "C-core 58.0.0 Python 1.85.3", Profile(Client.CORE, (1, 85))),
    ("gRPC C-core linux C++", "C-core 58.0.0", Profile(Client.CORE, NEWEST)),
    ("gRPC Go", "1.70.0-dev", Profile(Client.GO, (1, 70))),
    ("gRPC Java", "1.48.2", Profile(Client.JAVA, (1, 48))),
    ("gRPC Node Pure JS", "1.10.0", Profile(Client.NODE, (1, 10))),
    ("envoy", "", Profile(Client.ENVOY, NEWEST)),
    ("remora", "0.1.0", Profile(Client.REMORA, NEWEST)),
    ("", "", Profile(Client.REMORA, NEWEST)),
    ("gRPC Go", "1" * 1000, Profile(Client.GO, NEWEST)),
]


@pytest.mark.parametrize(("agent", "version", "expected"), AGENTS)
def test_who_a_client_is(agent: str, version: str, expected: Profile) -> None:
    assert profile(agent, version) == expected
