"""Tokens good and hostile, at real Envoy and at our sidecar: the same outcome, or a stricter one that docs/differences.md explains.

Keys and tokens are made here, so that times are those of the test.
"""

import hmac
import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from typing import Any, Final

import pytest
from joserfc import jws
from joserfc.jwk import ECKey, OKPKey, RSAKey

from tests.differential.cases import Case, CaseFile
from tests.differential.compare import faults
from tests.differential.lab import Lab

JWT: Final = "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3."
RBAC: Final = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"
HTTP: Final = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER: Final = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
OPTIONS: Final = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

RSA: Final = RSAKey.generate_key(2048, {"kid": "rsa"})
STRANGER: Final = RSAKey.generate_key(2048, {"kid": "rsa"})
EC: Final = ECKey.generate_key("P-256", {"kid": "ec"})
EC_384: Final = ECKey.generate_key("P-384", {"kid": "ec384"})
ED: Final = OKPKey.generate_key("Ed25519", {"kid": "ed"})
OTHER: Final = ECKey.generate_key("P-256", {"kid": "other"})
NOW: Final = int(time.time())


def signed(key: Any = RSA, alg: str = "RS256", head: dict[str, Any] | None = None, **claims: Any) -> str:
    """A token; claims that are None are left out."""
    payload = {"iss": "ann.test", "aud": "shop", "sub": "ann", "exp": NOW + 3600, **claims}
    header = {"alg": alg, "kid": key.kid if hasattr(key, "kid") else "rsa", **(head or {})}
    header = {name: value for name, value in header.items() if value is not None}
    data = json.dumps({name: value for name, value in payload.items() if value is not None}).encode()
    return jws.serialize_compact(header, data, key, algorithms=[alg])


def raw(*parts: Any) -> str:
    """Header and claims in the form of a token, with this signature."""
    *objects, signature = parts
    return ".".join(
        [*(urlsafe_b64encode(json.dumps(item).encode()).decode().rstrip("=") for item in objects), signature]
    )


def with_secret(secret: bytes, issuer: str = "ann.test", **head: str) -> str:
    """A token that is signed with the public key as a shared secret: the oldest trick."""
    bare = raw({"alg": "HS256", **head}, {"iss": issuer, "aud": "shop", "exp": NOW + 60}, "").removesuffix(".")
    mac = hmac.digest(secret, bare.encode(), "sha256")
    return f"{bare}.{urlsafe_b64encode(mac).decode().rstrip('=')}"


def _keys(*keys: Any) -> dict[str, Any]:
    return {"inline_string": json.dumps({"keys": [key.as_dict(private=False) for key in keys]})}


PROVIDERS: Final[dict[str, Any]] = {
    "ann": {
        "issuer": "ann.test",
        "audiences": ["shop"],
        "local_jwks": _keys(RSA, EC, EC_384, ED),
        "payload_in_metadata": "ann",
        "claim_to_headers": [
            {"header_name": "x-user", "claim_name": "sub"},
            {"header_name": "x-team", "claim_name": "org.team"},
            {"header_name": "x-level", "claim_name": "level"},
            {"header_name": "x-staff", "claim_name": "staff"},
        ],
    },
    "bob": {
        "issuer": "bob.test",
        "local_jwks": _keys(OTHER),
        "forward": True,
        "from_headers": [{"name": "x-token", "value_prefix": "T "}, {"name": "x-bare"}],
        "from_params": ["token"],
        "forward_payload_header": "x-payload",
        "payload_in_metadata": "bob",
    },
    "any": {
        "local_jwks": _keys(RSA),
        "clock_skew_seconds": 10,
        "require_expiration": True,
        "forward": True,
        "pad_forward_payload_header": True,
        "forward_payload_header": "x-any",
    },
}
SECRET: Final = b"a secret that two parties share: long enough for HS256"
PROVIDERS["secret"] = {
    "issuer": "secret.test",
    "local_jwks": {
        "inline_string": json.dumps(
            {"keys": [{"kty": "oct", "k": urlsafe_b64encode(SECRET).decode().rstrip("="), "alg": "HS256"}]}
        )
    },
}
REQUIREMENTS: Final[dict[str, Any]] = {
    "ann": {"provider_name": "ann"},
    "bob": {"provider_name": "bob"},
    "anybody": {"provider_name": "any"},
    "office": {"provider_and_audiences": {"provider_name": "ann", "audiences": ["https://office/"]}},
    "either": {"requires_any": {"requirements": [{"provider_name": "ann"}, {"provider_name": "bob"}]}},
    "both": {"requires_all": {"requirements": [{"provider_name": "ann"}, {"provider_name": "bob"}]}},
    "may": {"requires_any": {"requirements": [{"provider_name": "ann"}, {"allow_missing": {}}]}},
    "missing": {"allow_missing": {}},
    "secret": {"provider_name": "secret"},
    "whatever": {"allow_missing_or_failed": {}},
}
CLUSTER: Final = {
    "name": "a",
    "connect_timeout": "1s",
    "type": "STATIC",
    "typed_extension_protocol_options": {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": OPTIONS,
            "explicit_http_config": {"http2_protocol_options": {}},
        }
    },
    "load_assignment": {
        "cluster_name": "a",
        "endpoints": [
            {
                "lb_endpoints": [
                    {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": "${a}"}}}}
                ]
            }
        ],
    },
}


