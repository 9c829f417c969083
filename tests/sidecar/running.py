"""A proxy in the test's own event loop, and a client for it: for what is seen best from inside."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from sidecar.proxy.proxy import Proxy
from sidecar.proxy.worker import Worker
from sidecar.telemetry.stats import Stats
from sidecar.xds.bootstrap import parse
from tests.differential import script
from tests.differential.backend import Backend
from tests.differential.wire import Seen, Wire

PATIENCE_S = 5.0


@asynccontextmanager
async def running(document: dict[str, Any]) -> AsyncIterator[Proxy]:
    """A proxy with the configuration of a bootstrap."""
    bootstrap = parse(document)
    proxy = Proxy(Worker(asyncio.get_running_loop(), Stats(), Random(1)), bootstrap.limits)
    await proxy.apply(bootstrap.configuration)
    try:
        yield proxy
    finally:
        proxy.close()


@asynccontextmanager
async def backends(*names: str, **announced: int) -> AsyncIterator[list[Backend]]:
    """Scripted servers that listen."""
    opened = [Backend(name, dict(announced)) for name in names]
    for backend in opened:
        await backend.open()
    try:
        yield opened
    finally:
        for backend in opened:
            backend.finish()
            backend.close()


async def dial(port: int, **announced: int) -> Wire:
    """A client's connection."""
    client = Wire(is_server=False, announced=announced)
    await asyncio.get_running_loop().create_connection(lambda: client, "127.0.0.1", port)
    client.hello()
    return client


def start(client: Wire, message: str | bytes = "hello", *fields: str, ended: bool = True) -> Seen:
    """Begin a call: headers and one message."""
    seen = client.open(script.fields([*script.GRPC, *fields]), ended=False)
    payload = script.message(message) if isinstance(message, str) else message
    client.data(seen, payload, ended=ended)
    return seen


async def over(client: Wire, seen: Seen) -> Seen:
    """The call once it is over. Raises AssertionError if it does not end."""
    assert await client.until(lambda: seen.is_over, PATIENCE_S), f"the call does not end: {seen}"
    return seen


async def call(client: Wire, message: str | bytes = "hello", *fields: str) -> Seen:
    """A whole call."""
    return await over(client, start(client, message, *fields))


async def arrived(backend: Backend, count: int) -> None:
    """Wait until a backend has seen so many requests."""
    async with asyncio.timeout(PATIENCE_S):
        while len(backend.requests) < count:
            await asyncio.sleep(0.001)


def origin(seen: Seen) -> str | None:
    """Which backend answered; None if the proxy did."""
    return seen.header("x-from")
