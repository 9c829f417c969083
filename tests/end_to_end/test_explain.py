"""`remora explain` in a mesh of real processes with identities: what it says is what calls then find."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests import mesh as meshes
from tests.end_to_end.test_identity import answers, until
from tests.mesh import Caller, Mesh
from tests.waiting import eventually

METHOD = "echo.v1.Echo/Unary"
POLICIES = """
apiVersion: remora.dev/v1
kind: AuthorizationPolicy
metadata: {name: echo-callers}
spec:
  targetRefs: [{name: echo}]
  rules: [{from: [{services: [somebody-else]}]}]
---
apiVersion: remora.dev/v1
kind: RateLimitPolicy
metadata: {name: echo-limit}
spec: {targetRefs: [{name: echo}], requests: 100, interval: 60s}
"""
ROUTE = """
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: echo}
spec:
  parentRefs: [{name: echo}]
  rules:
  - name: testers
    matches: [{headers: [{name: x-tester, value: "yes"}]}]
    backendRefs: [{name: echo}]
  - backendRefs: [{name: echo}]
"""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with meshes.running(tmp_path_factory.mktemp("explain"), None, "--mtls", "--trust-domain", "shop.test") as mesh:
        mesh.echo("one")
        mesh.apply(ROUTE, "--wait")
        yield mesh


@pytest.fixture(scope="module")
def client(mesh: Mesh) -> Caller:
    client = mesh.caller("remora")
    until(client, client.stub("echo:80"), "one")
    return client


def explained(mesh: Mesh, *words: str, code: int = 0) -> dict[str, Any]:
    result = mesh.remora("explain", "caller", METHOD, "-o", "json", *words)
    assert result.code == code, result.err
    found: dict[str, Any] = json.loads(result.out)
    return found


def test_a_call_is_explained_from_the_callers_rule_to_the_callees_filters(mesh: Mesh, client: Caller) -> None:
    told = explained(mesh)
    assert told["authority"] == "echo.default"  # by the gRPC service's name
    assert told["identity"]["uris"] == ["spiffe://shop.test/ns/default/sa/caller"]
    [cluster] = told["clusters"]
    [endpoint] = cluster["endpoints"]
    assert (cluster["service"], endpoint["health"], endpoint["over"]) == ("echo.default", "healthy", "mutual_tls")
    assert [callee["outcome"] for callee in told["callees"]] == ["goes to inbound"]
    by_tester = explained(mesh, "-H", "x-tester: yes", "--service", "echo")
    assert "x-tester is yes" in by_tester["route"]["rule"]
    assert by_tester["route"]["number"] != explained(mesh, "--service", "echo")["route"]["number"]


def test_who_would_be_refused_reads_the_policy_and_then_is(mesh: Mesh, client: Caller) -> None:
    stub = client.stub("echo:80")
    mesh.apply(POLICIES, "--wait")
    try:
        told = explained(mesh, code=1)
        [callee] = told["callees"]
        kinds = {each["kind"]: each for each in callee["filters"] if each["kind"]}
        assert told["refused"]
        assert kinds["access"]["verdict"] == "refuses"
        assert "the caller is seen as spiffe://shop.test/ns/default/sa/caller" in kinds["access"]["why"]
        assert "100 of 100 calls are left" in kinds["rate limit"]["why"]
        refused = answers(client, stub)
        assert refused == f"PERMISSION_DENIED: {kinds['access']['why']}"
        text = mesh.remora("explain", "caller", METHOD, "--service", "echo:80")
        assert text.code == 1
        assert "filter    access: refuses (access denied: no policy allows it;" in text.out
        assert text.out.endswith("=> goes to echo.default; refused there by every instance\n")
    finally:
        for kind, name in (("AuthorizationPolicy", "echo-callers"), ("RateLimitPolicy", "echo-limit")):
            assert mesh.remora("delete", kind, name, "--wait").code == 0
    eventually(lambda: answers(client, stub) == "one")
    assert not explained(mesh)["refused"]


def test_an_envoy_is_said_to_be_one_that_cannot(mesh: Mesh) -> None:
    mesh.caller("envoy", "by-envoy")
    result = mesh.remora("explain", "by-envoy", METHOD, "--service", "echo")
    assert (result.code, result.out) == (1, "")
    assert "runs envoy, which cannot say what it would do with a call; only our sidecar can" in result.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("nobody", METHOD), 1, "no node of nobody is connected; there are nodes of: "),
        (("caller", "Unary"), 2, 'METHOD: "Unary" is not PACKAGE.SERVICE/METHOD'),
        (("caller", METHOD, "-H", "tester"), 2, '-H: "tester" is not NAME:VALUE'),
        (("caller", "a.b.Till/Open"), 2, '--service: say who is called; of services named "till" there is none'),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(
    mesh: Mesh, client: Caller, words: tuple[str, ...], code: int, said: str
) -> None:
    result = mesh.remora("explain", *words)
    assert (result.code, result.out) == (code, "")
    assert said in result.err and result.err.count("\n") == 1