def _bootstrap() -> dict[str, Any]:
    def route(path: str, **config: Any) -> dict[str, Any]:
        own = {"jwt": {"@type": f"{JWT}PerRouteConfig", **config}}
        return {"match": {"path": path}, "route": {"cluster": "a"}, "typed_per_filter_config": own}

    routes = [
        route("/off", disabled=True),
        route("/route", requirement_name="bob"),
        route("/nowhere", requirement_name="nobody"),
        {"match": {"prefix": "/"}, "route": {"cluster": "a"}},
    ]
    rules: list[dict[str, Any]] = [{"match": {"prefix": "/free"}}]
    rules += [{"match": {"path": f"/{name}"}, "requirement_name": name} for name in REQUIREMENTS if name != "ann"]
    rules += [{"match": {"prefix": "/ann"}, "requires": REQUIREMENTS["ann"]}]
    rules += [{"match": {"prefix": "/", "headers": [{"name": "x-must"}]}, "requires": REQUIREMENTS["ann"]}]
    claim = {"filter": "envoy.filters.http.jwt_authn", "path": [{"key": "ann"}, {"key": "sub"}]}
    rbac = {
        "action": "DENY",
        "policies": {
            "eve": {
                "permissions": [{"any": True}],
                "principals": [{"metadata": {**claim, "value": {"string_match": {"exact": "eve"}}}}],
            }
        },
    }
    filters = [
        {
            "name": "jwt",
            "typed_config": {
                "@type": f"{JWT}JwtAuthentication",
                "providers": PROVIDERS,
                "rules": rules,
                "requirement_map": REQUIREMENTS,
            },
        },
        {"name": "rbac", "typed_config": {"@type": RBAC, "rules": rbac}},
        {"name": "router", "typed_config": {"@type": ROUTER}},
    ]
    config = {
        "@type": HTTP,
        "stat_prefix": "main",
        "route_config": {"name": "main", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": filters,
    }
    listener = {
        "name": "main",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": "${main}"}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": config}]}],
    }
    return {"static_resources": {"listeners": [listener], "clusters": [CLUSTER]}}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    lab = Lab(CaseFile("tokens", "tokens", _bootstrap(), (("a", ()),), ()))
    yield lab
    lab.close()


def bearer(token: str) -> list[str]:
    return [f"authorization: Bearer {token}"]


def by_bob(**claims: Any) -> str:
    return signed(OTHER, "ES256", iss="bob.test", **claims)


