"""What a supervisor gives a sidecar process at its start: listening sockets, and a line on which they agree about its end.

A supervisor that holds the sockets can let another process take the place of this one without a moment at which nobody listens: both accept from
the same queue, and what waits in it when one ends is accepted by the other. On the line go words, one a line: we say `ready`, and `leaving` when
we are asked to end (SIGTERM); the answer is `go` once somebody else listens, or `stay`. No supervisor, or one that is gone, lets us go.
"""

import asyncio
import os
import socket
from typing import Final

LISTENERS: Final = "REMORA_LISTENERS"
"""Environment: HOST:PORT=FD, separated by blanks."""
LINE: Final = "REMORA_SUPERVISOR"
"""Environment: the FD of our end of the line."""
READY: Final = "ready"
LEAVING: Final = "leaving"
GO: Final = "go"
STAY: Final = "stay"
ANSWER_S: Final = 60.0
"""A supervisor that does not answer for so long lets us go."""


class Sockets:
    """Listening sockets by their address. Each stays open here until it is let go, whatever becomes of its copies."""

    def __init__(self, text: str = "") -> None:
        self._held = {
            (host, int(port)): int(number)
            for place, _, number in (each.partition("=") for each in text.split())
            for host, _, port in [place.rpartition(":")]
        }

    def copy(self, host: str, port: int) -> socket.socket | None:
        """A socket that listens there already, the caller's own to close; None if we were not given one."""
        held = self._held.get((host, port))
        return socket.socket(fileno=os.dup(held)) if held is not None else None

    def has(self, host: str, port: int) -> bool:
        """True if we were given a socket that listens there."""
        return (host, port) in self._held

    def let_go(self, host: str, port: int) -> None:
        """Listen there no more, as far as it is ours."""
        held = self._held.pop((host, port), None)
        if held is not None:
            os.close(held)

    def __bool__(self) -> bool:
        return bool(self._held)


class Line:
    """Our end of the line to the supervisor."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, text: str) -> "Line | None":
        """The line of which the environment tells; None if there is none."""
        return cls(*await asyncio.open_connection(sock=socket.socket(fileno=int(text)))) if text else None

    def is_ready(self) -> None:
        """We have a configuration, and listen."""
        self._say(READY)

    async def may_leave(self) -> bool:
        """We were asked to end: True once somebody else listens, or nobody cares; False if we are to stay."""
        self._say(LEAVING)
        try:
            async with asyncio.timeout(ANSWER_S):
                return await self._reader.readline() != f"{STAY}\n".encode()
        except (OSError, TimeoutError):
            return True

    def _say(self, word: str) -> None:
        self._writer.write(f"{word}\n".encode())

    def close(self) -> None:
        """Say no more."""
        self._writer.close()
