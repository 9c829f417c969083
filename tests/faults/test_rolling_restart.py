"""Every sidecar in front of the endpoints is restarted, one after the other, again and again, under load: no call fails."""

import asyncio
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.differential import engines, script
from tests.differential.backend import Backend
from tests.differential.engines import Engine
from tests.differential.wire import Wire
from tests.ports import free_ports
from tests.sidecar import bootstraps

PATIENCE_S = 15.0
RETRY = {
    "retry_on": "connect-failure,refused-stream,reset-before-request",
    "num_retries": 3,
    "retry_host_predicate": [
        {
            "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
            },
        }
    ],
    "host_selection_retry_max_attempts": 5,
}


@dataclass
class Caller:
    """One client: call after call on a connection that it renews when it is told to."""

    port: int
    calls: int = 0
    failures: list[str] = field(default_factory=list)
    is_over: bool = False

    async def run(self) -> None:
        wire: Wire | None = None
        while not self.is_over:
            if wire is None or wire.is_closed or wire.goaway is not None:
                wire = await _connect(self.port)
            seen = wire.open(script.fields(script.GRPC), ended=False)
            wire.data(seen, script.message("hello"), ended=True)
            await wire.until(lambda seen=seen: seen.is_over, PATIENCE_S)  # type: ignore[misc]
            self.calls += 1
            if seen.header("grpc-status") != "0":
                self.failures.append(str(seen))
            wire.streams.clear()
            await asyncio.sleep(0.002)
        if wire is not None:
            wire.close()


async def _connect(port: int) -> Wire:
    wire = Wire(is_server=False)
    await asyncio.get_running_loop().create_connection(lambda: wire, "127.0.0.1", port)
    wire.hello()
    return wire


@asynccontextmanager
async def load(port: int, clients: int) -> AsyncIterator[list[Caller]]:
    """So many clients at work."""
    callers = [Caller(port) for _ in range(clients)]
    async with asyncio.TaskGroup() as group:
        for caller in callers:
            group.create_task(caller.run())
        try:
            yield callers
        finally:
            for caller in callers:
                caller.is_over = True


class Fleet:
    """A sidecar in front of the clients and three in front of an application."""

    def __init__(self, folder: Path) -> None:
        self.entrance, *self.instances, self.application = free_ports(5)
        listener = bootstraps.listener("out", self.entrance, "shop")
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"]["retry_policy"] = RETRY
        breakers = {"thresholds": [{"max_retries": 100}]}
        self._folder = folder
        self._out = bootstraps.static(
            [listener], [bootstraps.cluster("shop", *self.instances, circuit_breakers=breakers)]
        )
        self._engines: dict[int, Engine] = {}

    def _in(self, port: int) -> dict[str, Any]:
        listener = bootstraps.listener("in", port, "app")
        return bootstraps.static([listener], [bootstraps.cluster("app", self.application)])

    async def start(self, port: int) -> None:
        """One process, until it listens."""
        folder = self._folder / f"{port}-{len(list(self._folder.iterdir()))}"
        folder.mkdir()
        bootstrap = self._out if port == self.entrance else self._in(port)
        self._engines[port] = engines.launch("remora", bootstrap, folder)
        await asyncio.to_thread(engines.wait_ready, self._engines[port], [port])

    async def restart(self, port: int) -> int:
        """Ask it to end, wait until it has, start it again; how it ended."""
        engine = self._engines[port]
        engine.process.send_signal(signal.SIGTERM)
        ending = await asyncio.to_thread(engine.process.wait, PATIENCE_S)
        await self.start(port)
        return ending

    def close(self) -> None:
        for engine in self._engines.values():
            engine.stop()


async def _rounds(count: int) -> None:
    with tempfile.TemporaryDirectory(prefix="rolling-") as folder:
        fleet = Fleet(Path(folder))
        application = Backend("app", {})
        await application.open(fleet.application)
        try:
            for port in (*fleet.instances, fleet.entrance):
                await fleet.start(port)
            async with load(fleet.entrance, 8) as callers:
                for _ in range(count):
                    for port in fleet.instances:
                        before = sum(caller.calls for caller in callers)
                        assert await fleet.restart(port) == 0
                        assert sum(caller.calls for caller in callers) > before
            assert [caller.failures for caller in callers] == [[]] * len(callers)
        finally:
            fleet.close()
            application.close()


async def test_no_call_fails_while_every_sidecar_is_restarted() -> None:
    await _rounds(1)


@pytest.mark.slow
async def test_no_call_fails_while_every_sidecar_is_restarted_again_and_again() -> None:
    await _rounds(10)
