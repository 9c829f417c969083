"""Where calls go, as seen from inside: keys and the decision cache, cookies, latency, endpoints that come and change."""

from collections import Counter
from dataclasses import replace
from typing import Any, Final

import pytest

from sidecar.policy import hashing
from sidecar.policy.hosts import Health
from sidecar.proxy.config import EndpointConfig, LoadAssignment
from sidecar.proxy.proxy import Proxy
from tests.differential.backend import Backend
from tests.differential.wire import Wire
from tests.ports import free_ports
from tests.sidecar import bootstraps
from tests.sidecar.running import arrived, backends, call, dial, origin, over, running, start

PEAK_EWMA: Final = {
    "load_balancing_policy": {
        "policies": [
            {
                "typed_extension_config": {
                    "name": "remora.peak_ewma",
                    "typed_config": {
                        "@type": "type.googleapis.com/xds.type.v3.TypedStruct",
                        "type_url": "type.googleapis.com/remora.mesh.v1.PeakEwma",
                        "value": {"decay": "60s"},
                    },
                }
            }
        ]
    }
}


def bootstrap(port: int, hash_policy: list[dict[str, Any]], *targets: int, **options: Any) -> dict[str, Any]:
    """One route to one cluster; `options` are fields of the cluster."""
    listener = bootstraps.listener("main", port, "a")
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"]["hash_policy"] = hash_policy
    return bootstraps.static([listener], [bootstraps.cluster("a", *targets, **options)])


def ports(of: list[Backend]) -> list[int]:
    return [backend.port for backend in of]


async def origins(client: Wire, times: int) -> Counter[str | None]:
    """Who answers so many calls, one after the other."""
    return Counter([origin(await call(client)) for _ in range(times)])


# -- keys ---------------------------------------------------------------------------------------------


async def test_a_key_is_hashed_once_for_a_block_that_comes_again() -> None:
    [port] = free_ports(1)
    async with backends(*"abc") as servers:
        document = bootstrap(port, [{"header": {"header_name": "x-user"}}], *ports(servers), lb_policy="RING_HASH")
        async with running(document) as proxy:
            client = await dial(port)
            found = {origin(await call(client, "hello", "x-user: ada")) for _ in range(10)}
            misses = proxy.worker.stats.decision_misses
            found |= {origin(await call(client, "hello", "x-user: ada")) for _ in range(10)}
            assert len(found) == 1
            assert proxy.worker.stats.decision_misses == misses


async def test_users_of_one_route_have_one_decision_and_a_key_each() -> None:
    [port] = free_ports(1)
    async with backends(*"abc") as servers:
        document = bootstrap(port, [{"header": {"header_name": "x-user"}}], *ports(servers), lb_policy="MAGLEV")
        async with running(document) as proxy:
            client = await dial(port)
            found = [origin(await call(client, "hello", f"x-user: {number}")) for number in range(60)]
            again = [origin(await call(client, "hello", f"x-user: {number}")) for number in range(60)]
            assert found == again and set(found) == set("abc")
            [chain] = proxy.listeners["main"].update(proxy.configuration.listeners[0])
            assert len(chain.cache._masked) <= 2, "before and after the client knows that there is no dynamic table"


async def test_a_client_without_the_cookie_is_given_one_that_leads_back() -> None:
    [port] = free_ports(1)
    policy = [{"cookie": {"name": "session", "ttl": "60s", "path": "/shop"}}]
    async with backends(*"abcd") as servers:
        document = bootstrap(port, policy, *ports(servers), lb_policy="RING_HASH")
        async with running(document):
            client = await dial(port)
            first = await call(client)
            assert client._transport is not None
            ends = [client._transport.get_extra_info(name) for name in ("sockname", "peername")]
            value = hashing.text_key(["".join(f"{host}:{number}" for host, number in ends).encode()])
            assert first.header("set-cookie") == f'session="{value:016x}"; Max-Age=60; Path=/shop; HttpOnly'
            other = await dial(port)
            again = await call(other, "hello", f"cookie: theme=dark; session={value:016x}")
            assert origin(again) == origin(first)
            assert again.header("set-cookie") is None


async def test_clients_of_one_address_go_to_one_endpoint() -> None:
    [port] = free_ports(1)
    policy = [{"connection_properties": {"source_ip": True}}]
    async with backends(*"abcd") as servers, running(bootstrap(port, policy, *ports(servers), lb_policy="MAGLEV")):
        assert len({origin(await call(await dial(port))) for _ in range(6)}) == 1


# -- latency ------------------------------------------------------------------------------------------

OVERLOADED: Final = {
    "out of resources": [{"only": [":status: 200", "content-type: application/grpc", "grpc-status: 8"]}],
    "not available": [{"only": [":status: 200", "content-type: application/grpc", "grpc-status: 14"]}],
    "a push-back": [
        "ended",
        {"headers": [":status: 200", "content-type: application/grpc"]},
        {"trailers": ["grpc-status: 0", "grpc-retry-pushback-ms: 20000"]},
    ],
}


