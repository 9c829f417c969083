"""Active health checks: against servers that say how they are, seen by who gets calls."""

import asyncio
from typing import Any

from sidecar.proxy.proxy import Proxy
from sidecar.xds.bootstrap import parse
from tests.differential.backend import Backend
from tests.ports import free_ports
from tests.sidecar import bootstraps
from tests.sidecar.running import backends, call, dial, origin, running
from tests.waiting import eventually_async

CHECK = {
    "timeout": "1s",
    "interval": "0.05s",
    "no_traffic_interval": "0.05s",
    "unhealthy_threshold": 2,
    "healthy_threshold": 2,
}
HTTP = {**CHECK, "http_health_check": {"path": "/healthz", "codec_client_type": "HTTP2"}}
WELL = ["ended", {"only": [":status: 200"]}]
ILL = ["ended", {"only": [":status: 503"]}]


def bootstrap(port: int, check: dict[str, Any], *servers: Backend, **options: Any) -> dict[str, Any]:
    cluster = bootstraps.cluster(
        "a",
        *(server.port for server in servers),
        health_checks=[check],
        common_lb_config={"healthy_panic_threshold": {"value": 0}},
        **options,
    )
    return bootstraps.static([bootstraps.listener("main", port, "a")], [cluster])


def flags(proxy: Proxy) -> list[tuple[str, ...]]:
    [cluster] = proxy.worker.stats.clusters()
    return [endpoint.flags for endpoint in cluster.endpoints]


async def test_an_endpoint_that_fails_its_check_gets_no_calls_until_it_passes() -> None:
    [port] = free_ports(1)
    async with backends("a", "b") as [a, b], running(bootstrap(port, HTTP, a, b)) as proxy:
        a.begin([ILL])
        b.begin([WELL])
        client = await dial(port)
        await eventually_async(lambda: flags(proxy) == [("failed_active_hc",), ()])
        assert {origin(await call(client)) for _ in range(8)} == {"b"}
        a.answers = [WELL]
        await eventually_async(lambda: flags(proxy) == [(), ()])
        assert {origin(await call(client)) for _ in range(8)} == {"a", "b"}
        assert proxy.worker.stats.checks[("a", "", True)] == 1


async def test_who_comes_later_gets_calls_only_once_it_passed() -> None:
    [port] = free_ports(1)
    async with backends("a", "b") as [a, b], running(bootstrap(port, HTTP, a)) as proxy:
        a.begin([WELL])
        b.begin([["hold", *WELL]])
        client = await dial(port)
        [config] = parse(bootstrap(port, HTTP, a, b)).configuration.clusters
        proxy.clusters["a"].update_endpoints(config.endpoints)
        assert flags(proxy)[1] == ("failed_active_hc",)
        assert {origin(await call(client)) for _ in range(4)} == {"a"}
        b.release()
        await eventually_async(lambda: flags(proxy) == [(), ()])


async def test_a_passed_check_ends_an_ejection() -> None:
    [port] = free_ports(1)
    ejection = {"consecutive_5xx": 1, "max_ejection_percent": 100, "base_ejection_time": "600s", "interval": "600s"}
    check = {**HTTP, "interval": "0.5s", "no_traffic_interval": "0.5s"}
    async with backends("a") as [a], running(bootstrap(port, check, a, outlier_detection=ejection)) as proxy:
        a.begin([WELL, ILL, WELL])
        client = await dial(port)
        await eventually_async(lambda: len(a.requests) == 1)
        await call(client)
        assert "failed_outlier_check" in flags(proxy)[0]
        await eventually_async(lambda: flags(proxy) == [()])


async def test_an_endpoint_of_http_1_is_asked_in_its_own_way() -> None:
    [port] = free_ports(1)
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    check = {**CHECK, "http_health_check": {"path": "/healthz", "host": "shop"}}
    cluster = bootstraps.cluster("a", server.sockets[0].getsockname()[1], health_checks=[check])
    document = bootstraps.static([bootstraps.listener("main", port, "a")], [cluster])
    async with server, running(document) as proxy:
        await eventually_async(lambda: len(asked) >= 2)
        assert asked[0].startswith(b"GET /healthz HTTP/1.1\r\n") and b"host: shop\r\n" in asked[0].lower()
        assert flags(proxy) == [()]


async def test_nothing_asks_any_more_once_the_endpoint_is_gone() -> None:
    [port] = free_ports(1)
    async with backends("a") as [a]:
        async with running(bootstrap(port, HTTP, a)):
            a.begin([WELL])
            await eventually_async(lambda: len(a.requests) >= 2)
        await eventually_async(lambda: all(conn.is_closed for conn in a.connections))
        await eventually_async(lambda: not any("Checker" in repr(task) for task in asyncio.all_tasks()))
