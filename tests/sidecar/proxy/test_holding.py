"""Calls that are held: by a reader that does not read, by an endpoint that cannot be reached, by a deadline that runs meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from sidecar.proxy.cluster import LONGEST_BACKOFF_S, Endpoint
from sidecar.proxy.decision import parse_timeout, write_timeout
from sidecar.proxy.proxy import Proxy
from tests.differential import script
from tests.differential.wire import Wire
from tests.ports import free_ports
from tests.sidecar import bootstraps
from tests.sidecar.running import PATIENCE_S, arrived, backends, call, dial, over, running, start
from tests.waiting import eventually_async

MIB = 1024 * 1024
SIZE = 200 * 1024
LARGE = ["ended", {"headers": [":status: 200", "content-type: application/grpc"]}, {"grpc": "x" * SIZE}]
LARGE_ANSWER = [[*LARGE, {"trailers": ["grpc-status: 0"]}]]
SMALL_ANSWER = [["ended", {"only": [":status: 200", "content-type: application/grpc", "grpc-status: 0"]}]]


def bootstrap(port: int, *endpoints: int, route: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    listener = bootstraps.listener("main", port, "a", **options)
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"].update(route or {})
    breakers = {"thresholds": [{"max_retries": 1000}]}
    return bootstraps.static([listener], [bootstraps.cluster("a", *endpoints, circuit_breakers=breakers)])


def endpoint(proxy: Proxy) -> Endpoint:
    return next(iter(proxy.clusters["a"].endpoints.values()))


@asynccontextmanager
async def serving(port: int, method: Any) -> AsyncIterator[None]:
    """A real gRPC server with one method that streams its answer."""
    server = grpc.aio.server()
    handlers: dict[str, Any] = {"Get": grpc.unary_stream_rpc_method_handler(method)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Orders", handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield
    finally:
        await asyncio.wait_for(server.stop(0), PATIENCE_S)


async def test_a_reader_that_stalls_does_not_hold_up_others_on_the_same_connection_upstream() -> None:
    """100 answers of 200 KiB, more than the connection's window upstream, wait for a client that opens no window."""
    (port,) = free_ports(1)
    async with backends("a") as (a,), running(bootstrap(port, a.port)) as proxy:
        a.answers = LARGE_ANSWER
        slow = await dial(port, INITIAL_WINDOW_SIZE=0)
        held = [start(slow) for _ in range(100)]
        await arrived(a, 100)
        quick = await dial(port)
        for _ in range(20):
            seen = await call(quick)
            assert seen.header("grpc-status") == "0"
            assert len(seen.data) == SIZE + 5
        assert len(a.connections) == 1
        for seen in held:
            slow.give_window(seen.id, MIB)
        for seen in held:
            await over(slow, seen)
        assert {len(seen.data) for seen in held} == {SIZE + 5}
        assert {seen.header("grpc-status") for seen in held} == {"0"}
        assert all(downstream.conn.waiting == 0 for downstream in proxy.listeners["main"].downstreams)


async def test_what_is_kept_for_one_client_has_a_bound_and_others_do_not_feel_it() -> None:
    (port,) = free_ports(1)
    document = bootstrap(port, 0)
    async with backends("a") as (a,):
        document = bootstrap(port, a.port)
        document["layered_runtime"] = {
            "layers": [{"name": "static", "static_layer": {"remora.max_buffered_bytes": 2 * MIB}}]
        }
        async with running(document) as proxy:
            a.answers = LARGE_ANSWER
            slow = await dial(port, INITIAL_WINDOW_SIZE=0)
            held = [start(slow) for _ in range(20)]
            assert await slow.until(lambda: sum(seen.reset is not None for seen in held) >= 10, PATIENCE_S)
            (kept,) = proxy.listeners["main"].downstreams
            assert kept.conn.waiting <= 2 * MIB + 16_384
            assert proxy.worker.stats.exceeded["max_buffered_bytes"] >= 10
            quick = await dial(port)
            assert (await call(quick)).header("grpc-status") == "0"
            for seen in held:
                if seen.reset is None:
                    slow.give_window(seen.id, MIB)
            rest = [await over(slow, seen) for seen in held if seen.reset is None]
            assert rest
            assert {len(seen.data) for seen in rest} == {SIZE + 5}


async def test_a_thousand_streams_whose_reader_stalls_are_held_and_lose_nothing() -> None:
    """200 MiB are on offer, from a real gRPC server; a quarter of the bound makes windows narrow, so that the bound is not reached."""
    port, server_port = free_ports(2)
    streams, chunk, chunks = 1_000, b"x" * 20_000, 10

    async def flood(request: bytes, context: Any) -> Any:
        for _ in range(chunks):
            yield chunk

    breakers = {"thresholds": [{"max_requests": 10_000}]}
    document = bootstraps.static(
        [bootstraps.listener("main", port, "a")], [bootstraps.cluster("a", server_port, circuit_breakers=breakers)]
    )
    async with serving(server_port, flood), running(document) as proxy:
        client = await dial(port, INITIAL_WINDOW_SIZE=0)
        held = [start(client, "hello") for _ in range(streams)]
        await eventually_async(lambda: proxy.listeners["main"].downstreams)
        (kept,) = proxy.listeners["main"].downstreams
        seen = [0]

        def stands_still() -> bool:
            seen.append(kept.conn.waiting)
            return len(seen) > 25 and seen[-1] > MIB and seen[-25] == seen[-1]

        await eventually_async(stands_still, timeout_s=30)
        assert 16 * MIB < kept.conn.waiting < 64 * MIB
        for each in held:
            client.give_window(each.id, MIB)
        for each in held:
            assert await client.until(lambda each=each: each.is_over, 30)  # type: ignore[misc]
        assert {each.header("grpc-status") for each in held} == {"0"}
        assert {len(each.data) for each in held} == {chunks * (len(chunk) + 5)}
        assert proxy.worker.stats.exceeded == {}


