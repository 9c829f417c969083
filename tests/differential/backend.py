"""A server that does as it is told: for each request a list of actions; it writes down what it saw.

An answer is one of, or a list of: `ok` (wait for the end, echo, grpc-status 0), `hold` (until the script says `release`), `close`, `cancelled` (wait for it), `ended`
(wait for the request's end), `settled` (until the engine has read all that was sent), `mute` (answer no PING from now on), and mappings: `headers: [...]`, `trailers: [...]` (ends), `only: [...]` (headers that end), `grpc: text`, `data: text`, `end: true`,
`reset: CODE`, `goaway: {last: N or this or below, code: …}`, `send: [frames]`. Every answer's first headers say `x-from: NAME`.
"""

import asyncio
import contextlib
import ssl
import struct
from dataclasses import dataclass, field
from typing import Any, Final

from tests.differential import script, wire
from tests.differential.wire import CODES, Fields, Seen, Wire

PATIENCE_S: Final = 5.0
PING: Final = b"settled!"
GRPC_OK: Final = [":status: 200", "content-type: application/grpc"]


@dataclass
class Request:
    """One request that came."""

    conn: Wire
    seen: Seen


@dataclass
class Backend:
    """One address with its script."""

    name: str
    announced: dict[str, int]
    port: int = 0
    tls: ssl.SSLContext | None = None
    gives_window: bool = True
    """False: what has come takes window for good, until a test gives it back."""
    answers: list[Any] = field(default_factory=list)
    """By request, in order; the last one repeats. Empty is `ok`."""
    requests: list[Request] = field(default_factory=list)
    connections: list[Wire] = field(default_factory=list)
    settled: int = 0
    """Times that the engine is known to have read all that was sent; see the action of that name."""
    accepted: int = 0
    """Connections that were made since the case began."""
    forgets: bool = False
    """What is over is not kept: for hundreds of thousands of calls, which would fill our memory and have it walked over again and again."""
    _tasks: dict[tuple[int, int], asyncio.Task[None]] = field(default_factory=dict)
    _released: asyncio.Event = field(default_factory=asyncio.Event)
    _server: asyncio.Server | None = None

    async def open(self, port: int = 0) -> None:
        """Listen, on any free port if none is named."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, "127.0.0.1", port, ssl=self.tls)
        self.port = int(self._server.sockets[0].getsockname()[1])

    def _accept(self) -> Wire:
        conn = Wire(is_server=True, announced=self.announced, on_change=self._on_change, gives_window=self.gives_window)
        self.connections.append(conn)
        self.accepted += 1
        return conn

    def close(self) -> None:
        """Stop, and cut what is open."""
        if self._server is not None:
            self._server.close()
        for conn in self.connections:
            conn.close()

    def begin(self, answers: list[Any]) -> None:
        """Forget the case before; take the script of the next."""
        self.finish()
        self.answers = answers
        self.requests = []
        self.accepted = 0
        self.settled = 0
        self._released = asyncio.Event()
        self.connections = [conn for conn in self.connections if not conn.is_closed]

    def finish(self) -> None:
        """End what still runs."""
        for task in self._tasks.values():
            task.cancel()
        self._tasks = {}
        for request in self.requests:
            if not request.seen.is_done:
                request.conn.reset(request.seen, "CANCEL")

    def release(self) -> None:
        """Let those that hold go on."""
        self._released.set()

    def _on_change(self, conn: Wire, seen: Seen) -> None:
        key = (id(conn), seen.id)
        if key in self._tasks or seen.headers is None or any(request.seen is seen for request in self.requests[-64:]):
            return
        if self.forgets:
            self._forget()
        number = len(self.requests)
        self.requests.append(Request(conn, seen))
        answer = self.answers[min(number, len(self.answers) - 1)] if self.answers else "ok"
        if answer == "ok" and seen.is_ended:
            self._echo(conn, seen)  # the usual case, without a task
        else:
            self._tasks[key] = asyncio.get_running_loop().create_task(self._answer(conn, seen, answer))

    def _forget(self) -> None:
        self.connections = [conn for conn in self.connections if not conn.is_closed]
        over = [request for request in self.requests if request.seen.is_done]
        self.requests = [request for request in self.requests if not request.seen.is_done]
        for request in over:
            request.conn.streams.pop(request.seen.id, None)
            task = self._tasks.pop((id(request.conn), request.seen.id), None)
            if task is not None:
                task.cancel()

    def _echo(self, conn: Wire, seen: Seen) -> None:
        conn.headers(seen, self._head(GRPC_OK), ended=False)
        if seen.data:
            conn.data(seen, bytes(seen.data), ended=False)
        conn.headers(seen, [("grpc-status", "0")], ended=True)

    def _head(self, items: Any) -> Fields:
        return [*script.fields(items), ("x-from", self.name)]

    async def _answer(self, conn: Wire, seen: Seen, answer: Any) -> None:
        for action in answer if isinstance(answer, list) else [answer]:
            if action == "ok":
                if await conn.until(lambda: seen.is_over, PATIENCE_S):
                    self._echo(conn, seen)
            elif action == "hold":
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._released.wait(), PATIENCE_S)
            elif action == "ended":
                await conn.until(lambda: seen.is_ended, PATIENCE_S)
            elif action == "cancelled":
                await conn.until(lambda: seen.reset is not None, PATIENCE_S)
            elif action == "mute":
                conn.answers_pings = False
                await conn.until(lambda: seen.is_done, PATIENCE_S)
            elif action == "settled":
                await self._settle(conn)
            elif action == "close":
                conn.close()
            else:
                self._act(conn, seen, *next(iter(action.items())))

    async def _settle(self, conn: Wire) -> None:
        """Wait until the engine has read what was sent: it has answered a PING."""
        conn.pongs.discard(PING)
        conn.send(wire.frame("PING", payload=PING))
        await conn.until(lambda: PING in conn.pongs, PATIENCE_S)
        self.settled += 1

    def _act(self, conn: Wire, seen: Seen, kind: str, value: Any) -> None:
        if kind == "headers":
            conn.headers(seen, self._head(value), ended=False)
        elif kind == "informational":
            conn.headers(seen, script.fields(value), ended=False)
        elif kind == "only":
            conn.headers(seen, self._head(value), ended=True)
        elif kind == "trailers":
            conn.headers(seen, script.fields(value), ended=True)
        elif kind in ("grpc", "data"):
            conn.data(seen, script.message(value) if kind == "grpc" else script.body(value), ended=False)
        elif kind == "end":
            conn.data(seen, b"", ended=True)
        elif kind == "reset":
            conn.reset(seen, value)
        elif kind == "goaway":
            last = {"this": seen.id, "below": max(seen.id - 2, 0)}.get(value["last"], value["last"])
            conn.send(wire.frame("GOAWAY", payload=struct.pack(">II", last, CODES.index(value["code"]))))
        elif kind == "send":
            conn.send(b"".join(script.frame(item, seen.id) for item in value))
        else:
            raise ValueError(f"{self.name}: no action {kind!r}")
