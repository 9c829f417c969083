"""A TCP relay on loopback between a client and a server, that loses what it is told to lose. For networks that fail halfway."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Relay:
    """What passes, while it runs; change it at any time."""

    def __init__(self, host: str, port: int) -> None:
        self.loses_requests = False
        """Bytes from clients vanish; the connection stays."""
        self.loses_answers = False
        """Bytes from the server vanish; the connection stays."""
        self.requests = 0
        """Bytes that came from clients."""
        self._to = (host, port)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection(*self._to)
        except OSError:
            writer.close()
            return
        pumps = [
            asyncio.create_task(self._pump(reader, up_writer, True)),
            asyncio.create_task(self._pump(up_reader, writer, False)),
        ]
        self._tasks.update(pumps)
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            self._tasks.difference_update(pumps)
            writer.close()
            up_writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_request: bool) -> None:
        with suppress(OSError):
            while content := await reader.read(65536):
                if is_request:
                    self.requests += len(content)
                if not (self.loses_requests if is_request else self.loses_answers):
                    writer.write(content)
                    await writer.drain()

    def cut(self) -> None:
        """End all connections; new ones are taken."""
        for task in list(self._tasks):
            task.cancel()


@asynccontextmanager
async def relay_to(host: str, port: int) -> AsyncIterator[Relay]:
    """A relay to one address as long as the context lasts."""
    relay = Relay(host, port)
    relay._server = await asyncio.start_server(relay._serve, "127.0.0.1", 0)
    try:
        yield relay
    finally:
        relay._server.close()
        relay.cut()
        await asyncio.gather(*relay._tasks, return_exceptions=True)