OK: Final = "200 grpc 0 from a"
NO: Final = "200 grpc 16"
OTHERS: Final = "200 grpc 7"
GOOD: Final = signed()
TABLE: Final[dict[str, tuple[str, list[str], str]]] = {
    # name: path, fields, outcome
    "RS256": ("/ann", bearer(GOOD), OK),
    "PS384": ("/ann", bearer(signed(alg="PS384")), OK),
    "ES256": ("/ann", bearer(signed(EC, "ES256")), OK),
    "ES384": ("/ann", bearer(signed(EC_384, "ES384")), OK),
    "EdDSA": ("/ann", bearer(signed(ED, "EdDSA")), OK),
    "no kid": ("/ann", bearer(signed(head={"kid": None})), OK),
    "several audiences": ("/ann", bearer(signed(aud=["x", "shop"])), OK),
    "an audience with a scheme": ("/ann", bearer(signed(aud="https://shop/")), OK),
    "claims become headers": (
        "/ann",
        bearer(signed(org={"team": "red"}, level=7, staff=True)),
        OK,
    ),
    "spoofed headers": ("/ann", [*bearer(GOOD), "x-user: root", "x-team: red"], OK),
    "a claim that a rule denies": ("/ann", bearer(signed(sub="eve")), OTHERS),
    "good for a minute more": ("/ann", bearer(signed(exp=NOW - 20)), OK),
    "good in a moment": ("/ann", bearer(signed(nbf=NOW + 20)), OK),
    "never expires": ("/ann", bearer(signed(exp=None)), OK),
    "must expire": ("/anybody", bearer(signed(exp=None)), NO),
    "of anybody": ("/anybody", bearer(signed(iss="zoe.test", aud=None)), OK),
    "without an issuer": ("/anybody", bearer(signed(iss=None)), OK),
    "clocks that differ less": ("/anybody", bearer(signed(exp=NOW - 40)), NO),
    "other audiences of a rule": ("/office", bearer(signed(aud="office")), OK),
    "the provider's audience is not the rule's": ("/office", bearer(GOOD), OTHERS),
    "a header of its own": ("/bob", [f"x-token: T {by_bob()}"], OK),
    "a header without a prefix": ("/bob", [f"x-bare: {by_bob()}"], OK),
    "not where it is expected": ("/bob", bearer(by_bob()), NO),
    "a parameter": (f"/bob?token={by_bob()}&x=1", [], OK),
    "a parameter by default": (f"/ann?access_token={GOOD}&x=1", [], OK),
    "either: the first": ("/either", bearer(GOOD), OK),
    "either: the second": ("/either", [f"x-token: T {by_bob()}"], OK),
    "either: none": ("/either", [], NO),
    "either: a bad one and a good one": ("/either", [*bearer(signed(STRANGER)), f"x-token: T {by_bob()}"], OK),
    "both": ("/both", [*bearer(GOOD), f"x-token: T {by_bob()}"], OK),
    "both: one": ("/both", bearer(GOOD), NO),
    "may: none": ("/may", [], OK),
    "may: a good one": ("/may", bearer(GOOD), OK),
    "may: a bad one": ("/may", bearer(signed(STRANGER)), NO),
    "missing: none": ("/missing", [], OK),
    "missing: good ones": ("/missing", [*bearer(GOOD), f"x-token: T {by_bob()}"], OK),
    "missing: a bad one": ("/missing", bearer(signed(STRANGER)), NO),
    "missing: an unknown issuer": ("/missing", bearer(by_bob(exp=1)), NO),
    "whatever: none": ("/whatever", [], OK),
    "whatever: a bad one": ("/whatever", [*bearer(signed(STRANGER)), "x-user: root"], OK),
    "whatever: a good one": ("/whatever", bearer(GOOD), OK),
    "free": ("/free", bearer(GOOD), OK),
    "a rule with a header, without it": ("/else", [], OK),
    "a rule with a header": ("/else", ["x-must: 1"], NO),
    "a route that asks for nothing": ("/off", [], OK),
    "a route of its own": ("/route", [f"x-token: T {by_bob()}"], OK),
    "a route of its own, without": ("/route", bearer(GOOD), NO),
    "a route that asks for what is not there": ("/nowhere", bearer(GOOD), OTHERS),
    "a spoofed header where nothing is asked": ("/free", ["x-user: root", "x-payload: x"], OK),
    "a spoofed header of another provider": ("/bob", [f"x-bare: {by_bob()}", "x-user: root"], OK),
    "a spoofed header on a route without": ("/off", ["x-user: root"], OK),
    # hostile
    "two authorization headers": ("/ann", [*bearer(GOOD), *bearer(GOOD)], NO),
    "a good one in front of a bad one": ("/ann", [*bearer(GOOD), *bearer(signed(STRANGER))], NO),
    "something behind a token": ("/ann", bearer(f"{GOOD},Bearer x"), NO),
    "spaces around a token": ("/ann", [f"authorization: Bearer   {GOOD}  "], OK),
    "no token": ("/ann", [], NO),
    "no Bearer": ("/ann", [f"authorization: {GOOD}"], NO),
    "Basic": ("/ann", [f"authorization: Basic {GOOD}"], NO),
    "bearer in lower case": ("/ann", [f"authorization: bearer {GOOD}"], NO),
    "Bearer and nothing": ("/ann", ["authorization: Bearer "], NO),
    "alg none": ("/ann", bearer(raw({"alg": "none"}, {"iss": "ann.test", "aud": "shop", "exp": NOW + 60}, "")), NO),
    "alg none with a signature": ("/ann", bearer(raw({"alg": "none"}, {"iss": "ann.test", "aud": "shop"}, "AAAA")), NO),
    "alg nOnE": ("/ann", bearer(raw({"alg": "nOnE"}, {"iss": "ann.test", "aud": "shop"}, "AAAA")), NO),
    "HS256 with the RSA key": ("/ann", bearer(with_secret(RSA.as_pem(private=False), kid="rsa")), NO),
    "HS256 without a kid": ("/ann", bearer(with_secret(RSA.as_pem(private=False))), NO),
    "another's key": ("/ann", bearer(signed(STRANGER)), NO),
    "a key by another's kid": ("/ann", bearer(signed(EC, "ES256", {"kid": "rsa"})), NO),
    "an unknown kid": ("/ann", bearer(signed(head={"kid": "new"})), NO),
    "a kid that is a path": ("/ann", bearer(signed(head={"kid": "../../dev/null"})), NO),
    "a kid that is no text": ("/ann", bearer(raw({"alg": "RS256", "kid": 7}, {"iss": "ann.test"}, "AAAA")), NO),
    "expired": ("/ann", bearer(signed(exp=NOW - 120)), NO),
    "not yet valid": ("/ann", bearer(signed(nbf=NOW + 120)), NO),
    "another's audience": ("/ann", bearer(signed(aud="office")), OTHERS),
    "no audience": ("/ann", bearer(signed(aud=None)), OTHERS),
    "another issuer": ("/ann", bearer(signed(iss="eve.test")), NO),
    "no issuer": ("/ann", bearer(signed(iss=None)), NO),
    "an exp that is a text": ("/ann", bearer(signed(exp="tomorrow")), NO),
    "a changed claim": (
        "/ann",
        bearer(".".join([GOOD.split(".")[0], signed(sub="root").split(".")[1], GOOD.split(".")[2]])),
        NO,
    ),
    "no signature": ("/ann", bearer(GOOD.rpartition(".")[0] + "."), NO),
    "two parts": ("/ann", bearer(GOOD.rpartition(".")[0]), NO),
    "five parts": ("/ann", bearer(f"{GOOD}.a.b"), NO),
    "a huge token that is none": ("/ann", bearer("a" * 30_000), NO),
    "nothing but dots": ("/ann", bearer(".."), NO),
    "claims that are a list": ("/ann", bearer(raw({"alg": "RS256"}, [1], "AAAA")), NO),
}


