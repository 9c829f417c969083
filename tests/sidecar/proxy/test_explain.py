"""What a running sidecar says of calls that are not made: the same as becomes of those that are."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sidecar.proxy.access import Caller
from sidecar.proxy.explain import Unanswerable, answer, explain
from sidecar.proxy.proxy import Proxy
from tests.differential.backend import GRPC_OK, Backend
from tests.differential.wire import Wire
from tests.ports import free_ports
from tests.sidecar import bootstraps
from tests.sidecar.running import backends, call, dial, running

HTTP = "type.googleapis.com/envoy.extensions.filters.http."
PATH = "/shop.v1.Stock/Get"


@asynccontextmanager
async def mesh(
    *filters: dict[str, Any], cluster: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[tuple[Proxy, Wire, Backend]]:
    """A sidecar with these filters, a client's connection to it, and what is behind it."""
    (port,) = free_ports(1)
    async with backends("a") as (a,):
        listener = bootstraps.listener("main", port, "a", http_filters=[*filters, bootstraps.ROUTER], **options)
        async with running(
            bootstraps.static([listener], [bootstraps.cluster("a", a.port, **(cluster or {}))])
        ) as proxy:
            yield proxy, await dial(port), a


def limit(**fields: Any) -> dict[str, Any]:
    config = {
        "@type": "type.googleapis.com/remora.mesh.v1.RateLimitFilter",
        "policy": "shop/limit",
        "is_enforced": True,
        "interval": "3600s",
        **fields,
    }
    return {"name": "limit", "typed_config": config}


def fault(**fields: Any) -> dict[str, Any]:
    return {"name": "fault", "typed_config": {"@type": HTTP + "fault.v3.HTTPFault", **fields}}


def access(action: str, **rule: Any) -> dict[str, Any]:
    policy = {"permissions": [{"any": True}], "principals": [{"any": True}], **rule}
    rules = {"action": action, "policies": {"staff": policy}}
    return {"name": "access", "typed_config": {"@type": HTTP + "rbac.v3.RBAC", "rules": rules}}


def verdicts(told: dict[str, Any]) -> list[tuple[str, str]]:
    return [(each["kind"], each["verdict"]) for each in told["filters"]]


def routes(*rules: dict[str, Any]) -> dict[str, Any]:
    hosts = [{"name": "shop", "domains": ["stock.shop"], "routes": list(rules)}]
    return {"route_config": {"name": "shop", "virtual_hosts": hosts, "validate_clusters": False}}


async def test_asking_takes_no_token_and_counts_nothing() -> None:
    async with mesh(limit(algorithm="TokenBucket", requests=1)) as (proxy, client, a):
        for _ in range(3):
            told = explain(proxy, "stock.shop", PATH)
            assert verdicts(told) == [("rate limit", "passes")]
            assert "1 of 1 calls are left" in told["filters"][0]["why"]
        assert (proxy.worker.stats.decision_misses, proxy.worker.stats.limits["shop/limit"].allowed) == (0, 0)
        assert not a.requests
        assert (await call(client)).header("grpc-status") == "0"
        told = explain(proxy, "stock.shop", PATH)
        assert verdicts(told) == [("rate limit", "refuses")]
        assert told["outcome"].startswith('refused by rate limit: "shop/limit": 0 of 1 calls are left')
        assert (await call(client)).header("grpc-status") == "8"


@pytest.mark.parametrize(
    "algorithm", ["TokenBucket", "LeakyBucket", "SlidingWindow", "SlidingLog", "Gcra", "Concurrency"]
)
@pytest.mark.parametrize("used", [0, 1, 2, 3])
async def test_what_is_said_of_a_limit_is_what_the_next_call_finds(algorithm: str, used: int) -> None:
    count = 1 if algorithm == "LeakyBucket" else 2
    async with mesh(limit(algorithm=algorithm, requests=count)) as (proxy, client, _):
        for _ in range(used):
            await call(client)
        [(_, said)] = verdicts(explain(proxy, "stock.shop", PATH))
        status = (await call(client)).header("grpc-status")
        assert (said, status) in (("passes", "0"), ("refuses", "8"))


async def test_a_limit_by_key_is_told_for_the_key_of_the_call() -> None:
    async with mesh(limit(algorithm="Gcra", requests=1, keys=[{"header": "x-user"}], max_keys=10)) as (
        proxy,
        client,
        _,
    ):
        await call(client, "hello", "x-user: ann")
        assert verdicts(explain(proxy, "stock.shop", PATH, [("x-user", "ann")])) == [("rate limit", "refuses")]
        told = explain(proxy, "stock.shop", PATH, [("x-user", "bob")])
        assert verdicts(told) == [("rate limit", "passes")]
        assert "for x-user=bob" in told["filters"][0]["why"]


