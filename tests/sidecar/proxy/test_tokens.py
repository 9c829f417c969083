"""Tokens in a running sidecar: what a refused caller reads, what the application gets, what is remembered. Verdicts: tests/differential/test_tokens.py."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
from joserfc import jws
from joserfc.jwk import ECKey

from sidecar.policy import tokens
from sidecar.proxy import token_filter
from sidecar.proxy.explain import explain
from sidecar.proxy.proxy import Proxy
from tests.differential.backend import Backend
from tests.differential.wire import Seen, Wire
from tests.ports import free_ports
from tests.sidecar import bootstraps
from tests.sidecar.running import backends, call, dial, running

JWT: Final = "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication"
RBAC: Final = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"
KEY: Final = ECKey.generate_key("P-256", {"kid": "one"})
STRANGER: Final = ECKey.generate_key("P-256", {"kid": "two"})


def signed(key: ECKey = KEY, **claims: Any) -> str:
    payload = {"iss": "ann.test", "sub": "ann", "exp": int(time.time()) + 3600, **claims}
    header = {"alg": "ES256", "kid": key.kid}
    return jws.serialize_compact(header, json.dumps(payload).encode(), key, algorithms=["ES256"])


@asynccontextmanager
async def guarded(*more: Any, **provider: Any) -> AsyncIterator[tuple[Wire, Proxy, Backend]]:
    (port,) = free_ports(1)
    keys = {"inline_string": json.dumps({"keys": [KEY.as_dict(private=False)]})}
    config = {
        "@type": JWT,
        "providers": {"ann": {"issuer": "ann.test", "audiences": ["shop"], "local_jwks": keys, **provider}},
        "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "ann"}}],
    }
    async with backends("a") as (a,):
        filters = [{"name": "jwt", "typed_config": config}, *more, bootstraps.ROUTER]
        listener = bootstraps.listener("main", port, "a", http_filters=filters)
        async with running(bootstraps.static([listener], [bootstraps.cluster("a", a.port)])) as proxy:
            yield await dial(port), proxy, a


def text(seen: Seen) -> str:
    return seen.header("grpc-message") or ""


@pytest.mark.parametrize(
    ("key", "claims", "said"),
    [
        (KEY, {"aud": "shop", "exp": 1}, "the token expired"),
        (KEY, {"aud": "shop", "nbf": 2**40}, "the token is good only in"),
        (KEY, {"aud": "office"}, "the token is not for shop"),
        (KEY, {"aud": "shop", "iss": "eve.test"}, 'the token is by "eve.test"; those of "ann.test" are taken'),
        (STRANGER, {"aud": "shop"}, 'no key of the issuer is known by the token\'s kid "two" for ES256'),
    ],
)
async def test_who_is_refused_reads_what_is_wrong_with_the_token_and_never_the_token(
    key: ECKey, claims: dict[str, Any], said: str
) -> None:
    token = signed(key, **claims)
    async with guarded() as (client, _, _):
        refused = await call(client, "hello", f"authorization: Bearer {token}")
        assert refused.header("grpc-status") in ("16", "7")
        assert said in text(refused)
        assert not any(part in text(refused) for part in token.split("."))


async def test_who_has_no_token_reads_where_one_is_expected() -> None:
    async with guarded() as (client, _, _):
        assert text(await call(client)) == "no token was sent (authorization: Bearer TOKEN) (flag JWT)"


async def test_a_token_stays_at_the_sidecar_and_its_claims_go_on() -> None:
    claims = [{"header_name": "x-user", "claim_name": "sub"}]
    async with guarded(claim_to_headers=claims) as (client, _, backend):
        fields = (f"authorization: Bearer {signed(aud='shop')}", "x-user: root")
        for _ in range(3):  # anew, then from the plan
            assert (await call(client, "hello", *fields)).header("grpc-status") == "0"
        assert len(backend.requests) == 3
        for request in backend.requests:
            names = dict(request.seen.headers or [])
            assert names["x-user"] == "ann"
            assert "authorization" not in names


async def test_a_token_is_verified_once_and_not_again_before_it_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    check = tokens.check_signature

    def counted(token: tokens.Token, keys: tuple[tokens.Key, ...]) -> None:
        checked.append(token.text)
        check(token, keys)

    monkeypatch.setattr(tokens, "check_signature", counted)
    async with guarded() as (client, proxy, _):
        token = signed(aud="shop")
        for number in range(5):  # a header that differs makes each block a new one
            seen = await call(client, "hello", f"authorization: Bearer {token}", f"x-trace: {number}")
            assert seen.header("grpc-status") == "0"
        assert checked == [token]
        now = time.time()
        monkeypatch.setattr(token_filter, "time", lambda: now + 7200.0)
        refused = await call(client, "hello", f"authorization: Bearer {token}", "x-trace: 1")
        assert "the token expired" in text(refused)
        assert proxy.worker.stats.tokens == {"accepted": 5, "expired": 1}


async def test_a_known_block_is_refused_when_its_token_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    async with guarded() as (client, _, _):
        field = f"authorization: Bearer {signed(aud='shop')}"
        for _ in range(4):
            assert (await call(client, "hello", field)).header("grpc-status") == "0"
        now = time.time()
        monkeypatch.setattr(token_filter, "time", lambda: now + 7200.0)
        assert (await call(client, "hello", field)).header("grpc-status") == "16"


async def test_rules_behind_it_do_not_see_what_a_caller_says_in_headers_that_are_made_of_tokens() -> None:
    root = {"header": {"name": "x-user", "string_match": {"exact": "root"}}}
    allow = {"action": "ALLOW", "policies": {"root": {"permissions": [{"any": True}], "principals": [root]}}}
    rules = {"name": "rbac", "typed_config": {"@type": RBAC, "rules": allow}}
    claims = [{"header_name": "x-user", "claim_name": "sub"}]
    async with guarded(rules, claim_to_headers=claims) as (client, _, _):
        seen = await call(client, "hello", f"authorization: Bearer {signed(aud='shop')}", "x-user: root")
        assert seen.header("grpc-status") == "7"


async def test_a_call_that_is_only_asked_about_is_told_what_its_token_would_come_to() -> None:
    eve = {"filter": token_filter.METADATA, "path": [{"key": "all"}, {"key": "sub"}]}
    principal = {"metadata": {**eve, "value": {"string_match": {"exact": "eve"}}}}
    deny = {"action": "DENY", "policies": {"eve": {"permissions": [{"any": True}], "principals": [principal]}}}
    rules = {"name": "rbac", "typed_config": {"@type": RBAC, "rules": deny}}
    async with guarded(rules, payload_in_metadata="all") as (client, proxy, _):
        await call(client)
        before = dict(proxy.worker.stats.tokens)

        def told(*fields: tuple[str, str]) -> list[tuple[str, str]]:
            found = explain(proxy, "shop", "/shop.Orders/Get", fields)["filters"]
            return [(each["verdict"], each["why"]) for each in found]

        assert told()[0] == ("refuses", "no token was sent (authorization: Bearer TOKEN) (flag JWT)")
        assert told(("authorization", f"Bearer {signed(aud='shop')}")) == [
            ("passes", "the token is good"),
            ("passes", "no policy denies it"),
        ]
        verdict, why = told(("authorization", f"Bearer {signed(aud='shop', sub='eve')}"))[1]
        assert verdict == "refuses"
        assert 'policy "eve" denies it' in why
        assert proxy.worker.stats.tokens == before


async def test_what_cannot_be_verified_is_not_remembered() -> None:
    async with guarded() as (client, proxy, _):
        for _ in range(3):
            await call(client, "hello", f"authorization: Bearer {signed(STRANGER, aud='shop', kid='one')}")
        assert proxy.worker.stats.tokens == {"signature": 3}