STRICTER: Final[dict[str, tuple[str, list[str], str, str]]] = {
    # name: path, fields, outcome here, why; Envoy lets them pass
    "another scheme in front of a good one": ("/ann", ["authorization: Basic YTpi", *bearer(GOOD)], NO, "one-token"),
    "a token behind other words": ("/ann", [f"authorization: Basic Bearer {GOOD}"], NO, "one-token"),
    "a long token": ("/ann", bearer(signed(pad="a" * 20_000)), NO, "long-tokens"),
    "a shared secret": ("/secret", bearer(with_secret(SECRET, "secret.test")), NO, "no-shared-secrets"),
}
DIFFERENCES: Final = {reason for *_, reason in STRICTER.values()}


def _case(name: str, path: str, fields: list[str], expect: dict[str, str], differs: str = "") -> Case:
    lines = tuple((engine, (f"1: {line}",)) for engine, line in expect.items())
    return Case("tokens", name, ({"call": {"path": path, "fields": fields}},), expect=lines, differs=differs)


def _sort(tree: Any) -> None:
    """The order of headers with different names has no meaning."""
    for value in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(value, list) and all(isinstance(item, tuple) and len(item) == 2 for item in value):
            value.sort()
        elif isinstance(value, dict | list | tuple):
            _sort(value)


@pytest.mark.parametrize("name", TABLE)
def test_both_engines_judge_a_token_alike(lab: Lab, name: str) -> None:
    path, fields, outcome = TABLE[name]
    case = _case(name, path, fields, {"envoy": outcome, "remora": outcome})
    assert not _faults(lab, case)


@pytest.mark.parametrize("name", STRICTER)
def test_the_sidecar_is_stricter_where_it_says_so(lab: Lab, name: str) -> None:
    path, fields, outcome, reason = STRICTER[name]
    case = _case(name, path, fields, {"envoy": OK, "remora": outcome}, reason)
    assert not _faults(lab, case)


def _faults(lab: Lab, case: Case) -> str:
    outcomes = lab.run(case)
    for outcome in outcomes.values():
        _sort(outcome.detail)
    return "\n".join(faults(case, outcomes))