async def test_a_call_that_would_wait_is_told_how_long() -> None:
    async with mesh(limit(algorithm="LeakyBucket", requests=1, interval="60s", max_wait="100s")) as (proxy, client, _):
        await call(client)
        told = explain(proxy, "stock.shop", PATH)
        assert verdicts(told) == [("rate limit", "holds")]
        assert "this one after 59.9" in told["filters"][0]["why"]


async def test_on_trial_nothing_is_refused() -> None:
    async with mesh(limit(algorithm="Gcra", requests=1, is_enforced=False)) as (proxy, client, _):
        await call(client)
        told = explain(proxy, "stock.shop", PATH)
        assert verdicts(told) == [("rate limit", "would refuse")]
        assert told["outcome"] == "goes to a"


async def test_the_chain_is_told_in_order_with_each_verdict() -> None:
    abort = {"grpc_status": 14, "percentage": {"numerator": 100}}
    rule = {"permissions": [{"header": {"name": "x-role", "string_match": {"exact": "staff"}}}]}
    async with mesh(access("ALLOW", **rule), fault(abort=abort), limit(requests=5)) as (proxy, client, _):
        told = explain(proxy, "stock.shop", PATH, [("x-role", "staff")])
        assert verdicts(told) == [("access", "passes"), ("fault", "refuses"), ("rate limit", "passes")]
        assert told["outcome"] == "refused by fault: aborts 100.00% of the calls with UNAVAILABLE"
        told = explain(proxy, "stock.shop", PATH)
        assert verdicts(told)[0] == ("access", "refuses")
        seen = await call(client)
        assert seen.header("grpc-status") == "7"
        assert (seen.header("grpc-message") or "").startswith("access denied: no policy allows it")
        assert "no policy allows it" in told["outcome"]


async def test_a_rule_about_the_caller_is_answered_for_the_caller_that_is_named() -> None:
    ann = "spiffe://shop.test/ns/default/sa/ann"
    rule = {"principals": [{"authenticated": {"principal_name": {"exact": ann}}}]}
    async with mesh(access("ALLOW", **rule)) as (proxy, _, _):
        known = explain(proxy, "stock.shop", PATH, caller=Caller(is_secure=True, uris=(ann,)))
        assert (verdicts(known), known["filters"][0]["why"]) == ([("access", "passes")], 'policy "staff" allows it')
        assert verdicts(explain(proxy, "stock.shop", PATH)) == [("access", "refuses")]


async def test_a_fault_by_chance_is_said_to_be_one() -> None:
    delay = {"fixed_delay": "2s", "percentage": {"numerator": 25}}
    async with mesh(fault(delay=delay)) as (proxy, _, _):
        told = explain(proxy, "stock.shop", PATH)
        assert told["filters"][0] | {"filter": ""} == {
            "filter": "",
            "kind": "fault",
            "verdict": "by chance",
            "why": "delays 25.00% of the calls by 2 s",
        }


async def test_the_rule_that_takes_the_call_is_named() -> None:
    rules = routes(
        {
            "name": "beta",
            "match": {"path": PATH, "headers": [{"name": "x-beta", "string_match": {"exact": "yes"}}]},
            "route": {"cluster": "a", "timeout": "3s", "idle_timeout": "7s"},
        },
        {"match": {"prefix": "/shop.v1."}, "route": {"cluster": "gone"}},
    )
    async with mesh(**rules) as (proxy, _, _):
        told = explain(proxy, "stock.shop", PATH, [("x-beta", "yes"), ("grpc-timeout", "500m")])
        assert told["route"] == {
            "virtualHost": "shop",
            "name": "beta",
            "rule": f"path is {PATH}, header x-beta is yes",
            "number": 1,
        }
        assert told["timeouts"] == {"deadlineS": 0.5, "requestS": 3.0, "idleS": 7.0, "perTryS": 0.0}
        other = explain(proxy, "stock.shop", PATH)
        assert other["outcome"] == 'answered here: UNAVAILABLE: cluster "gone" is not known here (flag NC)'
        nobody = explain(proxy, "till.shop", PATH)
        assert nobody["route"] is None
        assert 'no service named "till.shop" in the mesh' in nobody["outcome"]
        unrouted = explain(proxy, "stock.shop", "/other.Service/Call")
        assert (unrouted["route"]["number"], "no route for path" in unrouted["outcome"]) == (0, True)