async def test_a_call_that_waited_for_its_endpoint_goes_on_with_the_time_that_is_left() -> None:
    port, late = free_ports(2)
    async with backends("a") as (a,), running(bootstrap(port, late)) as proxy:
        relay = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", late)
        relay.close()  # the port refuses until the backend takes it over below
        await relay.wait_closed()
        client = await dial(port)
        for _ in range(4):
            assert (await call(client)).header("grpc-status") == "14"
        assert endpoint(proxy)._failures >= 4
        seen = start(client, "hello", "grpc-timeout: 5S")
        server = await asyncio.get_running_loop().create_server(a._accept, "127.0.0.1", late)
        await over(client, seen)
        server.close()
        assert seen.header("grpc-status") == "0"
        (request,) = a.requests
        left = parse_timeout((request.seen.header("grpc-timeout") or "").encode())
        assert 5.0 - 2 * LONGEST_BACKOFF_S < left < 5.0 - 0.01


async def test_a_call_that_did_not_wait_keeps_the_deadline_that_it_came_with() -> None:
    (port,) = free_ports(1)
    async with backends("a") as (a,), running(bootstrap(port, a.port)):
        client = await dial(port)
        await call(client)
        await call(client, "hello", "grpc-timeout: 5S")
        assert a.requests[1].seen.header("grpc-timeout") == "5S"


async def test_attempts_to_connect_to_an_endpoint_that_refuses_become_rare() -> None:
    port, dead = free_ports(2)
    async with running(bootstrap(port, dead)) as proxy:
        client = await dial(port)
        for _ in range(6):
            assert (await call(client)).header("grpc-status") == "14"
        failing = endpoint(proxy)
        assert failing._failures == 6
        # From the second failure on the wait doubles from 25 ms: the sixth is followed by 400 ms, by chance half as much or half more.
        wait = failing._not_before - asyncio.get_running_loop().time()
        assert 0.1 < wait <= 0.6


async def test_calls_do_not_wait_for_an_endpoint_that_refuses_while_there_is_another() -> None:
    port, dead = free_ports(2)
    async with backends("a") as (a,), running(bootstrap(port, a.port, dead)) as proxy:
        client = await dial(port)
        failed = 0
        while proxy.clusters["a"].endpoints["127.0.0.1", dead]._failures < 2:
            failed += (await call(client)).header("grpc-status") == "14"
        assert failed == 2
        for _ in range(20):
            proxy.clusters["a"].endpoints["127.0.0.1", dead]._not_before = asyncio.get_running_loop().time() + 60.0
            assert (await call(client)).header("grpc-status") == "0"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0000004, b"1u"), (0.25, b"250000u"), (99.9, b"99900000u"), (100.0, b"100000m"), (360_000.0, b"360000S")],
)
def test_a_deadline_is_written_in_the_finest_unit_that_has_room(seconds: float, text: bytes) -> None:
    assert write_timeout(seconds) == text
    assert parse_timeout(text) <= max(seconds, 1e-6)


async def test_windows_that_are_left_to_us_grow_while_the_data_is_taken() -> None:
    (port,) = free_ports(1)
    async with backends("a") as (a,), running(bootstrap(port, a.port)):
        a.answers = SMALL_ANSWER
        client = await dial(port)
        assert await client.until(lambda: 4 in client.peer_settings, PATIENCE_S)
        first = client.peer_settings[4]
        seen = client.open(script.fields(script.GRPC), ended=False)
        sent = 0
        client.data(seen, b"\0" + (12 * MIB).to_bytes(4, "big"), ended=False)
        granted = Granted(client, seen.id, first)
        granted.left -= 5
        while sent < 12 * MIB:
            await granted.room(16_384)
            client.data(seen, b"x" * 16_384, ended=False)
            granted.left -= 16_384
            sent += 16_384
        client.data(seen, b"", ended=True)
        await over(client, seen)
        assert seen.header("grpc-status") == "0"
        assert granted.most >= 2 * first


class Granted:
    """Counts the window that a stream has, and the most that it had."""

    def __init__(self, client: Wire, stream_id: int, first: int) -> None:
        self.left = self.most = first
        self._client = client
        self._stream_id = stream_id
        self._on_frame = client._on_frame
        client._on_frame = self._count  # type: ignore[method-assign]

    def _count(self, kind: str, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == "WINDOW_UPDATE" and stream_id == self._stream_id:
            self.left += int.from_bytes(payload, "big")
            self.most = max(self.most, self.left)
        self._on_frame(kind, flags, stream_id, payload)

    async def room(self, size: int) -> None:
        await eventually_async(lambda: self.left >= size, timeout_s=PATIENCE_S)
