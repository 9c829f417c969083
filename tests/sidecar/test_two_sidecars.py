"""Real gRPC through two sidecars: client, its sidecar, the server's sidecar, server. Nothing on the way may show."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import grpc
import grpc.aio
import pytest

from tests.differential import engines, script
from tests.differential.engines import Engine
from tests.differential.wire import Wire
from tests.ports import free_ports
from tests.sidecar import bootstraps
from tests.waiting import eventually_async

MIB: Final = 1024 * 1024
OPTIONS: Final = [
    ("grpc.max_receive_message_length", 16 * MIB),
    ("grpc.max_send_message_length", 16 * MIB),
    ("grpc.enable_http_proxy", 0),
]
TEXT: Final = "kein Lagerbestand: 書籍 №7 — 100 %\n"
BINARY: Final = bytes(range(256))

Context = grpc.aio.ServicerContext[bytes, bytes]


@dataclass
class Shop(grpc.GenericRpcHandler):
    """A server whose methods do what a test needs, and which writes down what it saw."""

    sent: int = 0
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    has_finished: bool = False
    remaining_s: float = 0.0
    metadata: list[tuple[str, str | bytes]] = field(default_factory=list)

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """The handler of a method, by its name."""
        name = details.method.rpartition("/")[2]
        kinds: dict[str, Any] = {
            "Echo": grpc.unary_unary_rpc_method_handler(self.echo),
            "Fail": grpc.unary_unary_rpc_method_handler(self.fail),
            "Sleep": grpc.unary_unary_rpc_method_handler(self.sleep),
            "Count": grpc.unary_stream_rpc_method_handler(self.count),
            "Flood": grpc.unary_stream_rpc_method_handler(self.flood),
            "Sum": grpc.stream_unary_rpc_method_handler(self.sum),
            "Chat": grpc.stream_stream_rpc_method_handler(self.chat),
            "Refuse": grpc.stream_stream_rpc_method_handler(self.refuse),
        }
        return kinds[name]

    async def echo(self, request: bytes, context: Context) -> bytes:
        self.metadata = list(context.invocation_metadata() or ())
        await context.send_initial_metadata((("x-head", "1"), ("x-head-bin", BINARY)))
        context.set_trailing_metadata((("x-tail", "2"), ("x-tail-bin", BINARY)))
        return request

    async def fail(self, request: bytes, context: Context) -> bytes:
        context.set_trailing_metadata((("x-tail-bin", BINARY),))
        code = next(code for code in grpc.StatusCode if code.value[0] == int(request))
        await context.abort(code, TEXT)

    async def sleep(self, request: bytes, context: Context) -> bytes:
        self.remaining_s = context.time_remaining()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return b""

    def _on_done(self, _: Any) -> None:
        self.done.set()

    async def count(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        for number in range(int(request)):
            yield b"%d" % number

    async def flood(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        for _ in range(int(request)):
            yield bytes(64 * 1024)
            self.sent += 1

    async def sum(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        return b"%d" % sum([int(request) async for request in requests])

    async def chat(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        cast(Any, context).add_done_callback(self._on_done)
        async for request in requests:
            yield request
        yield b"bye"
        yield b"bye"
        self.has_finished = True

    async def refuse(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        yield await anext(requests)
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, TEXT)


@dataclass
class Sidecars:
    """Two processes between the port that clients dial and the port of the server."""

    entrance: int
    server: int
    processes: list[Engine]

    def rss(self) -> int:
        """Bytes of memory that both have now."""
        return sum(_rss(engine.process.pid) for engine in self.processes)


def _rss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


@pytest.fixture(scope="module")
def sidecars(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecars]:
    entrance, between, server = free_ports(3)
    processes: list[Engine] = []
    try:
        for name, port, target in (("in", between, server), ("out", entrance, between)):
            bootstrap = bootstraps.static(
                [bootstraps.listener(name, port, "next")], [bootstraps.cluster("next", target)]
            )
            processes.append(engines.start("remora", bootstrap, [port], tmp_path_factory.mktemp(name)))
        yield Sidecars(entrance, server, processes)
        for engine in processes:
            assert engine.is_running
            assert engine.log.read_text() == ""
    finally:
        for engine in processes:
            engine.stop()


@asynccontextmanager
async def opened(sidecars: Sidecars) -> AsyncIterator[tuple[grpc.aio.Channel, Shop]]:
    """A server behind the sidecars, and a channel in front of them."""
    shop = Shop()
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((shop,))
    server.add_insecure_port(f"127.0.0.1:{sidecars.server}")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{sidecars.entrance}", options=OPTIONS) as channel:
            yield channel, shop
    finally:
        await server.stop(None)


def _method(channel: grpc.aio.Channel, kind: str, name: str) -> Any:
    """A method without serialisers: bytes in, bytes out (the stubs know none of that)."""
    return getattr(channel, kind)(f"/shop.Orders/{name}")


async def _say(*messages: bytes) -> AsyncIterator[bytes]:
    for message in messages:
        yield message


async def _unary(channel: grpc.aio.Channel, number: int) -> bool:
    message = b"%d" % number
    return bool(await _method(channel, "unary_unary", "Echo")(message) == message)


async def _server_streaming(channel: grpc.aio.Channel, number: int) -> bool:
    got = [each async for each in _method(channel, "unary_stream", "Count")(b"%d" % (number % 20))]
    return got == [b"%d" % each for each in range(number % 20)]


async def _client_streaming(channel: grpc.aio.Channel, number: int) -> bool:
    messages = [b"%d" % each for each in range(number % 20)]
    return bool(await _method(channel, "stream_unary", "Sum")(_say(*messages)) == b"%d" % sum(range(number % 20)))


async def _both_streaming(channel: grpc.aio.Channel, number: int) -> bool:
    call = _method(channel, "stream_stream", "Chat")()
    for each in range(number % 20):
        await call.write(b"%d" % each)
        if await call.read() != b"%d" % each:
            return False
    await call.done_writing()
    return await call.read() == b"bye" and await call.read() == b"bye" and await call.read() is grpc.aio.EOF


KINDS: Final[dict[str, tuple[Callable[[grpc.aio.Channel, int], Awaitable[bool]], int]]] = {
    "unary": (_unary, 1_000),
    "server streaming": (_server_streaming, 100),
    "client streaming": (_client_streaming, 100),
    "both streaming": (_both_streaming, 100),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_many_calls_of_each_kind_pass_without_an_error(sidecars: Sidecars, kind: str) -> None:
    call, times = KINDS[kind]
    async with opened(sidecars) as (channel, _):
        results = [
            await asyncio.gather(*(call(channel, number) for number in range(start, start + 50)))
            for start in range(0, times, 50)
        ]
    assert [result for batch in results for result in batch] == [True] * times


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
async def test_every_status_arrives_with_its_message_and_metadata(sidecars: Sidecars, code: grpc.StatusCode) -> None:
    async with opened(sidecars) as (channel, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _method(channel, "unary_unary", "Fail")(b"%d" % code.value[0])
    assert caught.value.code() is code
    assert caught.value.details() == TEXT
    assert ("x-tail-bin", BINARY) in tuple(caught.value.trailing_metadata())


async def test_metadata_arrives_both_ways(sidecars: Sidecars) -> None:
    async with opened(sidecars) as (channel, shop):
        call = _method(channel, "unary_unary", "Echo")(
            b"x", metadata=(("x-user", "ann"), ("x-user", "bob"), ("x-user-bin", BINARY))
        )
        await call
        seen = [(key, value) for key, value in shop.metadata if key.startswith("x-user")]
        assert seen == [("x-user", "ann"), ("x-user", "bob"), ("x-user-bin", BINARY)]
        assert {("x-head", "1"), ("x-head-bin", BINARY)} <= set(await call.initial_metadata())
        assert {("x-tail", "2"), ("x-tail-bin", BINARY)} <= set(await call.trailing_metadata())


@pytest.mark.parametrize("size", [0, 1, 16_379, 16_380, 65_530, 65_531, 4 * MIB])
async def test_messages_of_any_size_arrive_whole(sidecars: Sidecars, size: int) -> None:
    message = (BINARY * (size // 256 + 1))[:size]
    async with opened(sidecars) as (channel, _):
        assert await _method(channel, "unary_unary", "Echo")(message) == message


async def test_a_deadline_ends_the_call_on_both_sides(sidecars: Sidecars) -> None:
    async with opened(sidecars) as (channel, shop):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _method(channel, "unary_unary", "Sleep")(b"", timeout=0.3)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.wait_for(shop.cancelled.wait(), 5)
        assert 0.0 < shop.remaining_s < 0.4


async def test_a_client_that_cancels_ends_the_call_at_the_server(sidecars: Sidecars) -> None:
    async with opened(sidecars) as (channel, shop):
        call = _method(channel, "stream_stream", "Chat")()
        await call.write(b"hello")
        assert await call.read() == b"hello"
        call.cancel()
        await asyncio.wait_for(shop.done.wait(), 5)
        assert not shop.has_finished
        assert await _method(channel, "unary_unary", "Echo")(b"still") == b"still"


async def test_a_server_may_end_a_call_in_the_middle(sidecars: Sidecars) -> None:
    async with opened(sidecars) as (channel, _):
        call = _method(channel, "stream_stream", "Refuse")()
        await call.write(b"hello")
        assert await call.read() == b"hello"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.FAILED_PRECONDITION, TEXT)


async def test_a_server_goes_on_after_the_client_has_said_its_last(sidecars: Sidecars) -> None:
    async with opened(sidecars) as (channel, _):
        call = _method(channel, "stream_stream", "Chat")()
        await call.write(b"hello")
        await call.done_writing()
        assert [message async for message in call] == [b"hello", b"bye", b"bye"]


async def test_readers_that_do_not_read_hold_their_writers_and_cost_little_memory(sidecars: Sidecars) -> None:
    streams, messages = 25, 100  # 6.25 MiB each, 156 MiB in all
    async with opened(sidecars) as (_, shop):
        before = sidecars.rss()
        client = Wire(is_server=False, announced={"INITIAL_WINDOW_SIZE": 65_535}, gives_window=False)
        await asyncio.get_running_loop().create_connection(lambda: client, "127.0.0.1", sidecars.entrance)
        client.hello()
        for _ in range(streams):
            seen = client.open(
                script.fields([*script.GRPC[:2], ":path: /shop.Orders/Flood", *script.GRPC[3:]]), ended=False
            )
            client.data(seen, script.message(str(messages)), ended=True)
        assert await client.until(lambda: all(len(seen.data) == 65_535 for seen in client.streams.values()), 20)
        counts: list[int] = []

        def stands_still() -> bool:
            counts.append(shop.sent)
            return len(counts) > 25 and counts[-25] == counts[-1]

        await eventually_async(stands_still, timeout_s=20)
        assert shop.sent < streams * messages / 2
        assert sidecars.rss() - before < 64 * MIB
        for seen in client.streams.values():
            client.give_window(seen.id, 16 * MIB)
        assert await client.until(lambda: all(seen.is_over for seen in client.streams.values()), 30)
        assert {len(seen.data) for seen in client.streams.values()} == {messages * (64 * 1024 + 5)}
        assert {seen.header("grpc-status") for seen in client.streams.values()} == {"0"}
        client.close()


async def test_a_channel_that_was_told_a_proxy_reaches_a_name_that_no_dns_knows(tmp_path: Path) -> None:
    port, server = free_ports(2)
    connect = bootstraps.listener("connect", port, "mesh", upgrade_configs=[{"upgrade_type": "CONNECT"}])
    manager = connect["filter_chains"][0]["filters"][0]["typed_config"]
    manager["route_config"]["virtual_hosts"][0]["routes"] = [
        {
            "match": {"connect_matcher": {}},
            "route": {"cluster": "mesh", "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}]},
        }
    ]
    mesh = bootstraps.listener("mesh", 0, "shop")
    del mesh["address"]
    mesh["internal_listener"] = {}
    inside = {"envoy_internal_address": {"server_listener_name": "mesh"}}
    bootstrap = bootstraps.static(
        [connect, mesh],
        [
            bootstraps.cluster("shop", server),
            {
                "name": "mesh",
                "type": "STATIC",
                "load_assignment": {
                    "cluster_name": "mesh",
                    "endpoints": [{"lb_endpoints": [{"endpoint": {"address": inside}}]}],
                },
            },
        ],
    )
    engine = engines.start("remora", bootstrap, [port], tmp_path)
    try:
        async with opened(Sidecars(port, server, [engine])):
            options = [("grpc.http_proxy", f"http://127.0.0.1:{port}")]
            async with grpc.aio.insecure_channel("orders.shop:50051", options=options) as channel:
                results = await asyncio.gather(*(_unary(channel, number) for number in range(100)))
            assert results == [True] * 100
    finally:
        engine.stop()