async def test_weighted_clusters_are_told_with_their_shares() -> None:
    weights = {"clusters": [{"name": "a", "weight": 90}, {"name": "b", "weight": 10}]}
    rules = routes({"match": {"prefix": "/"}, "route": {"weighted_clusters": weights}})
    (port,) = free_ports(1)
    async with backends("a", "b") as (a, b):
        clusters = [bootstraps.cluster("a", a.port), bootstraps.cluster("b", b.port)]
        document = bootstraps.static([bootstraps.listener("main", port, "a", **rules)], clusters)
        async with running(document) as proxy:
            told = explain(proxy, "stock.shop", PATH)
            assert [(each["cluster"], each["share"]) for each in told["clusters"]] == [("a", 0.9), ("b", 0.1)]
            assert told["outcome"] == "goes to a (90.0%), b (10.0%)"


async def test_an_ejected_endpoint_is_told_with_the_rest_of_its_time() -> None:
    outlier = {"consecutive_5xx": 1, "base_ejection_time": "30s", "max_ejection_percent": 100}
    options = {"outlier_detection": outlier, "common_lb_config": {"healthy_panic_threshold": {"value": 0}}}
    async with mesh(cluster=options) as (proxy, client, a):
        [before] = explain(proxy, "stock.shop", PATH)["clusters"]
        assert (before["endpoints"][0]["health"], before["endpoints"][0]["ejected"]) == ("healthy", False)
        a.answers = [{"only": [*GRPC_OK, "grpc-status: 14"]}]
        await call(client)
        told = explain(proxy, "stock.shop", PATH)
        [endpoint] = told["clusters"][0]["endpoints"]
        assert (endpoint["health"], endpoint["ejected"]) == ("unhealthy", True)
        assert 25.0 < endpoint["ejectedForS"] <= 30.0
        assert told["outcome"] == 'refused: "a": none of its 1 endpoints is usable'
        assert "none of its 1 endpoints is usable" in ((await call(client)).header("grpc-message") or "")


async def test_retries_and_what_is_left_of_their_budget() -> None:
    policy = {"retry_on": "unavailable,reset", "num_retries": 4, "per_try_timeout": "2s"}
    rules = routes({"match": {"prefix": "/"}, "route": {"cluster": "a", "retry_policy": policy}})
    budget = {"budget_percent": {"value": 25}, "min_retry_concurrency": 5}
    thresholds = {"circuit_breakers": {"thresholds": [{"max_requests": 7, "retry_budget": budget}]}}
    async with mesh(cluster=thresholds, **rules) as (proxy, _, _):
        told = explain(proxy, "stock.shop", PATH)
        assert told["retries"] == {
            "on": ["unavailable", "reset"],
            "most": 4,
            "backoffS": [0.025, 0.25],
            "otherHostFirst": False,
            "hedges": 0,
            "hedgeDelayS": 0.0,
        }
        assert told["timeouts"]["perTryS"] == 2.0
        [cluster] = told["clusters"]
        assert cluster["requests"] == {"active": 0, "limit": 7}
        assert cluster["retryBudget"] == {
            "active": 0,
            "limit": 5,
            "left": 5,
            "rule": "25 % of the calls that run, at least 5",
        }


async def test_questions_that_cannot_be_answered_say_why() -> None:
    async with mesh() as (proxy, _, _):
        with pytest.raises(Unanswerable, match="this sidecar has no inbound listener for calls"):
            explain(proxy, "stock.shop", PATH, is_inbound=True)
        with pytest.raises(Unanswerable, match="refused as malformed: control character"):
            explain(proxy, "stock.shop", PATH, [("x-a", "b\x00c")])
        assert answer(proxy, b"[]") == (422, {"error": "the question is no object"})
        assert answer(proxy, b'{"authority": "a"}') == (422, {"error": "path is missing"})
        for question in (
            b"",
            b"{",
            b'{"authority": "a", "path": "/", "headers": [1]}',
            b'{"authority":"a","path":"/","caller":3}',
        ):
            assert answer(proxy, question)[0] == 400, question
        question = json.dumps({"authority": "stock.shop", "path": PATH, "headers": [["x-a", "b"]]}).encode()
        status, told = answer(proxy, question)
        assert (status, told["outcome"]) == (200, "goes to a")
        json.dumps(told)
