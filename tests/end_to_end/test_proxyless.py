"""A client and a server of gRPC's own xDS in one mesh with our sidecar and a real Envoy: no sidecar, the same policy."""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from proto.mesh.v1 import api_pb2
from tests.mesh import PROGRAMS, Mesh, Process
from tests.ports import free_ports
from tests.tools import need
from tests.waiting import eventually

ROUTE: Final = """
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {{name: {service}}}
spec:
  parentRefs: [{{name: {service}}}]
  rules:
  - matches: [{{headers: [{{name: tester, value: ada}}]}}]
    backendRefs: [{{name: {service}-v2}}]
  - matches: [{{method: {{service: echo.v1.Echo, method: BidiStream}}}}]
    backendRefs: [{{name: {service}-v2}}]
  - backendRefs: [{{name: {service}-v1, weight: {v1}}}, {{name: {service}-v2, weight: {v2}}}]
"""
VERSION: Final = """
apiVersion: remora.dev/v1
kind: Service
metadata: {{name: {service}-{version}}}
spec: {{selector: {{service: {service}, version: {version}}}}}
---
"""


BALANCING: Final = """
apiVersion: remora.dev/v1
kind: LoadBalancingPolicy
metadata: {{name: {service}}}
spec: {{targetRefs: [{{name: {service}}}], algorithm: {algorithm}}}
"""
LIMIT: Final = """
apiVersion: remora.dev/v1
kind: RateLimitPolicy
metadata: {{name: {service}}}
spec: {{targetRefs: [{{name: {service}}}], requests: 100000}}
"""
FAULT: Final = """
apiVersion: remora.dev/v1
kind: FaultPolicy
metadata: {{name: {service}}}
spec: {{targetRefs: [{{name: {service}}}], abort: {{status: DATA_LOSS}}}}
"""
_TOLD_AT_ONCE: Final = {"GRPC_EXPERIMENTAL_XDS_DATA_ERROR_HANDLING": "true"}
"""What is not there is believed when the control plane says so, not after 15 s without an answer (gRFC A88)."""


