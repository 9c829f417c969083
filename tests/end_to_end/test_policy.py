"""From `remora apply` to what calls do: in force when the command returns, and said when it cannot be."""

import queue
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from time import monotonic
from typing import Any, Final

import grpc
import pytest
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from google.rpc import status_pb2

from tests.mesh import NO_PROXY, Caller, Mesh
from tests.waiting import eventually

CLUSTER: Final = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
ROUTE: Final = """
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {{name: {name}}}
spec:
  parentRefs: [{{name: {service}}}]
  rules:
  - backendRefs: [{backends}]
"""
VERSION: Final = """
apiVersion: remora.dev/v1
kind: Service
metadata: {{name: {service}-{version}}}
spec: {{selector: {{service: {service}, version: {version}}}}}
---"""
BALANCING: Final = """
apiVersion: remora.dev/v1
kind: LoadBalancingPolicy
metadata: {{name: balancing}}
spec: {{targetRefs: [{{name: {service}}}], {more}}}
"""
LIMIT: Final = """
apiVersion: remora.dev/v1
kind: RateLimitPolicy
metadata: {{name: limit}}
spec:
  targetRefs: [{{name: {service}}}]
  requests: 5
  interval: 1h
"""


def split(service: str, v1: int, v2: int) -> str:
    """A route by weight between the versions of a service."""
    backends = f"{{name: {service}-v1, weight: {v1}}}, {{name: {service}-v2, weight: {v2}}}"
    return ROUTE.format(name=service, service=service, backends=backends)


def refusal(caller: Caller, stub: Any) -> str:
    """Status and message of a call that fails; empty if it does not."""
    try:
        caller.says(stub)
    except grpc.RpcError as error:
        failed: Any = error
        return f"{failed.code().name}: {failed.details()}"
    return ""


@pytest.mark.parametrize("engine", ["remora", "envoy"])
def test_a_split_is_in_force_when_the_command_returns(guests: Mesh, engine: str) -> None:
    service = f"split-{engine}"
    for version in ("v1", "v2"):
        guests.echo(version, service, options=("--version", version), is_awaited=False)
    guests.until_healthy("v1", "v2", service=service)
    caller = guests.caller(engine)
    stub = caller.stub(f"{service}:80")
    guests.apply(VERSION.format(service=service, version="v1") + VERSION.format(service=service, version="v2"))
    for v1, v2, expected in ((0, 1, {"v2"}), (1, 0, {"v1"}), (1, 1, {"v1", "v2"})):
        said = guests.apply(split(service, v1, v2), "--wait").err
        assert "acknowledged by" in said
        assert {caller.says(stub) for _ in range(40)} == expected
    assert guests.remora("delete", "grpcroute", service, "--wait").code == 0
    assert {caller.says(stub) for _ in range(40)} == {"v1", "v2"}


def test_both_engines_send_a_user_to_the_same_instance(guests: Mesh) -> None:
    service = "sticky"
    for name in ("one", "two", "three"):
        guests.echo(name, service, is_awaited=False)
    guests.until_healthy("one", "two", "three", service=service)
    callers = [guests.caller(engine) for engine in ("remora", "envoy")]
    stubs = [caller.stub(f"{service}:80") for caller in callers]
    for algorithm in ("Maglev", "RingHash"):
        guests.apply(
            BALANCING.format(service=service, more=f"algorithm: {algorithm}, hashOn: [{{header: x-user}}]"), "--wait"
        )
        found = [
            [caller.says(stub, metadata=(("x-user", f"user-{number}"),)) for number in range(30)]
            for caller, stub in zip(callers, stubs, strict=True)
        ]
        assert found[0] == found[1]
        assert set(found[0]) == {"one", "two", "three"}
    said = guests.apply(BALANCING.format(service=service, more="algorithm: PeakEwma"), "--wait").err
    assert "acknowledged by" in said
    for caller, stub in zip(callers, stubs, strict=True):
        assert {caller.says(stub) for _ in range(40)} <= {"one", "two", "three"}


def test_calls_stay_near_and_fail_over_in_the_order_that_is_named(guests: Mesh) -> None:
    """Instances of the caller's own service run in two zones, as those of the service that it calls do."""
    for service, name, zone in (("home", "h1", "a"), ("home", "h2", "b"), ("near", "here", "a")):
        guests.echo(name, service, options=("--locality", f"eu/{zone}"), is_awaited=False)
    there = guests.echo("there", "near", options=("--locality", "eu/b"))
    guests.until_healthy("h1", "h2", service="home")
    guests.until_healthy("here", "there", service="near")
    callers = [guests.caller(engine, "home", "eu/a") for engine in ("remora", "envoy")]
    stubs = [caller.stub("near:80") for caller in callers]

    def heard(calls: int = 40) -> list[set[str]]:
        return [{caller.says(stub) for _ in range(calls)} for caller, stub in zip(callers, stubs, strict=True)]

    assert heard() == [{"here", "there"}] * 2
    guests.apply(BALANCING.format(service="near", more="preferZone: true"), "--wait")
    assert heard() == [{"here"}] * 2
    guests.apply(BALANCING.format(service="near", more="failover: [eu/b, eu/a]"), "--wait")
    assert heard() == [{"there"}] * 2
    there.stop()
    assert heard() == [{"here"}] * 2


