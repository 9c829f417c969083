"""Hedging: a slow try is not waited for; the first answer counts, and nothing of the others is left."""

from typing import Any

from sidecar.proxy.proxy import Proxy
from tests.differential.backend import Backend
from tests.ports import free_ports
from tests.sidecar import bootstraps
from tests.sidecar.running import arrived, backends, call, dial, origin, over, running, start
from tests.waiting import eventually_async

UNAVAILABLE = ["ended", {"only": [":status: 200", "grpc-status: 14"]}]


def bootstrap(port: int, *servers: Backend, tries: int = 1, delay: str = "0.03s", **policy: Any) -> dict[str, Any]:
    document = bootstraps.static(
        [bootstraps.listener("main", port, "a")], [bootstraps.cluster("a", *(server.port for server in servers))]
    )
    [chain] = document["static_resources"]["listeners"][0]["filter_chains"]
    [route] = chain["filters"][0]["typed_config"]["route_config"]["virtual_hosts"][0]["routes"]
    route["metadata"] = {"filter_metadata": {"remora.hedge": {"delay": delay, "tries": tries}}}
    if policy:
        route["route"]["retry_policy"] = policy
    return document


async def nothing_runs(proxy: Proxy) -> None:
    """Every count is back at nothing."""
    cluster = proxy.clusters["a"]
    await eventually_async(
        lambda: (
            (cluster.active, cluster.load.retrying, [each.active for each in cluster.endpoints.values()])
            == (0, 0, [0] * len(cluster.endpoints))
        )
    )


async def test_a_slow_endpoint_is_not_waited_for() -> None:
    [port] = free_ports(1)
    async with backends("a", "b") as [a, b], running(bootstrap(port, a, b)) as proxy:
        a.begin(["cancelled"])
        client = await dial(port)
        assert {origin(await call(client)) for _ in range(4)} == {"b"}
        assert len(a.requests) >= 1
        await eventually_async(lambda: all(request.seen.reset is not None for request in a.requests))
        assert proxy.worker.stats.retries[("a", "hedge")] >= 1
        await nothing_runs(proxy)


async def test_a_call_that_is_answered_in_time_is_made_once() -> None:
    [port] = free_ports(1)
    async with backends("a", "b") as [a, b], running(bootstrap(port, a, b, delay="30s")) as proxy:
        client = await dial(port)
        for _ in range(6):
            await call(client)
        assert len(a.requests) + len(b.requests) == 6
        await nothing_runs(proxy)


async def test_the_first_try_may_still_be_the_one() -> None:
    [port] = free_ports(1)
    async with backends("a", "b") as [a, b], running(bootstrap(port, a, b)) as proxy:
        a.begin([["hold", "ok"]])
        b.begin([["hold", "ok"]])
        client = await dial(port)
        seen = start(client)
        await arrived(a, 1)
        await arrived(b, 1)
        a.release()
        assert origin(await over(client, seen)) == "a"
        await eventually_async(lambda: b.requests[0].seen.reset is not None)
        await nothing_runs(proxy)


async def test_when_the_first_try_fails_the_other_takes_its_place() -> None:
    [port] = free_ports(1)
    async with backends("a", "b") as [a, b], running(bootstrap(port, a, b)) as proxy:
        a.begin([["hold", {"reset": "INTERNAL_ERROR"}]])
        b.begin([["hold", "ok"]])
        client = await dial(port)
        seen = start(client)
        await arrived(a, 1)
        await arrived(b, 1)
        a.release()
        await eventually_async(lambda: proxy.clusters["a"].active == 1)
        b.release()
        assert origin(await over(client, seen)) == "b"
        await nothing_runs(proxy)


async def test_an_answer_that_would_be_tried_again_does_not_count() -> None:
    [port] = free_ports(1)
    policy: dict[str, Any] = {"retry_on": "unavailable", "num_retries": 0}
    async with backends("a", "b") as [a, b], running(bootstrap(port, a, b, **policy)) as proxy:
        a.begin([["hold", "ok"]])
        b.begin([["hold", *UNAVAILABLE]])
        client = await dial(port)
        seen = start(client)
        await arrived(a, 1)
        await arrived(b, 1)
        b.release()
        await eventually_async(lambda: proxy.clusters["a"].active == 1)
        a.release()
        assert origin(await over(client, seen)) == "a"
        await nothing_runs(proxy)


async def test_a_caller_that_goes_takes_all_tries_along() -> None:
    [port] = free_ports(1)
    async with backends("a", "b", "c") as [a, b, c], running(bootstrap(port, a, b, c, tries=2)) as proxy:
        for server in (a, b, c):
            server.begin(["cancelled"])
        client = await dial(port)
        seen = start(client)
        for server in (a, b, c):
            await arrived(server, 1)
        client.reset(seen, "CANCEL")
        await eventually_async(lambda: all(each.requests[0].seen.reset is not None for each in (a, b, c)))
        await nothing_runs(proxy)


async def test_a_request_that_has_not_ended_is_not_made_twice() -> None:
    [port] = free_ports(1)
    async with backends("a", "b") as [a, b], running(bootstrap(port, a, b)) as proxy:
        client = await dial(port)
        seen = start(client, "one", ended=False)
        await eventually_async(lambda: len(a.requests) + len(b.requests) == 1)
        begun = proxy.worker.loop.time()
        await eventually_async(lambda: proxy.worker.loop.time() > begun + 0.1)
        assert len(a.requests) + len(b.requests) == 1
        client.data(seen, b"", ended=True)
        await over(client, seen)
        await nothing_runs(proxy)