class Client:
    """The program `proxyless.py`: takes orders one at a time."""

    def __init__(self, mesh: Mesh, bootstrap: Path) -> None:
        log = (bootstrap.parent / f"{bootstrap.stem}.err").open("wb")
        env = mesh.environment(GRPC_XDS_BOOTSTRAP=str(bootstrap), **_TOLD_AT_ONCE)
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAMS / "proxyless.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=env,
        )  # fmt: skip
        log.close()

    def calls(self, target: str, count: int = 1, **order: Any) -> tuple[Counter[str], Counter[str]]:
        """Outcomes, and which instances answered."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"target": target, "count": count, **order}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return Counter(answer["outcomes"]), Counter(answer["instances"])

    def good(self, target: str, count: int = 1, **order: Any) -> Counter[str]:
        """Which instances answered; all calls must have ended well."""
        outcomes, instances = self.calls(target, count, **order)
        assert outcomes == {"OK": count}, outcomes
        return instances

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def bootstrap(mesh: Mesh, node: str, *words: str) -> Path:
    """A file that `remora bootstrap` wrote."""
    made = mesh.remora("bootstrap", "--engine", "grpc", "--node", node, *words)
    assert made.code == 0, made.err
    file = mesh.directory / f"{node}.json"
    file.write_text(made.out)
    return file


@contextmanager
def client(mesh: Mesh, node: str = "shopper", service: str = "shopper") -> Iterator[Client]:
    """A program that calls by `xds:///`."""
    each = Client(mesh, bootstrap(mesh, node, "--service", service))
    try:
        yield each
    finally:
        each.close()


@contextmanager
def server(mesh: Mesh, instance: str, service: str) -> Iterator[Process]:
    """An xDS-enabled server without a sidecar, registered by hand; yields what keeps it registered."""
    (port,) = free_ports(1)
    file = bootstrap(mesh, instance, "--service", service, "--app", f"127.0.0.1:{port}")
    env = mesh.environment(GRPC_XDS_BOOTSTRAP=str(file), PORT=str(port), INSTANCE=instance, XDS="1")
    with (mesh.directory / f"{instance}.out").open("w+") as out:
        program = subprocess.Popen([sys.executable, str(PROGRAMS / "server.py")], stdout=out, stderr=out, env=env)
        try:
            registered = mesh.spawn("register", service, f"127.0.0.1:{port}", "--node", instance, name=instance)
            registered.until("registered as")
            yield registered
        finally:
            program.kill()
            program.wait()


@pytest.fixture
def caller(guests: Mesh) -> Iterator[Client]:
    with client(guests) as each:
        yield each


def test_a_proxyless_client_calls_services_behind_either_sidecar_and_follows_them(guests: Mesh, caller: Client) -> None:
    first = guests.echo("one", "trio", engine="remora")
    assert caller.good("xds:///trio.default", 5) == {"one": 5}
    guests.echo("two", "trio", engine="envoy")
    guests.until_healthy("one", "two", service="trio")
    eventually(lambda: set(caller.good("xds:///trio", 4)) == {"one", "two"}, message="the new endpoint gets no calls")
    assert caller.good("xds:///trio.default", 10, stream=20).total() == 10
    # Stopping drains: nobody's call fails, and the other one gets all.
    first.send(15)
    while first.is_running:
        caller.good("xds:///trio.default", 20)
    assert first.wait() == 0
    assert caller.good("xds:///trio.default", 10) == {"two": 10}


def test_routes_by_header_method_and_weight(guests: Mesh, caller: Client) -> None:
    for version in ("v1", "v2"):
        guests.echo(f"way-{version}", "way", options=("--version", version))
    versions = "".join(VERSION.format(service="way", version=version) for version in ("v1", "v2"))
    guests.apply(versions + ROUTE.format(service="way", v1=1, v2=0), "--wait")
    assert caller.good("xds:///way", 20) == {"way-v1": 20}
    assert caller.good("xds:///way", 10, metadata={"tester": "ada"}) == {"way-v2": 10}
    assert caller.good("xds:///way", 3, stream=2) == {"way-v2": 3}
    guests.apply(versions + ROUTE.format(service="way", v1=1, v2=3), "--wait")
    shares = caller.good("xds:///way", 400)
    # Binomial of 400 and 3/4: 10 standard deviations on either side.
    assert 213 < shares["way-v2"] < 387, shares
    guests.remora("delete", "grpcroute", "way", "--wait")


def test_what_is_not_there_is_said_at_once(guests: Mesh, caller: Client) -> None:
    guests.apply(VERSION.format(service="some", version="v1").replace("spec: {", "spec: {ports: [{port: 80}], "))
    for target, name in {"xds:///nowhere.default": "nowhere.default", "xds:///some-v1:81": "some-v1:81"}.items():
        outcomes, _ = caller.calls(target)
        (text,) = outcomes
        said = f"no service is called {name}; with a port, it must be one that the service declares"
        assert text.startswith("UNAVAILABLE: ") and said in text


def test_a_proxyless_server_is_called_by_all(guests: Mesh, caller: Client) -> None:
    with server(guests, "bare", "bare") as registered:
        guests.until_healthy(*[each.id for each in guests.instances("bare")], service="bare")
        assert caller.good("xds:///bare", 5) == {"bare": 5}
        for engine in ("remora", "envoy"):
            program = guests.caller(engine)
            assert program.says(program.stub("bare:80"), wait_for_ready=True) == "bare"
        limit = guests.apply(LIMIT.format(service="bare"))
        said = "Enforced is false: not enforced in full on 1 of 1 instances: gRPC C-core has no rate limit"
        assert said in limit.err, limit.err
        guests.remora("delete", "ratelimitpolicy", "bare")
        assert registered.stop() == 0


def test_status_tells_what_a_proxyless_client_has_acknowledged(guests: Mesh, caller: Client) -> None:
    guests.echo("seen", "seen")
    caller.good("xds:///seen")

    def node() -> Any:
        nodes = guests.nodes.Nodes(api_pb2.NodesRequest(), timeout=5).nodes
        return next((each for each in nodes if each.id == "shopper" and len(each.types) == 4), None)

    found = eventually(node)
    assert (found.engine, found.service) == ("grpc", "shopper")
    assert all(each.version_acked == each.version_sent and not each.version_nacked for each in found.types)
    assert "shopper.default" in guests.remora("status").out


def test_faults_of_a_policy_are_injected_by_the_client_itself(guests: Mesh, caller: Client) -> None:
    guests.echo("frail", "frail")
    caller.good("xds:///frail")
    applied = guests.apply(FAULT.format(service="frail"), "--wait")
    assert "Enforced" not in applied.err
    outcomes, _ = caller.calls("xds:///frail", 3)
    assert {text.split(":")[0]: count for text, count in outcomes.items()} == {"DATA_LOSS": 3}
    # gRPC would inject those of some calls only into all of them, so it is not told of these.
    applied = guests.apply(FAULT.format(service="frail").replace("abort", "headers: {tester: ada}, abort"), "--wait")
    assert "gRPC C-core has no faults of some calls only; it injects none" in applied.err
    caller.good("xds:///frail", 3)
    guests.remora("delete", "faultpolicy", "frail", "--wait")


def test_what_a_proxyless_client_cannot_do_is_not_asked_of_it_and_is_said(guests: Mesh, caller: Client) -> None:
    guests.echo("least", "least")
    caller.good("xds:///least")
    policy = BALANCING.format(service="least", algorithm="LeastRequest")
    applied = guests.apply(policy, "--wait")
    reason = "gRPC C-core has no least request; it goes round robin"
    said = re.search(r"Enforced is false: not enforced in full on 1 of \d+ nodes: (.*) \(NotSupported\)", applied.err)
    assert said is not None and said[1] == reason, applied.err
    assert caller.good("xds:///least", 3) == {"least": 3}, "it went on, since it was not sent what it would refuse"

    table = guests.remora("status").out
    assert re.search(rf"^LoadBalancingPolicy default/least +spec\.algorithm +shopper +{reason}$", table, re.MULTILINE)
    nodes = {node["id"]: node for node in json.loads(guests.remora("status", "-o", "json").out)["nodes"]}
    shopper = nodes["shopper"]
    assert shopper["client"].startswith("gRPC C-core 1.")
    assert shopper["notEnforced"] == [
        {"policy": "LoadBalancingPolicy default/least", "field": "spec.algorithm", "reason": reason}
    ]
    assert all(not node["notEnforced"] for name, node in nodes.items() if name != "shopper")
    guests.remora("delete", "loadbalancingpolicy", "least", "--wait")


@pytest.mark.parametrize("case", ["large_unary", "ping_pong", "custom_metadata", "status_code_and_message"])
def test_a_proxyless_client_of_grpc_go_does_the_interop_cases(guests: Mesh, case: str) -> None:
    interop, client_of_go = need("interop-go-server"), need("interop-go-client")
    serve = f'exec "{interop}" -port "$PORT"'
    guests.run("interop", "sh", "-c", serve, options=("--instance", f"go-{case}")).until("registered as")
    env = guests.environment(GRPC_XDS_BOOTSTRAP=str(bootstrap(guests, f"gopher-{case}", "--service", "gopher")))
    done = subprocess.run(
        [client_of_go, "-server_host", "xds:///interop.default", "-server_port", "0", "-test_case", case],
        env=env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
