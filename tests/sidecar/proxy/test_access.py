"""Access rules in a running sidecar: what a refused caller reads, and what is counted. Verdicts: tests/differential/test_access.py."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sidecar.proxy.proxy import Proxy
from sidecar.telemetry.stats import AccessStats
from tests.differential.wire import Seen, Wire
from tests.ports import free_ports
from tests.sidecar import bootstraps
from tests.sidecar.running import backends, call, dial, running

RBAC = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"
ANN = {"permissions": [{"any": True}], "principals": [{"header": {"name": "x-user", "string_match": {"exact": "ann"}}}]}
LOCAL = {
    "permissions": [{"any": True}],
    "principals": [{"direct_remote_ip": {"address_prefix": "127.0.0.0", "prefix_len": 8}}],
}


@asynccontextmanager
async def guarded(**config: Any) -> AsyncIterator[tuple[Wire, Proxy]]:
    (port,) = free_ports(1)
    async with backends("a") as (a,):
        filters = [{"name": "rbac", "typed_config": {"@type": RBAC, **config}}, bootstraps.ROUTER]
        listener = bootstraps.listener("main", port, "a", http_filters=filters)
        async with running(bootstraps.static([listener], [bootstraps.cluster("a", a.port)])) as proxy:
            yield await dial(port), proxy


def text(seen: Seen) -> str:
    return seen.header("grpc-message") or ""


async def test_who_is_refused_reads_which_policy_did_it_and_as_whom_it_was_seen() -> None:
    async with guarded(rules={"action": "DENY", "policies": {"no-ann": ANN}}) as (client, _):
        refused = await call(client, "hello", "x-user: ann")
        assert refused.header("grpc-status") == "7"
        assert text(refused) == (
            'access denied: policy "no-ann" denies it; the caller is seen as nobody (it showed no certificate), '
            "the call is /shop.Orders/Get (flag RBAC)"
        )


async def test_who_is_not_allowed_reads_that_no_policy_allows_it() -> None:
    async with guarded(rules={"action": "ALLOW", "policies": {"ann": ANN}}) as (client, _):
        assert "no policy allows it" in text(await call(client, "hello", "x-user: bob"))


async def test_what_rules_do_and_would_do_is_counted() -> None:
    rules = {"action": "ALLOW", "policies": {"local": LOCAL}}
    shadow = {"action": "ALLOW", "policies": {"ann": ANN}}
    names = {"rules_stat_prefix": "real", "shadow_rules_stat_prefix": "trial"}
    async with guarded(rules=rules, shadow_rules=shadow, **names) as (client, proxy):
        for user in ("ann", "bob", "cid"):
            assert (await call(client, "hello", f"x-user: {user}")).header("grpc-status") == "0"
        assert proxy.worker.stats.access["real"] == AccessStats(allowed=3)
        assert proxy.worker.stats.access["trial"] == AccessStats(shadow_allowed=1, shadow_denied=2)


async def test_a_refused_call_reaches_nobody() -> None:
    async with guarded(rules={"action": "ALLOW"}) as (client, proxy):
        await call(client)
        assert proxy.clusters["a"].endpoints and not proxy.clusters["a"].connections
