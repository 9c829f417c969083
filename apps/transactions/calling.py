"""Calls by address: `grpc://HOST:PORT/PACKAGE.SERVICE/METHOD`, bytes in, bytes out. Channels are kept."""

import asyncio
from collections import OrderedDict
from typing import Final
from urllib.parse import urlsplit

import grpc

from apps.transactions.context import BranchCall

MAX_CHANNELS: Final = 256
"""Kept open; the one that was used longest ago is closed."""
CLOSE_GRACE_S: Final = 60.0
"""Longer than any call takes."""
_OPTIONS: Final = (
    # gRPC's own defaults wait up to two minutes before they look for a peer again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Whoever drives a transaction repeats calls itself; gRPC's own retries would hide failures from it.
    ("grpc.enable_retries", 0),
)


class Caller:
    """Use it within one event loop."""

    def __init__(self) -> None:
        self._channels: OrderedDict[str, grpc.aio.Channel] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    async def call(self, target: str, body: bytes, branch: BranchCall | None, timeout_s: float) -> bytes:
        """Raises grpc.aio.AioRpcError."""
        parts = urlsplit(target)
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel(parts.netloc).unary_unary(parts.path)
        metadata = branch.metadata() if branch is not None else ()
        return await method(body, metadata=metadata, timeout=timeout_s)

    def _channel(self, authority: str) -> grpc.aio.Channel:
        channel = self._channels.get(authority)
        if channel is None:
            channel = grpc.aio.insecure_channel(authority, options=list(_OPTIONS))
            self._channels[authority] = channel
            while len(self._channels) > MAX_CHANNELS:
                _, oldest = self._channels.popitem(last=False)
                closing = asyncio.create_task(oldest.close(CLOSE_GRACE_S))
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
        self._channels.move_to_end(authority)
        return channel

    async def close(self) -> None:
        channels, self._channels = list(self._channels.values()), OrderedDict()
        for each in channels:
            await each.close()
