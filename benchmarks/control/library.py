"""Many bidi streams on one connection with a gRPC library: what `frames` does, at a library's price."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import grpc.aio

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


class Connection:
    """As `frames.Connection`; bytes are those of messages, not of the wire."""

    def __init__(self, port: int, method: str, on_failure: Callable[[Exception], None]) -> None:
        self.received = 0
        self.carried = 0
        self.sent = 0
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=list(_OPTIONS))
        self._method: Any = self._channel.stream_stream(method)
        self._on_failure = on_failure
        self._requests: list[asyncio.Queue[bytes]] = []
        self._readers: list[asyncio.Task[None]] = []

    def open(self, on_message: Callable[[bytes], None]) -> int:
        """A new stream; its number."""
        requests: asyncio.Queue[bytes] = asyncio.Queue()
        self._requests.append(requests)
        self._readers.append(asyncio.create_task(self._read(requests, on_message)))
        return len(self._requests) - 1

    def send(self, number: int, payload: bytes) -> None:
        """Send a message."""
        self.sent += len(payload) + 5
        self._requests[number].put_nowait(payload)

    async def _read(self, requests: asyncio.Queue[bytes], on_message: Callable[[bytes], None]) -> None:
        async def outgoing() -> AsyncIterator[bytes]:
            while True:
                yield await requests.get()

        try:
            async for data in self._method(outgoing()):
                self.received += len(data) + 5
                self.carried = self.received
                on_message(data)
            self._on_failure(ConnectionError("the control plane ended a stream"))
        except grpc.aio.AioRpcError as error:
            self._on_failure(ConnectionError(f"{error.code().name}: {error.details()}"))

    async def close(self) -> None:
        """End it, and tell nobody."""
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        await self._channel.close()
