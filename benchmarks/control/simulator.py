"""One process of simulated data planes: `python -m benchmarks.control.simulator`. It is told what to do on a socket, a line of JSON at a time.

{"do": "open"}                      answered when all nodes have all that they asked for
{"do": "expect", "marks": [...]}    look for these from now on
{"do": "collect", "timeout_s": 60}  answered when every node has ACKed every mark, with the times, or when the time is over
{"do": "counters"}                  responses by type, bytes on the wire, CPU
"""

import argparse
import asyncio
import json
import time
from collections.abc import Callable
from typing import Any, Final

import uvloop

from benchmarks.control import frames, library
from benchmarks.control.dataplane import VARIANTS, DataPlane, Shared, node

MAX_OPENING: Final = 50
"""Nodes that are being brought up at a time: a control plane is to hold what nodes have, not what a thousand of them wait for."""
LINE_BYTES: Final = 256 << 20
_POLL_S: Final = 0.01


class Simulator:
    """Nodes `first` to `first + count - 1`, on connections of `per_connection` streams each."""

    def __init__(self, words: argparse.Namespace) -> None:
        self._words = words
        self._shared = Shared()
        self._connections: list[frames.Connection | library.Connection] = []
        self._unsynced: set[DataPlane] = set()
        self._failure: Exception | None = None

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error

    def check(self) -> None:
        """Raises what went wrong on any stream."""
        if self._failure is not None:
            raise self._failure

    async def open(self) -> None:
        """Bring all nodes up, some at a time."""
        for number in range(self._words.first, self._words.first + self._words.count):
            if (number - self._words.first) % self._words.per_connection == 0:
                self._connections.append(await self._connect())
            self._start(number, self._connections[-1])
            await self._until(lambda: len(self._unsynced) < MAX_OPENING)
        await self._until(lambda: not self._unsynced)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.check()
            await asyncio.sleep(_POLL_S)
        self.check()

    async def _connect(self) -> frames.Connection | library.Connection:
        method = VARIANTS[self._words.variant].METHOD
        if self._words.client == "grpcio":
            return library.Connection(self._words.port, method, self._fail)
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: frames.Connection(method, self._fail), "127.0.0.1", self._words.port
        )
        return connection

    def _start(self, number: int, connection: frames.Connection | library.Connection) -> None:
        name = self._words.service.format(number % self._words.services)
        plane = VARIANTS[self._words.variant](number, node(number, name), self._shared)
        self._unsynced.add(plane)

        def on_message(data: bytes) -> None:
            for request in plane.on_response(data, time.monotonic()):
                connection.send(stream, request)
            if plane.is_synced:
                self._unsynced.discard(plane)

        stream = connection.open(on_message)
        for request in plane.start():
            connection.send(stream, request)

    async def collect(self, timeout_s: float) -> dict[str, Any]:
        """The times at which the nodes had the marks, in no order."""
        wanted = len(self._shared.marks) * self._words.count
        end = time.monotonic() + timeout_s
        await self._until(lambda: self._shared.seen >= wanted or time.monotonic() > end)
        times = {mark.decode(): list(found.values()) for mark, found in self._shared.marks.items()}
        return {"times": times, "missing": wanted - self._shared.seen}

    def counters(self) -> dict[str, Any]:
        """What has come and gone since the start."""
        self.check()
        return {
            "responses": dict(self._shared.responses),
            "received": sum(connection.received for connection in self._connections),
            "carried": sum(connection.carried for connection in self._connections),
            "sent": sum(connection.sent for connection in self._connections),
            "cpu_s": time.process_time(),
        }

    async def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        """Carry out one command; its answer."""
        match command["do"]:
            case "open":
                await self.open()
                return {}
            case "expect":
                self._shared.expect(command["marks"])
                return {}
            case "collect":
                return await self.collect(command["timeout_s"])
            case _:
                return self.counters()

    async def close(self) -> None:
        """Take all connections down."""
        for connection in self._connections:
            if isinstance(connection, frames.Connection):
                connection.close()
            else:
                await connection.close()


async def _serve(words: argparse.Namespace) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", words.control, limit=LINE_BYTES)
    simulator = Simulator(words)
    try:
        while line := await reader.readline():
            try:
                answer = await simulator.obey(json.loads(line))
            except Exception as error:  # noqa: BLE001 - the edge: whatever it is, the bench is told
                answer = {"failed": f"{type(error).__name__}: {error}"}
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
    finally:
        await simulator.close()
        writer.close()


def main() -> None:
    """Serve until the socket is closed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.control.simulator")
    parser.add_argument("--port", type=int, required=True, help="of the control plane")
    parser.add_argument("--control", type=int, required=True, help="port of the one who gives the commands")
    parser.add_argument("--variant", choices=tuple(VARIANTS), required=True)
    parser.add_argument("--client", choices=("frames", "grpcio"), default="frames")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--per-connection", type=int, required=True)
    parser.add_argument("--service", required=True, help="name of a service, with its number in braces")
    parser.add_argument("--services", type=int, required=True)
    uvloop.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
