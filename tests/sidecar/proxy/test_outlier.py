"""Endpoints that fail are left out: seen from the client, and at the admin endpoint."""

import asyncio
from typing import Any

from sidecar.proxy.proxy import Proxy
from sidecar.telemetry.clusters import as_json, as_text
from sidecar.xds.bootstrap import parse
from tests.differential.backend import Backend
from tests.differential.wire import Wire
from tests.ports import free_ports
from tests.sidecar import bootstraps
from tests.sidecar.running import backends, call, dial, origin, running
from tests.waiting import eventually_async

UNAVAILABLE = [["ended", {"only": [":status: 200", "grpc-status: 14"]}]]
EJECTING = {"consecutive_5xx": 2, "max_ejection_percent": 100, "base_ejection_time": "600s", "interval": "600s"}


def bootstrap(port: int, *servers: Backend, **detection: Any) -> dict[str, Any]:
    cluster = bootstraps.cluster(
        "a",
        *(server.port for server in servers),
        outlier_detection={**EJECTING, **detection},
        common_lb_config={"healthy_panic_threshold": {"value": 0}},
    )
    return bootstraps.static([bootstraps.listener("main", port, "a")], [cluster])


async def origins(client: Wire, count: int) -> list[str | None]:
    return [origin(await call(client)) for _ in range(count)]


def flags(proxy: Proxy) -> list[tuple[str, ...]]:
    [cluster] = proxy.worker.stats.clusters()
    return [endpoint.flags for endpoint in cluster.endpoints]


async def test_an_endpoint_that_fails_gets_no_more_calls() -> None:
    [port] = free_ports(1)
    async with backends("a", "b") as [a, b], running(bootstrap(port, a, b)) as proxy:
        a.begin(UNAVAILABLE)
        client = await dial(port)
        found = await origins(client, 20)
        assert found.count("a") == 2 and len(a.requests) == 2
        assert flags(proxy) == [("failed_outlier_check",), ()]


async def test_an_ejected_endpoint_returns_after_its_penalty() -> None:
    [port] = free_ports(1)
    async with backends("a", "b") as [a, b]:
        document = bootstrap(port, a, b, base_ejection_time="0.1s", interval="0.05s")
        async with running(document) as proxy:
            a.begin([*UNAVAILABLE, *UNAVAILABLE, "ok"])
            client = await dial(port)
            await origins(client, 4)
            assert flags(proxy) == [("failed_outlier_check",), ()]
            await eventually_async(lambda: flags(proxy) == [(), ()])
            assert (await origins(client, 4)).count("a") == 2


async def test_callers_whose_deadline_ends_are_a_failure_of_the_endpoint() -> None:
    [port] = free_ports(1)
    async with backends("a", "b") as [a, b], running(bootstrap(port, a, b)) as proxy:
        a.begin(["hold"])
        client = await dial(port)
        async with asyncio.timeout(5):
            while len(a.requests) < 2:
                await call(client, "hello", "grpc-timeout: 50m")
        assert flags(proxy) == [("failed_outlier_check",), ()]


async def test_an_update_that_still_names_an_ejected_endpoint_leaves_it_ejected() -> None:
    [port] = free_ports(1)
    async with backends("a", "b", "c") as [a, b, c], running(bootstrap(port, a, b)) as proxy:
        a.begin(UNAVAILABLE)
        client = await dial(port)
        await origins(client, 4)
        [config] = parse(bootstrap(port, a, b, c)).configuration.clusters
        proxy.clusters["a"].update_endpoints(config.endpoints)
        assert flags(proxy) == [("failed_outlier_check",), (), ()]
        assert set(await origins(client, 6)) == {"b", "c"}


async def test_the_admin_endpoint_shows_it_as_envoy_does() -> None:
    [port] = free_ports(1)
    async with backends("a", "b") as [a, b], running(bootstrap(port, a, b)) as proxy:
        a.begin(UNAVAILABLE)
        await origins(await dial(port), 4)
        states = proxy.worker.stats.clusters()
        lines = as_text(states).splitlines()
        assert f"a::127.0.0.1:{a.port}::health_flags::/failed_outlier_check" in lines
        assert f"a::127.0.0.1:{b.port}::health_flags::healthy" in lines
        assert "a::default_priority::max_requests::1024" in lines
        assert '"failed_outlier_check": true' in as_json(states)
