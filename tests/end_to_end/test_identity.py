"""Identities in a mesh of real processes: who speaks what with whom, and certificates that change while calls go on."""

import json
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from proto.mesh.v1 import api_pb2
from remora.agent.child import tree
from tests import mesh as meshes
from tests.mesh import Caller, Mesh, load
from tests.waiting import eventually

STRICT = """
apiVersion: remora.dev/v1
kind: AuthenticationPolicy
metadata: {{name: strict}}
spec:
  targetRefs: [{{name: {service}}}]
  mutualTls: Strict
"""
ENGINES = ("remora", "envoy")


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh with identities."""
    with meshes.running(tmp_path_factory.mktemp("secure"), None, "--mtls", "--trust-domain", "shop.test") as mesh:
        yield mesh


@pytest.fixture
def mesh(secure: Mesh) -> Iterator[Mesh]:
    """The same, with nothing of other tests but its callers."""
    with secure.guests() as mesh:
        yield mesh


def metrics(mesh: Mesh, service: str) -> Counter[tuple[str, ...]]:
    """What the sidecars of a service count: (family, security or identity, labels …)."""
    found: Counter[tuple[str, ...]] = Counter()
    for node in mesh.nodes.Nodes(api_pb2.NodesRequest()).nodes:
        if node.service != service:
            continue
        with urllib.request.urlopen(f"http://{node.admin_address}/stats/prometheus", timeout=5) as answer:
            text = answer.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = sample.labels
                if sample.name == "remora_requests_total" and labels["direction"] == "outbound":
                    found["called", labels["service"], labels["security"]] += int(sample.value)
                elif sample.name == "remora_peer_calls_total":
                    found["came", labels["peer"], labels["security"]] += int(sample.value)
                elif sample.name.endswith("_ssl_handshake") or sample.name.endswith("_ssl_handshake_total"):
                    found["envoy handshakes", labels.get("envoy_cluster_name", "inbound")] += int(sample.value)
    return found


def answers(client: Caller, stub: Any) -> str:
    """Which instance answers; what is said instead if none does."""
    try:
        return client.says(stub)
    except grpc.RpcError as error:
        failed: Any = error
        return f"{failed.code().name}: {failed.details()}"


def until(client: Caller, stub: Any, instance: str) -> None:
    """Wait until an instance answers."""
    eventually(lambda: answers(client, stub) == instance, timeout_s=30, message=answers(client, stub))


@contextmanager
def strict(mesh: Mesh, service: str) -> Iterator[None]:
    """A service takes mutual TLS only."""
    mesh.apply(STRICT.format(service=service), "--wait")
    try:
        yield
    finally:
        assert mesh.remora("delete", "AuthenticationPolicy", "strict", "--wait").code == 0


@pytest.mark.parametrize("callee", ENGINES)
@pytest.mark.parametrize("caller", ENGINES)
def test_sidecars_of_either_engine_speak_mutual_tls_with_each_other(mesh: Mesh, caller: str, callee: str) -> None:
    service = f"both-{caller}-{callee}"
    mesh.echo("one", service, engine=callee)
    client = mesh.caller(caller)
    stub = client.stub(f"{service}:80")
    until(client, stub, "one")
    assert [client.says(stub) for _ in range(5)] == ["one"] * 5
    seen = metrics(mesh, "caller")
    if caller == "remora":
        assert seen["called", f"{service}.default", "mutual_tls"] >= 5
        assert not seen["called", f"{service}.default", ""]
    else:
        assert seen["envoy handshakes", f"outbound|{service}"] >= 1
    if callee == "remora":
        came = metrics(mesh, service)
        assert came["came", "spiffe://shop.test/ns/default/sa/caller", "mutual_tls"] >= 5
        assert not came["came", "", ""]
    shown = json.loads(mesh.remora("edges", "-o", "json").out)["edges"]
    [edge] = [edge for edge in shown if edge["callee"] == f"{service}.default"]
    assert (edge["caller"], edge["over"]) == ("caller.default", "mTLS")
    assert edge["calls"] >= 5


def from_outside(mesh: Mesh, service: str, client: Caller) -> str:
    """A call straight to an instance's sidecar, by somebody who has no identity."""
    [instance] = mesh.instances(service)
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"{instance.address}:{instance.port}", options=options) as channel:
        return answers(client, client.schema.services.EchoStub(channel))


@pytest.mark.parametrize("engine", ENGINES)
def test_no_key_is_shown_by_the_admin_endpoint_or_stands_on_the_command_line(mesh: Mesh, engine: str) -> None:
    service = f"closed-{engine}"
    process = mesh.echo("one", service, engine=engine)
    [node] = [each for each in mesh.nodes.Nodes(api_pb2.NodesRequest()).nodes if each.service == service]
    with urllib.request.urlopen(f"http://{node.admin_address}/config_dump", timeout=5) as answer:
        dump = answer.read().decode()
    assert "spiffe://shop.test/ns/default/sa/" in dump
    assert "PRIVATE KEY" not in dump
    for pid in tree(process.pid):
        for name in ("cmdline", "environ"):
            assert b"PRIVATE KEY" not in Path(f"/proc/{pid}/{name}").read_bytes()


