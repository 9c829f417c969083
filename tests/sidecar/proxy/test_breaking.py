"""A cluster with a classic breaker: what callers are told, what the service is spared, and how it comes back."""

from time import monotonic
from typing import Any

from sidecar.proxy.proxy import Proxy
from sidecar.telemetry.clusters import as_json, as_text
from tests.differential.backend import Backend
from tests.ports import free_ports
from tests.sidecar import bootstraps
from tests.sidecar.running import arrived, backends, call, dial, origin, over, running, start
from tests.waiting import eventually_async

UNAVAILABLE = ["ended", {"only": [":status: 200", "grpc-status: 14"]}]
TRAILERS = ["ended", {"headers": [":status: 200"]}, {"grpc": "one"}, {"trailers": ["grpc-status: 13"]}]


def bootstrap(port: int, server: Backend, mode: str = "Enforce", **breaker: Any) -> dict[str, Any]:
    spec = {"mode": mode, "breaker": {"minimumCalls": 4, "open": "0.2s", "probes": 2, **breaker}}
    cluster = bootstraps.cluster("a", server.port, metadata={"filter_metadata": {"remora.breaker": spec}})
    return bootstraps.static([bootstraps.listener("main", port, "a")], [cluster])


def state(proxy: Proxy) -> str:
    [cluster] = proxy.worker.stats.clusters()
    return str(cluster.breaker)


async def test_a_service_that_fails_is_left_alone_probed_and_used_again() -> None:
    [port] = free_ports(1)
    async with backends("a") as [a], running(bootstrap(port, a)) as proxy:
        a.begin([UNAVAILABLE, TRAILERS, UNAVAILABLE, TRAILERS, "ok"])
        client = await dial(port)
        for _ in range(4):
            assert origin(await call(client)) == "a"
        refused = await call(client)
        assert refused.header("grpc-status") == "14"
        told = str(refused.header("grpc-message"))
        assert 'circuit breaker open: "a": too many calls failed; the next probe may go in' in told
        assert len(a.requests) == 4
        assert state(proxy) == "open (too many calls failed)"
        breaker = proxy.clusters["a"].breaker
        assert breaker is not None
        await eventually_async(lambda: breaker.until < monotonic())
        assert origin(await call(client)) == "a"
        assert state(proxy) == "half-open (too many calls failed)"
        assert origin(await call(client)) == "a"
        assert state(proxy) == "closed"


async def test_in_shadow_mode_it_says_what_it_would_do_and_does_nothing() -> None:
    [port] = free_ports(1)
    async with backends("a") as [a], running(bootstrap(port, a, "Shadow", open="600s")) as proxy:
        a.begin([UNAVAILABLE])
        client = await dial(port)
        for _ in range(6):
            assert origin(await call(client)) == "a"
        [cluster] = proxy.worker.stats.clusters()
        assert cluster.breaker is not None
        assert (cluster.breaker.state, cluster.breaker.refused, cluster.breaker.is_enforced) == ("open", 2, False)


async def test_calls_that_their_callers_cancel_say_nothing() -> None:
    [port] = free_ports(1)
    async with backends("a") as [a], running(bootstrap(port, a)) as proxy:
        a.begin([["cancelled"]])
        client = await dial(port)
        for number in range(6):
            seen = start(client)
            await arrived(a, number + 1)
            client.reset(seen, "CANCEL")
        await eventually_async(lambda: proxy.clusters["a"].active == 0)
        assert state(proxy) == "closed"


async def test_what_is_the_callers_fault_opens_nothing() -> None:
    [port] = free_ports(1)
    async with backends("a") as [a], running(bootstrap(port, a)) as proxy:
        a.begin([["ended", {"only": [":status: 200", "grpc-status: 3"]}]])
        client = await dial(port)
        for _ in range(8):
            await call(client)
        assert state(proxy) == "closed"


async def test_slow_calls_open_it() -> None:
    [port] = free_ports(1)
    async with backends("a") as [a], running(bootstrap(port, a, slowCall="0.02s", open="600s")) as proxy:
        a.begin([["hold", "ok"]])
        client = await dial(port)
        calls = [start(client) for _ in range(4)]
        await arrived(a, 4)
        begun = proxy.worker.now
        await eventually_async(lambda: monotonic() - begun > 0.05)
        a.release()
        for seen in calls:
            await over(client, seen)
        assert state(proxy) == "open (too many calls were slow)"
        lines = as_text(proxy.worker.stats.clusters())
        assert "a::breaker::open (too many calls were slow)\n" in lines
        assert '"breaker": "open (too many calls were slow)"' in as_json(proxy.worker.stats.clusters())
