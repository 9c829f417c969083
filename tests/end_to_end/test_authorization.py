"""Who may call whom, in a mesh of real processes with identities: the same policy at our sidecar and at a real Envoy."""

from collections.abc import Iterator

import pytest

from tests import mesh as meshes
from tests.end_to_end.test_identity import ENGINES, answers, until
from tests.mesh import Mesh
from tests.waiting import eventually

POLICY = """
apiVersion: remora.dev/v1
kind: AuthorizationPolicy
metadata: {{name: {name}}}
spec: {{targetRefs: [{{name: {service}}}], {rest}}}
"""


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


@pytest.mark.parametrize("engine", ENGINES)
def test_a_service_lets_in_whom_its_policies_allow_and_nobody_whom_one_denies(mesh: Mesh, engine: str) -> None:
    service = f"guarded-{engine}"
    mesh.echo("one", service, engine=engine)
    client = mesh.caller("remora")
    stub = client.stub(f"{service}:80")
    until(client, stub, "one")

    def apply(name: str, rest: str) -> None:
        mesh.apply(POLICY.format(name=name, service=service, rest=rest), "--wait")

    def said() -> str:
        return answers(client, stub)

    apply("allowed", "rules: [{from: [{services: [somebody-else]}]}]")
    refused = said()
    assert refused.startswith("PERMISSION_DENIED"), refused
    if engine == "remora":  # Envoy's own words are "RBAC: access denied"
        assert "no policy allows it; the caller is seen as spiffe://shop.test/ns/default/sa/caller" in refused
    apply("allowed", "rules: [{from: [{services: [caller], namespaces: [default]}]}]")
    assert said() == "one"
    apply(
        "denied",
        "action: Deny, rules: [{to: [{headers: [{name: user-agent, value: 'grpc-.*', type: RegularExpression}]}]}]",
    )
    refused = said()
    assert refused.startswith("PERMISSION_DENIED"), refused
    if engine == "remora":
        assert 'policy "default/denied rule 0" denies it' in refused
    apply("denied", "mode: Shadow, action: Deny, rules: [{}]")
    assert said() == "one"
    for name in ("denied", "allowed"):
        assert mesh.remora("delete", "AuthorizationPolicy", name, "--wait").code == 0
    eventually(lambda: said() == "one")
