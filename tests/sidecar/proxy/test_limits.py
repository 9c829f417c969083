"""Limits on what strangers may take are configuration (layered_runtime), and each is counted where it is run into."""

import asyncio
from typing import Any

import pytest

from tests.differential import script
from tests.differential.wire import CODES, Wire, frame, plain_block
from tests.ports import free_ports
from tests.sidecar import bootstraps
from tests.sidecar.running import PATIENCE_S, backends, call, dial, origin, running

REQUEST = plain_block(script.fields(script.GRPC))


def bootstrap(port: int, target: int, **limits: int) -> dict[str, Any]:
    layer = {f"remora.{key}": value for key, value in limits.items()}
    layers = {"layered_runtime": {"layers": [{"name": "static", "static_layer": layer}]}}
    return bootstraps.static([bootstraps.listener("main", port, "a")], [bootstraps.cluster("a", target)], **layers)


def in_parts(client: Wire, stream_id: int, parts: int) -> None:
    """A request whose header block comes in one HEADERS and so many CONTINUATION frames."""
    client.expect(stream_id)
    client.send(frame("HEADERS", stream_id, 1, REQUEST))
    for number in range(parts):
        client.send(frame("CONTINUATION", stream_id, 4 if number == parts - 1 else 0, b"\0\1a\1b"))


@pytest.mark.parametrize(
    "limits",
    [{"max_continuation_frames": 2}, {"max_header_block_bytes": len(REQUEST) + 12}],
    ids=lambda limits: next(iter(limits)),
)
async def test_a_header_block_in_more_parts_or_bytes_than_the_limit_ends_the_connection(limits: dict[str, int]) -> None:
    [port] = free_ports(1)
    async with backends("a") as [a], running(bootstrap(port, a.port, **limits)) as proxy:
        client = await dial(port)
        in_parts(client, 1, 2)
        assert await client.until(lambda: client.streams[1].is_over, PATIENCE_S)
        assert origin(client.streams[1]) == "a"
        in_parts(client, 3, 3)
        assert await client.until(lambda: client.goaway is not None, PATIENCE_S)
        assert client.goaway is not None and CODES[client.goaway[1]] == "ENHANCE_YOUR_CALM"
        assert proxy.worker.stats.exceeded["CONTINUATION flood"] == 1
        assert origin(await call(await dial(port))) == "a"


async def test_a_client_that_does_not_say_what_it_speaks_is_closed_after_the_time_that_is_set() -> None:
    [port] = free_ports(1)
    async with backends("a") as [a], running(bootstrap(port, a.port, detect_timeout_seconds=1)) as proxy:
        silent = await dial_silent(port)
        assert await silent.until(lambda: silent.is_closed, PATIENCE_S)
        assert proxy.worker.stats.detect_timeouts == 1


async def dial_silent(port: int) -> Wire:
    """A connection on which nobody says anything."""
    client = Wire(is_server=False)
    await asyncio.get_running_loop().create_connection(lambda: client, "127.0.0.1", port)
    return client
