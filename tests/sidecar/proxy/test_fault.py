"""Faults and refusals on purpose: what metrics say of them, and that nothing of them is left."""

from typing import Any, Final

from sidecar.proxy.fault import FaultFilter
from sidecar.proxy.proxy import Proxy
from sidecar.proxy.shedding import AdaptiveFilter
from sidecar.proxy.step import Filter
from tests.differential.backend import Backend
from tests.ports import free_ports
from tests.sidecar import bootstraps
from tests.sidecar.running import arrived, backends, call, dial, origin, over, running, start
from tests.waiting import eventually_async

_HTTP: Final = "type.googleapis.com/envoy.extensions.filters.http."
ALL: Final = {"numerator": 100}


def bootstrap(port: int, server: Backend, kind: str, config: dict[str, Any]) -> dict[str, Any]:
    filters = [{"name": "it", "typed_config": {"@type": _HTTP + kind, **config}}, bootstraps.ROUTER]
    listener = bootstraps.listener("main", port, "a", http_filters=filters)
    return bootstraps.static([listener], [bootstraps.cluster("a", server.port)])


def filter_of(proxy: Proxy) -> Filter:
    """The one filter of the proxy."""
    [book] = proxy._filters.values()
    [found] = book._places.values()
    return found


def flags(proxy: Proxy) -> dict[tuple[int, str], int]:
    return {key: count for calls in proxy.worker.stats.calls.values() for key, count in calls.flagged.items()}


async def test_an_injected_error_says_that_it_is_one() -> None:
    [port] = free_ports(1)
    async with backends("a") as [a]:
        fault = {"abort": {"grpc_status": 14, "percentage": ALL}}
        async with running(bootstrap(port, a, "fault.v3.HTTPFault", fault)) as proxy:
            seen = await call(await dial(port))
            assert seen.header("grpc-message") == "fault injected on purpose: aborted with UNAVAILABLE (flag FI)"
            assert flags(proxy) == {(14, "FI"): 1}
            assert proxy.worker.stats.faults == {"abort": 1}
            assert not a.requests


async def test_a_call_that_was_held_carries_that_flag_to_its_end() -> None:
    [port] = free_ports(1)
    async with backends("a") as [a]:
        fault = {"delay": {"fixed_delay": "0.05s", "percentage": ALL}}
        async with running(bootstrap(port, a, "fault.v3.HTTPFault", fault)) as proxy:
            a.begin(["ok", ["ended", "close"]])
            client = await dial(port)
            assert origin(await call(client)) == "a"
            await call(client)
            assert flags(proxy) == {(0, "DI"): 1, (14, "UC,DI"): 1}


async def test_the_callers_deadline_ends_a_call_that_is_held() -> None:
    [port] = free_ports(1)
    async with backends("a") as [a]:
        fault = {"delay": {"fixed_delay": "60s", "percentage": ALL}, "max_active_faults": 1}
        async with running(bootstrap(port, a, "fault.v3.HTTPFault", fault)) as proxy:
            client = await dial(port)
            seen = await call(client, "hello", "grpc-timeout: 50m")
            assert seen.header("grpc-status") == "4"
            faults = filter_of(proxy)
            assert isinstance(faults, FaultFilter) and faults.active == 0


async def test_adaptive_concurrency_counts_every_end_of_a_call() -> None:
    [port] = free_ports(1)
    config = {
        "gradient_controller_config": {
            "concurrency_limit_params": {"concurrency_update_interval": "0.05s"},
            "min_rtt_calc_params": {"interval": "60s", "request_count": 5, "min_concurrency": 2},
        }
    }
    async with backends("a") as [a]:
        document = bootstrap(port, a, "adaptive_concurrency.v3.AdaptiveConcurrency", config)
        async with running(document) as proxy:
            a.begin([["hold", "ok"], ["hold", "ok"], "ok"])
            adaptive = filter_of(proxy)
            assert isinstance(adaptive, AdaptiveFilter) and adaptive._step is not None
            core = adaptive._step.core
            client = await dial(port)
            first, second = start(client), start(client)
            await arrived(a, 2)
            assert core.running == 2
            refused = await call(client)
            assert "2 calls run, as many as leave each of them its usual time" in str(refused.header("grpc-message"))
            assert proxy.worker.stats.shed == {("adaptive_concurrency", True): 1}
            client.reset(first, "CANCEL")
            a.release()
            await over(client, second)
            await eventually_async(lambda: core.running == 0)
            for _ in range(6):
                assert origin(await call(client)) == "a"
            assert not core.is_measuring and core.running == 0
