"""Rate limits with the mesh's own algorithms, in a running sidecar: who goes on, who waits, who is refused and what they read."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sidecar.proxy.proxy import Proxy
from tests.differential.backend import Backend
from tests.differential.wire import Seen, Wire
from tests.ports import free_ports
from tests.sidecar import bootstraps
from tests.sidecar.running import arrived, backends, call, dial, over, running, start
from tests.waiting import eventually_async

HOUR = "3600s"


@asynccontextmanager
async def limited(**limit: Any) -> AsyncIterator[tuple[Wire, Backend, Proxy]]:
    """A client's connection to a sidecar with a rate limit, and what is behind it."""
    config = {"@type": "type.googleapis.com/remora.mesh.v1.RateLimitFilter", "policy": "shop/limit", **limit}
    config.setdefault("is_enforced", True)
    (port,) = free_ports(1)
    async with backends("a") as (a,):
        filters = [{"name": "limit", "typed_config": config}, bootstraps.ROUTER]
        listener = bootstraps.listener("main", port, "a", http_filters=filters)
        async with running(bootstraps.static([listener], [bootstraps.cluster("a", a.port)])) as proxy:
            yield await dial(port), a, proxy


def status(seen: Seen) -> str | None:
    return seen.header("grpc-status")


async def statuses(client: Wire, *calls: tuple[str, ...]) -> list[str | None]:
    return [status(await call(client, "hello", *fields)) for fields in calls]


@pytest.mark.parametrize("algorithm", ["TokenBucket", "LeakyBucket", "SlidingWindow", "SlidingLog", "Gcra"])
async def test_each_algorithm_refuses_what_is_too_much(algorithm: str) -> None:
    count = 1 if algorithm == "LeakyBucket" else 2
    async with limited(algorithm=algorithm, requests=count, interval=HOUR) as (client, a, proxy):
        assert await statuses(client, *[()] * 3) == ["0"] * count + ["8"] * (3 - count)
        assert len(a.requests) == count
        stats = proxy.worker.stats.limits["shop/limit"]
        assert (stats.allowed, stats.refused, stats.would_refuse) == (count, 3 - count, 0)


async def test_who_is_refused_reads_what_and_when_to_come_again() -> None:
    async with limited(algorithm="SlidingLog", requests=1, interval="10s") as (client, _, _):
        await call(client)
        refused = await call(client)
        assert (refused.header("grpc-message") or "").startswith(
            'rate limit "shop/limit": 1 calls per 10 s at this instance are used up; try again in 9.9'
        )
        assert 9_000 < int(refused.header("grpc-retry-pushback-ms") or "") <= 10_000


async def test_shadow_counts_and_lets_go() -> None:
    async with limited(algorithm="Gcra", requests=1, interval=HOUR, is_enforced=False) as (client, _, proxy):
        assert await statuses(client, (), ()) == ["0", "0"]
        assert proxy.worker.stats.limits["shop/limit"].would_refuse == 1


async def test_a_leaky_bucket_holds_calls_and_lets_them_leave_evenly_spaced() -> None:
    async with limited(algorithm="LeakyBucket", requests=20, interval="1s", max_wait="1s") as (client, _, proxy):
        seen = [start(client) for _ in range(4)]
        assert [status(await over(client, one)) for one in seen] == ["0"] * 4
        stats = proxy.worker.stats
        assert stats.limits["shop/limit"].held == 3
        assert stats.of_calls("main", "a", "").sum_s > 0.04 + 0.09 + 0.14


async def test_a_held_call_that_is_cancelled_never_reaches_the_program() -> None:
    async with limited(algorithm="LeakyBucket", requests=10, interval="1s", max_wait="10s") as (client, a, proxy):
        assert status(await call(client)) == "0"
        held = start(client)
        await eventually_async(lambda: proxy.worker.stats.limits["shop/limit"].held == 1)
        client.reset(held, "CANCEL")
        assert status(await call(client)) == "0"  # it waits behind the one that is gone
        assert len(a.requests) == 2


async def test_at_most_so_many_run_at_once_however_they_end() -> None:
    async with limited(algorithm="Concurrency", requests=1) as (client, a, _):
        a.answers = ["hold", "ok"]
        running_call = start(client)
        await arrived(a, 1)
        refused = await call(client)
        assert status(refused) == "8"
        assert "1 calls run at this instance already" in (refused.header("grpc-message") or "")
        client.reset(running_call, "CANCEL")
        assert status(await call(client)) == "0"


async def test_each_key_has_a_count_of_its_own_and_leaving_it_out_is_no_way_round() -> None:
    keys = [{"header": "x-user"}, {"source": "Method"}]
    async with limited(algorithm="Gcra", requests=1, interval=HOUR, keys=keys, max_keys=10) as (client, _, _):
        ann, bob = ("x-user: ann",), ("x-user: bob",)
        assert await statuses(client, ann, bob, ann, (), (), bob) == ["0", "0", "8", "0", "8", "8"]


async def test_more_keys_than_are_kept_share_one_count() -> None:
    keys = [{"header": "x-user"}]
    async with limited(algorithm="SlidingWindow", requests=1, interval=HOUR, keys=keys, max_keys=2) as (client, _, _):
        users = [(f"x-user: {number}",) for number in range(5)]
        assert await statuses(client, *users) == ["0", "0", "0", "8", "8"]
