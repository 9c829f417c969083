"""Callers' tokens in a mesh of real processes: the same policy at our sidecar and at a real Envoy."""

import json
import time
from collections.abc import Iterator
from typing import Any, Final

import grpc
import pytest
from joserfc import jws
from joserfc.jwk import ECKey

from tests import mesh as meshes
from tests.end_to_end.test_identity import ENGINES, until
from tests.mesh import Mesh
from tests.waiting import eventually

KEY: Final = ECKey.generate_key("P-256", {"kid": "one"})
NEXT: Final = ECKey.generate_key("P-256", {"kid": "two"})
ISSUED: Final = """
apiVersion: remora.dev/v1
kind: AuthenticationPolicy
metadata: {{name: {service}}}
spec:
  targetRefs: [{{name: {service}}}]
  mode: {mode}
  require: {require}
  jwt: [{{issuer: ann.test, audiences: [shop], jwks: '{jwks}'}}]
"""
ALLOWED: Final = """
apiVersion: remora.dev/v1
kind: AuthorizationPolicy
metadata: {{name: {service}}}
spec:
  targetRefs: [{{name: {service}}}]
  rules: [{{from: [{{claims: [{{name: scope, values: [write, admin]}}, {{name: org.team, values: [red]}}]}}]}}]
"""


def signed(key: ECKey = KEY, **claims: Any) -> str:
    payload = {"iss": "ann.test", "aud": "shop", "exp": int(time.time()) + 3600, **claims}
    header = {"alg": "ES256", "kid": key.kid}
    return jws.serialize_compact(header, json.dumps(payload).encode(), key, algorithms=["ES256"])


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with meshes.running(tmp_path_factory.mktemp("tokens"), None, "--no-mtls") as mesh:
        yield mesh


@pytest.mark.parametrize("engine", ENGINES)
def test_a_service_takes_good_tokens_only_and_its_policies_read_their_claims(mesh: Mesh, engine: str) -> None:
    service = f"asked-{engine}"
    mesh.echo("one", service, engine=engine)
    client = mesh.caller("remora")
    stub = client.stub(f"{service}:80")
    until(client, stub, "one")

    def issued(require: str, *keys: ECKey, mode: str = "Enforce") -> None:
        jwks = json.dumps({"keys": [key.as_dict(private=False) for key in keys]})
        mesh.apply(ISSUED.format(service=service, require=require, mode=mode, jwks=jwks), "--wait")

    def said(token: str = "") -> str:
        """Whether a call with a token, or with none, is answered."""
        try:
            return client.says(stub, metadata=[("authorization", f"Bearer {token}")] if token else [])
        except grpc.RpcError as error:
            failed: Any = error
            return str(failed.code().name)

    bad = signed(exp=1)
    issued("true", KEY)
    assert [said(), said(bad), said(signed(NEXT)), said(signed())] == [*["UNAUTHENTICATED"] * 3, "one"]
    assert said(signed(aud="office")) == "PERMISSION_DENIED"
    issued("false", KEY)
    assert [said(), said(bad), said(signed())] == ["one", "UNAUTHENTICATED", "one"]
    mesh.apply(ALLOWED.format(service=service), "--wait")
    red = {"team": "red"}
    assert said(signed(scope="read write", org=red)) == "one"
    assert said(signed(scope=["admin"], org=red)) == "one"
    for token in (
        "",
        signed(scope="read", org=red),
        signed(scope="write", org={"team": "blue"}),
        signed(scope="write"),
    ):
        assert said(token) == "PERMISSION_DENIED"
    issued("true", KEY, mode="Shadow")
    assert mesh.remora("delete", "AuthorizationPolicy", service, "--wait").code == 0
    assert [said(), said(bad)] == ["one", "one"]
    assert mesh.remora("delete", "AuthenticationPolicy", service, "--wait").code == 0
    eventually(lambda: said(bad) == "one")


@pytest.mark.parametrize("engine", ENGINES)
def test_the_next_keys_of_an_issuer_count_at_once_and_the_last_no_more(mesh: Mesh, engine: str) -> None:
    service = f"rotated-{engine}"
    mesh.echo("one", service, engine=engine)
    client = mesh.caller("remora")
    stub = client.stub(f"{service}:80")
    until(client, stub, "one")

    def said(key: ECKey) -> str:
        try:
            return client.says(stub, metadata=[("authorization", f"Bearer {tokens[key.kid]}")])
        except grpc.RpcError as error:
            failed: Any = error
            return f"{failed.code().name}: {failed.details()}"

    tokens = {key.kid: signed(key) for key in (KEY, NEXT)}
    for known, other in ((KEY, NEXT), (NEXT, KEY)):
        jwks = json.dumps({"keys": [known.as_dict(private=False)]})
        mesh.apply(ISSUED.format(service=service, require="true", mode="Enforce", jwks=jwks), "--wait")
        assert said(known) == "one"
        refused = said(other)
        assert refused.startswith("UNAUTHENTICATED"), refused
        if engine == "remora":
            assert "no key of the issuer is known by the token's kid" in refused