@pytest.mark.parametrize("callee", ENGINES)
def test_who_has_no_identity_gets_in_until_a_policy_says_strict(mesh: Mesh, callee: str) -> None:
    service = f"open-{callee}"
    mesh.echo("one", service, engine=callee)
    client = mesh.caller()
    stub = client.stub(f"{service}:80")
    until(client, stub, "one")
    assert from_outside(mesh, service, client) == "one"
    if callee == "remora":
        assert metrics(mesh, service)["came", "", ""] == 1
        seen = mesh.remora("edges", "--plain-text")
        assert seen.code == 1
        assert any(
            line.split()[-2:] == ["text", "1"] and f"{service}.default" in line for line in seen.out.splitlines()
        )
    with strict(mesh, service):
        eventually(lambda: from_outside(mesh, service, client).startswith("UNAVAILABLE"))
        assert client.says(stub) == "one", "members go on"


def test_an_instance_without_an_identity_is_called_in_plain_text_unless_strict(mesh: Mesh) -> None:
    mesh.echo("one", "naked", options=("--no-mtls",))
    client = mesh.caller()
    stub = client.stub("naked:80")
    until(client, stub, "one")
    assert metrics(mesh, "caller")["called", "naked.default", ""] >= 1
    with strict(mesh, "naked"):
        said = eventually(lambda: answers(client, stub).removeprefix("one"))
        assert said.startswith("UNAVAILABLE: ")
        assert "no connection to" in said


def _of_tls(said: str) -> str:
    return said if "onnect" in said or "TLS" in said else ""


@pytest.mark.parametrize("caller", ENGINES)
def test_an_instance_that_is_another_service_than_the_called_one_gets_no_call(mesh: Mesh, caller: str) -> None:
    """It has a good certificate of the mesh, and is registered under a name that is not its own."""
    mesh.echo("thief", f"thief-{caller}")
    [lie] = eventually(lambda: mesh.instances(f"thief-{caller}"))
    lie.service, lie.id, lie.node_id = f"safe-{caller}", "safe-1", ""
    mesh.registry.Register(api_pb2.RegisterRequest(instance=lie), timeout=5)
    client = mesh.caller(caller)
    stub = client.stub(f"safe-{caller}:80")
    said = eventually(lambda: _of_tls(answers(client, stub)))
    assert said.startswith("UNAVAILABLE")
    if caller == "remora":
        assert "its certificate is for URI:spiffe://shop.test/ns/default/sa/thief-remora" in said
    else:
        assert "upstream connect error" in said


def test_a_join_token_is_what_another_machine_needs(mesh: Mesh, tmp_path: Path) -> None:
    refused = mesh.echo("one", "remote", is_awaited=False, XDG_STATE_HOME=str(tmp_path))
    assert refused.wait() == 2
    assert "no identity for remote.default: the local secret is not that of this control plane" in refused.err
    assert "remora token create --service remote.default" in refused.err
    token = mesh.remora("token", "create", "--service", "remote").out.strip()
    mesh.echo("one", "remote", REMORA_JOIN_TOKEN=token, XDG_STATE_HOME=str(tmp_path))
    again = mesh.echo("two", "remote", is_awaited=False, REMORA_JOIN_TOKEN=token, XDG_STATE_HOME=str(tmp_path))
    assert again.wait() == 2
    assert "the join token is not known: it was used" in again.err


def test_operators_elsewhere_are_not_operators(mesh: Mesh, tmp_path: Path) -> None:
    for words in (("token", "create", "--service", "echo"), ("cert", "rotate", "--stage", "add")):
        result = mesh.remora(*words, XDG_STATE_HOME=str(tmp_path))
        assert result.code == 1
        assert "only an operator may do that" in result.err


def rotate(mesh: Mesh, stage: str) -> None:
    """A step, as soon as every node is ready for it."""

    def is_done() -> bool:
        result = mesh.remora("cert", "rotate", "--stage", stage)
        assert result.code in (0, 1), result.err
        return result.code == 0

    eventually(is_done, timeout_s=60, message=f"nodes are not ready for {stage}")


def test_leaves_intermediate_and_root_change_under_traffic_without_a_failed_call(tmp_path: Path) -> None:
    """Certificates of twelve seconds. New instances at every stage, so that new handshakes meet old and new certificates."""
    with meshes.running(tmp_path, None, "--mtls", "--certificate-life", "12s") as mesh:
        mesh.echo("echo-1")
        mesh.echo("echo-2", engine="envoy")
        callers = [mesh.caller("remora"), mesh.caller("envoy")]
        stubs = [each.stub() for each in callers]
        for client, stub in zip(callers, stubs, strict=True):
            eventually(lambda c=client, s=stub: answers(c, s).startswith("echo-"))  # type: ignore[misc]
        before = json.loads(mesh.remora("cert", "show", "-o", "json").out)
        with (
            load(lambda: callers[0].says(stubs[0]), threads=2) as first,
            load(lambda: callers[1].says(stubs[1]), threads=2) as second,
        ):
            for number, stage in enumerate(("intermediate", "add", "switch", "drop"), start=3):
                rotate(mesh, stage)
                name = f"echo-{number}"
                mesh.echo(name, engine=ENGINES[number % 2])
                for each in (first, second):
                    eventually(lambda e=each, n=name: e.instances[n] > 5, timeout_s=30)  # type: ignore[misc]
                assert not first.failed and not second.failed, f"at {stage}"
        after = json.loads(mesh.remora("cert", "show", "-o", "json").out)
        assert first.failed == second.failed == {}
        assert len(after["roots"]) == 1
        assert after["roots"] != before["roots"]
        was = {each["serial"] for each in before["holders"]}
        assert not was & {each["serial"] for each in after["holders"]}, "everybody has a certificate of its own again"
