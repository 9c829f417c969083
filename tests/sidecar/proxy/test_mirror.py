"""Copies of calls: how many, and what bounds them. What arrives is compared with Envoy in tests/differential/cases/mirrors.yaml."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sidecar.proxy import copies, mirror
from sidecar.proxy.proxy import Proxy
from tests.differential.backend import Backend
from tests.differential.wire import Wire
from tests.ports import free_ports
from tests.sidecar import bootstraps
from tests.sidecar.running import arrived, backends, call, dial, running

LIMITED = "mirror_requests"
MIB = 1024 * 1024


@asynccontextmanager
async def mirrored(**policy: Any) -> AsyncIterator[tuple[Wire, Backend, Backend, Proxy]]:
    """A client's connection, the backend that answers, and the one that gets copies."""
    (port,) = free_ports(1)
    async with backends("a", "b", MAX_CONCURRENT_STREAMS=1000) as (a, b):
        wide = {"initial_stream_window_size": 4 * MIB, "initial_connection_window_size": 4 * MIB}
        listener = bootstraps.listener("main", port, "a", http2_protocol_options=wide)
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        action = manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"]
        action["request_mirror_policies"] = [{"cluster": "b", **policy}]
        clusters = [bootstraps.cluster(name, backend.port) for name, backend in (("a", a), ("b", b))]
        async with running(bootstraps.static([listener], clusters)) as proxy:
            yield await dial(port), a, b, proxy


async def test_a_share_of_the_calls_is_copied() -> None:
    half = {"default_value": {"numerator": 50, "denominator": "HUNDRED"}}
    async with mirrored(runtime_fraction=half) as (client, a, b, _):
        for _ in range(400):
            await call(client)
        assert len(a.requests) == 400
        # Six standard deviations: right by chance all but once in 500 million runs.
        assert 140 <= len(b.requests) <= 260


async def test_copies_that_are_not_answered_are_bounded_and_hold_up_nobody() -> None:
    async with mirrored() as (client, a, b, proxy):
        b.answers = ["hold"]
        for _ in range(mirror.MAX_CALLS + 20):
            await call(client)
        await arrived(b, mirror.MAX_CALLS)
        assert (len(a.requests), len(b.requests)) == (mirror.MAX_CALLS + 20, mirror.MAX_CALLS)
        assert proxy.worker.stats.exceeded == {LIMITED: 20}


async def test_a_request_that_is_too_long_to_be_kept_is_not_copied() -> None:
    async with mirrored() as (client, a, b, proxy):
        await call(client, b"x" * (copies.MAX_COPIED + 1))
        await call(client, "short")
        await arrived(b, 1)
        assert (len(a.requests), len(b.requests)) == (2, 1)
        assert proxy.worker.stats.exceeded == {"mirror_request_size": 1}