@pytest.mark.parametrize("answer", OVERLOADED)
async def test_who_is_overloaded_gets_no_calls_for_a_while(answer: str) -> None:
    [port] = free_ports(1)
    async with backends("a", "b") as [a, b], running(bootstrap(port, [], a.port, b.port, **PEAK_EWMA)):
        a.begin([OVERLOADED[answer]])
        found = await origins(await dial(port), 30)
        assert found["a"] <= 1 and found["b"] >= 29


async def test_who_refuses_a_try_gets_no_calls_for_a_while_although_the_caller_never_hears_of_it() -> None:
    [port] = free_ports(1)
    async with backends("a", "b") as [a, b]:
        document = bootstrap(port, [], a.port, b.port, **PEAK_EWMA)
        manager = document["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        route = manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"]
        route["retry_policy"] = {"retry_on": "refused-stream", "num_retries": 5}
        async with running(document):
            a.begin([{"reset": "REFUSED_STREAM"}])
            assert await origins(await dial(port), 30) == {"b": 30}
            assert len(a.requests) <= 1


async def test_who_does_not_answer_is_as_slow_as_it_was_waited_for() -> None:
    [port] = free_ports(1)
    async with backends("a", "b") as [a, b], running(bootstrap(port, [], a.port, b.port, **PEAK_EWMA)) as proxy:
        a.begin(["mute"])
        client = await dial(port)
        for _ in range(20):
            await call(client, "hello", "grpc-timeout: 100m")
        assert len(a.requests) <= 1
        slow = proxy.clusters["a"].endpoints["127.0.0.1", a.port].latency
        if a.requests:
            assert slow.seconds(proxy.worker.now) > 0.09


# -- endpoints ----------------------------------------------------------------------------------------


async def assign(proxy: Proxy, *endpoints: EndpointConfig) -> None:
    """New endpoints, as by EDS."""
    clusters = tuple(
        replace(known, eds_name="a", endpoints=LoadAssignment("")) for known in proxy.configuration.clusters
    )
    assigned = (LoadAssignment("a", endpoints),)
    await proxy.apply(replace(proxy.configuration, clusters=clusters, endpoints=assigned))


async def test_an_endpoint_that_comes_is_loaded_little_by_little() -> None:
    [port] = free_ports(1)
    slow_start = {"round_robin_lb_config": {"slow_start_config": {"slow_start_window": "3600s"}}}
    async with backends("a", "b") as [a, b], running(bootstrap(port, [], a.port, **slow_start)) as proxy:
        old, new = (EndpointConfig("127.0.0.1", backend.port) for backend in (a, b))
        await assign(proxy, old)
        for endpoint in proxy.clusters["a"].endpoints.values():
            endpoint.since -= 4000.0  # it has been there for long
        await assign(proxy, old, new)
        found = await origins(await dial(port), 110)
        assert 9 <= found["b"] <= 11, "a tenth of its share"
        proxy.clusters["a"].endpoints["127.0.0.1", b.port].since -= 4000.0
        await assign(proxy, old, replace(new, health=Health.UNHEALTHY))
        await assign(proxy, old, new)
        found = await origins(await dial(port), 110)
        assert 9 <= found["b"] <= 11, "one that was ill begins anew"


async def test_health_that_changes_moves_calls_at_once() -> None:
    [port] = free_ports(1)
    async with backends("a", "b") as [a, b], running(bootstrap(port, [], a.port)) as proxy:
        one, other = (EndpointConfig("127.0.0.1", backend.port) for backend in (a, b))
        client = await dial(port)
        await assign(proxy, one, replace(other, priority=1))
        assert await origins(client, 10) == {"a": 10}
        await assign(proxy, replace(one, health=Health.UNHEALTHY), replace(other, priority=1))
        assert await origins(client, 10) == {"b": 10}
        await assign(proxy, replace(one, health=Health.DEGRADED), replace(other, health=Health.UNHEALTHY))
        assert await origins(client, 10) == {"a": 10}


async def test_a_call_that_runs_stays_where_it_is_when_its_endpoint_is_out_of_favour() -> None:
    [port] = free_ports(1)
    async with backends("a", "b") as [a, b], running(bootstrap(port, [], a.port)) as proxy:
        one, other = (EndpointConfig("127.0.0.1", backend.port) for backend in (a, b))
        a.begin([["hold", "ok"]])
        client = await dial(port)
        await assign(proxy, one)
        seen = start(client)
        await arrived(a, 1)
        await assign(proxy, replace(one, health=Health.UNHEALTHY), other)
        assert await origins(client, 5) == {"b": 5}
        a.release()
        assert origin(await over(client, seen)) == "a"
