"""The joint between HTTP/1.1 and the data path: a transport whose other end is in this process.

The data path speaks HTTP/2 and nothing else. An HTTP/1.1 client is put before it by an adapter that is an HTTP/2 client to it, an HTTP/1.1 endpoint
behind it by one that is an HTTP/2 server; so routes, policies, time-outs, retries and counters are the same for both. That costs a second codec for each
HTTP/1.1 message, and nothing for HTTP/2.
"""

import asyncio
import secrets
from collections.abc import Callable
from typing import Any, Final

UPGRADE: Final = f"x-remora-upgrade-{secrets.token_hex(8)}".encode()
"""Says `Upgrade` between the two adapters, as HTTP/2 has no such header. Nobody outside of this process knows the name."""


class Pipe(asyncio.Transport):
    """What one end writes, `receive` gets at once; `closed` is called in the next turn of the loop."""

    def __init__(self, real: asyncio.Transport, receive: Callable[[bytes], None], closed: Callable[[], None]) -> None:
        super().__init__()
        self._real = real
        self._receive = receive
        self._closed = closed
        self._protocol: asyncio.BaseProtocol | None = None
        self._is_closing = False

    def write(self, data: Any) -> None:
        if not self._is_closing:
            self._receive(bytes(data))

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            asyncio.get_running_loop().call_soon(self._closed)

    def abort(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self._is_closing

    def can_write_eof(self) -> bool:
        return False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None
        return self._protocol

    def get_write_buffer_size(self) -> int:
        return self._real.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._real.get_extra_info(name, default)