@pytest.mark.parametrize("engine", ["remora", "envoy"])
def test_a_route_to_a_service_that_is_not_there_yet_waits_for_it(guests: Mesh, engine: str) -> None:
    """Order does not matter: the route is stored and says so, calls are told, and flow once the service is there."""
    name = f"future-{engine}"
    caller = guests.caller(engine)
    stub = caller.stub(f"{name}:80")
    said = guests.apply(ROUTE.format(name=name, service=name, backends=f"{{name: {name}-backend}}"), "--wait").err
    assert f"no service {name}-backend.default yet; calls to it get UNAVAILABLE" in said
    text = refusal(caller, stub)
    assert text.startswith("UNAVAILABLE: "), text
    if engine == "remora":  # Envoy's own words are "no healthy upstream"
        assert f"{name}-backend.default" in text and "(flag UH)" in text, text
    guests.echo("came-1", f"{name}-backend")
    eventually(lambda: refusal(caller, stub) == "", message="calls do not flow")
    assert caller.says(stub) == "came-1"
    guests.remora("delete", "grpcroute", name)


def test_calls_to_a_name_that_nobody_has_are_told_so(guests: Mesh) -> None:
    caller = guests.caller()
    assert 'UNAVAILABLE: no service named "nobody:80" in the mesh' in refusal(caller, caller.stub("nobody:80"))


@pytest.mark.parametrize("engine", ["remora", "envoy"])
def test_a_rate_limit_is_in_force_at_once_and_gone_when_it_is_deleted(guests: Mesh, engine: str) -> None:
    """Also for calls on connections that stood before."""
    service = f"limited-{engine}"
    guests.echo("limited-1", service, engine=engine)
    caller = guests.caller()
    stub = caller.stub(f"{service}:80")
    eventually(lambda: refusal(caller, stub) == "")
    guests.apply(LIMIT.format(service=service), "--wait")
    outcomes = [refusal(caller, stub) for _ in range(12)]
    assert outcomes.count("") == 5
    refused = next(text for text in outcomes if text)
    assert refused.startswith("RESOURCE_EXHAUSTED: "), refused
    if engine == "remora":  # Envoy's own words are "local_rate_limited"
        assert 'rate limit "default/limit"' in refused and "(flag RL)" in refused, refused
    assert guests.remora("delete", "ratelimitpolicy", "limit", "--wait").code == 0
    assert [refusal(caller, stub) for _ in range(12)] == [""] * 12


class Node:
    """A data plane that asks, and answers as the test wants."""

    def __init__(self, stream: Any, requests: "queue.SimpleQueue[Any]") -> None:
        self._responses = stream
        self._requests = requests
        self.last = next(stream)

    def refuse(self, reason: str) -> None:
        """NACK the last response."""
        request = discovery_pb2.DiscoveryRequest(type_url=CLUSTER, response_nonce=self.last.nonce)
        request.error_detail.CopyFrom(status_pb2.Status(code=3, message=reason))
        self._requests.put(request)


@contextmanager
def connected(mesh: Mesh, name: str) -> Iterator[Node]:
    """A node that has its first clusters, and has not said that it took them."""
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    first = discovery_pb2.DiscoveryRequest(type_url=CLUSTER)
    first.node.id = name
    first.node.metadata.update({"service": "stubborn", "namespace": "default"})
    requests.put(first)
    with grpc.insecure_channel(mesh.server, options=list(NO_PROXY)) as channel:
        stub = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)
        stream = stub.StreamAggregatedResources(iter(requests.get, None), timeout=60)
        yield Node(stream, requests)
        requests.put(None)
        stream.cancel()


@contextmanager
def node(mesh: Mesh, name: str) -> Iterator[Node]:
    """The same in a mesh that others use too: nobody waits for it afterwards."""
    with connected(mesh, name) as each:
        yield each
    eventually(lambda: name not in mesh.remora("status").out)


def test_a_node_that_never_answers_is_waited_for_and_named(shared: Mesh) -> None:
    with node(shared, "stubborn~1"):
        start = monotonic()
        result = shared.remora("apply", "--wait", "--timeout", "1s", "-f", "-", text=split("any", 1, 1))
        assert result.code == 4
        assert 1 <= monotonic() - start < 20
        assert result.out == "GRPCRoute default/any created\n"  # it is stored
        assert "stubborn~1 has not answered" in result.err and "1 of " in result.err
        late = shared.remora("delete", "grpcroute", "any", "--wait", "--timeout", "500ms")
        assert late.code == 4 and "stubborn~1" in late.err


def test_a_node_that_refuses_is_named_with_its_own_words(shared: Mesh) -> None:
    with node(shared, "stubborn~2") as stubborn:
        stubborn.refuse("colour is not supported here")
        eventually(lambda: "colour is not supported here" in shared.remora("status").out)
        result = shared.remora("apply", "--wait", "--timeout", "1s", "-f", "-", text=split("any", 1, 1))
        assert result.code == 4
        assert "stubborn~2 refused Cluster: colour is not supported here" in result.err
    shared.remora("delete", "grpcroute", "any")


def test_a_control_plane_that_stops_lets_its_nodes_go_without_a_noise(mesh: Mesh) -> None:
    with ExitStack() as stack:
        for number in range(20):
            stack.enter_context(connected(mesh, f"left~{number}"))
        assert mesh.plane.stop() == 0
    assert mesh.plane.err.count("\n") == 1, mesh.plane.err  # what it said when it started
