"""What a call goes through on its way: waiting for a connection, window, failures that come and go."""

from typing import Any

from tests.differential import script
from tests.differential.wire import Wire
from tests.ports import free_ports
from tests.sidecar import bootstraps
from tests.sidecar.running import arrived, backends, call, dial, origin, over, running, start
from tests.waiting import eventually_async

KIB = 1024


def bootstrap(port: int, *targets: int, retry: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    listener = bootstraps.listener("main", port, "a", **options)
    if retry is not None:
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"]["retry_policy"] = retry
    return bootstraps.static([listener], [bootstraps.cluster("a", *targets)])


def is_well(client: Wire) -> bool:
    return client.goaway is None and not client.is_closed


async def test_calls_that_waited_for_a_connection_cost_no_window() -> None:
    """The client sends as much as it may if all window came back: what was lost would show as FLOW_CONTROL_ERROR."""
    [port] = free_ports(1)
    small = {
        "http2_protocol_options": {"initial_stream_window_size": 65_535, "initial_connection_window_size": 131_070}
    }
    async with backends("a", MAX_CONCURRENT_STREAMS=1, INITIAL_WINDOW_SIZE=8 * KIB) as [a]:
        document = bootstrap(port, a.port, **small)
        document["static_resources"]["clusters"][0]["circuit_breakers"] = {"thresholds": [{"max_connections": 1}]}
        async with running(document):
            client = await dial(port)
            await call(client)
            for _ in range(30):
                a.begin([["hold", "ok"], "ok"])
                first = start(client, b"x")
                await arrived(a, 1)
                second = start(client, bytes(16 * KIB))
                a.release()
                await over(client, first)
                await arrived(a, 2)
                answer = await over(client, second)
                assert len(answer.data) == 16 * KIB
            assert is_well(client)


async def test_a_call_that_is_tried_again_has_its_whole_window() -> None:
    [port] = free_ports(1)
    small = {"http2_protocol_options": {"initial_stream_window_size": 65_535}}
    async with backends("a", INITIAL_WINDOW_SIZE=8 * KIB) as [a]:
        a.gives_window = False
        async with running(bootstrap(port, a.port, retry={"retry_on": "refused-stream"}, **small)):
            client = await dial(port)
            await call(client)  # from here on the proxy knows the small window
            a.begin(["hold", "ok"])
            seen = start(client, bytes(60 * KIB), ended=False)
            await arrived(a, 1)
            refused = a.requests[0]
            assert await refused.conn.until(lambda: len(refused.seen.data) == 8 * KIB, 5)
            refused.conn.reset(refused.seen, "REFUSED_STREAM")
            await arrived(a, 2)
            again = a.requests[1]
            again.conn.give_window(again.seen.id, 256 * KIB)
            assert await again.conn.until(lambda: len(again.seen.data) == 60 * KIB, 5)
            client.data(seen, bytes(60 * KIB), ended=True)
            answer = await over(client, seen)
            assert len(answer.data) == 120 * KIB
            assert is_well(client)


async def test_a_client_gets_its_answer_after_the_upstream_was_away() -> None:
    port, target = free_ports(2)
    async with running(bootstrap(port, target)):
        client = await dial(port)
        away = await call(client)
        assert away.header("grpc-status") == "14"
        message = away.header("grpc-message") or ""
        assert message.startswith(f'upstream connect error: "a": no connection to 127.0.0.1:{target}: ')
        assert "refused" in message and message.endswith("(flag UF)")
        async with backends("a") as [a]:
            # The port that was free is the backend's now; in between it may be taken, which no test can help.
            a.close()
            await a.open(target)

            async def is_back() -> bool:
                return origin(await call(client)) == "a"

            await eventually_async(is_back)


async def test_calls_that_wait_for_one_connection_share_it() -> None:
    [port] = free_ports(1)
    async with backends("a") as [a], running(bootstrap(port, a.port)):
        client = await dial(port)
        calls = [start(client, str(number)) for number in range(50)]
        for number, seen in enumerate(calls):
            assert bytes((await over(client, seen)).data) == script.message(str(number))
        assert len(a.connections) == 1


async def test_more_connections_are_opened_where_one_has_no_room() -> None:
    [port] = free_ports(1)
    async with backends("a", MAX_CONCURRENT_STREAMS=2) as [a], running(bootstrap(port, a.port)):
        a.begin([["hold", "ok"]])
        client = await dial(port)
        calls = [start(client) for _ in range(6)]
        await arrived(a, 6)
        a.release()
        assert [origin(await over(client, seen)) for seen in calls] == ["a"] * 6
        assert len(a.connections) <= 5  # the server says how many only once a connection is there


async def test_an_upstream_is_told_cancel_when_its_caller_is_gone() -> None:
    [port] = free_ports(1)
    async with backends("a") as [a], running(bootstrap(port, a.port)):
        a.begin(["cancelled"])
        for how in ("reset", "close"):
            client = await dial(port)
            seen = start(client)
            await arrived(a, len(a.requests) + 1 if how == "reset" else 2)
            request = a.requests[-1]
            if how == "reset":
                client.reset(seen, "CANCEL")
            else:
                client.close()
            assert await request.conn.until(lambda request=request: request.seen.reset is not None, 5)  # type: ignore[misc]
            assert request.seen.reset == 8


async def test_a_connection_that_sends_no_window_holds_back_only_itself() -> None:
    [port] = free_ports(1)
    async with backends("a") as [a], running(bootstrap(port, a.port)):
        a.begin(
            [
                [
                    {"headers": [":status: 200"]},
                    {"data": {"repeat": "x", "times": 200 * KIB}},
                    {"trailers": ["grpc-status: 0"]},
                ],
                "ok",
            ]
        )
        slow = await dial(port, INITIAL_WINDOW_SIZE=0)
        stalled = start(slow)
        assert await slow.until(lambda: stalled.headers is not None, 5)
        fast = await dial(port)
        for number in range(100):
            assert bytes((await call(fast, str(number))).data) == script.message(str(number))
        assert len(stalled.data) == 0
        slow.give_window(stalled.id, 256 * KIB)
        assert len((await over(slow, stalled)).data) == 200 * KIB


async def test_what_one_client_began_ends_with_its_connection() -> None:
    [port] = free_ports(1)
    async with backends("a") as [a], running(bootstrap(port, a.port)) as proxy:
        a.begin(["hold"])
        client = await dial(port)
        for _ in range(20):
            start(client)
        await arrived(a, 20)
        cluster = proxy.clusters["a"]
        assert cluster.active == 20
        client.close()
        await eventually_async(lambda: cluster.active == 0 and cluster.pending == 0)
        assert all(listener.calls == 0 for listener in proxy.listeners.values())
        assert sum(endpoint.active for endpoint in cluster.endpoints.values()) == 0


async def test_workers_write_once_a_wake_up() -> None:
    """Ten calls that come in one packet leave in one packet."""
    [port] = free_ports(1)
    async with backends("a") as [a], running(bootstrap(port, a.port)):
        client = await dial(port)
        await call(client)
        writes: list[int] = []
        original = a.connections[0].data_received

        def counted(data: bytes) -> None:
            writes.append(len(data))
            original(data)

        a.connections[0].data_received = counted  # type: ignore[method-assign]
        with_all = b"".join(_frames(client, number) for number in range(10))
        client.send(with_all)
        await arrived(a, 11)
        assert len([size for size in writes if size > 17]) <= 3


def _frames(client: Wire, number: int) -> bytes:
    seen = client.expect(2 * number + 3)
    seen.have_ended = True
    return script.frame({f"HEADERS {seen.id} END_HEADERS END_STREAM": script.GRPC})


async def test_a_server_that_resets_a_call_at_its_deadline_has_not_cancelled_it() -> None:
    """grpc-go's servers do: to a client of theirs it is DEADLINE_EXCEEDED, as the client knows its deadline. So do we."""
    [port] = free_ports(1)
    async with backends("a") as [a], running(bootstrap(port, a.port)):
        client = await dial(port)
        for _ in range(20):
            a.begin([{"reset": "CANCEL"}])
            answers = [await call(client, "hello", "grpc-timeout: 1n"), await call(client, "hello", "grpc-timeout: 1H")]
            assert [answer.header("grpc-status") for answer in answers] == ["4", "1"]
