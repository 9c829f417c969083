"""What parses a stranger's bytes, each as a function that must hold for any bytes at all."""

from collections.abc import Callable
from contextlib import suppress
from random import Random

from sidecar.http2 import frames, headers
from sidecar.http2.connection import Connection, Handler, Role, Settings, Stream
from sidecar.http2.fields import Malformed
from sidecar.http2.headers import HeaderError, TooLarge
from sidecar.proxy import inspect
from sidecar.proxy.config import Route, RouteMatch, RouteTable, VirtualHost
from sidecar.proxy.decision import DecisionCache
from sidecar.proxy.route import Router
from sidecar.proxy.upstream import Block
from sidecar.telemetry.stats import Stats

MAX_OUTPUT_PER_BYTE = 8
"""Bytes that a peer may make us write for each byte that it writes: a PING of 17 is answered with 17, an empty frame of 9 with a GOAWAY."""


class Echo(Handler):
    """Reads every header block, sends data back, credits it at once."""

    def __init__(self) -> None:
        self.conn: Connection | None = None

    def on_request(self, stream: Stream, block: bytes, ended: bool) -> None:
        self._read(block)

    def on_headers(self, stream: Stream, block: bytes, ended: bool) -> None:
        self._read(block)

    def _read(self, block: bytes) -> None:
        with suppress(HeaderError, TooLarge):
            headers.decode(block)

    def on_data(self, stream: Stream, payload: bytes, credit: int, ended: bool) -> None:
        assert self.conn is not None
        self.conn.credit(stream, credit)
        if not stream.local_closed and not stream.is_dead:
            self.conn.send_data(stream, payload, 0, ended)

    def on_sent(self, stream: Stream, credit: int) -> None: ...
    def on_reset(self, stream: Stream, code: int, was_refused: bool) -> None: ...
    def on_goaway(self, code: int) -> None: ...
    def on_capacity(self) -> None: ...


def _feed(conn: Connection, data: bytes) -> None:
    written = 0
    for at in range(0, len(data), 61):  # cut where no frame ends
        conn.receive(data[at : at + 61], at / 1000)
        written += len(conn.take_output())
    assert written <= 1024 + MAX_OUTPUT_PER_BYTE * len(data)
    assert conn.waiting == sum(len(part[0]) for stream in conn.streams.values() for part in stream.queue or ())


def server(data: bytes) -> None:
    """A client's bytes behind the preface."""
    echo = Echo()
    echo.conn = Connection(Role.SERVER, echo, Settings())
    echo.conn.take_output()
    _feed(echo.conn, frames.PREFACE + frames.settings({}) + data)


def stateless(data: bytes) -> None:
    """The same once the client has granted headers without state."""
    echo = Echo()
    conn = echo.conn = Connection(Role.SERVER, echo, Settings())
    conn.take_output()
    block = headers.encode([(b":method", b"GET")])
    opening = b"".join(frames.HEAD.pack(len(block) << 8 | 1, 5, number) + block for number in (1, 3))
    conn.receive(frames.PREFACE + frames.settings({}) + opening + frames.SETTINGS_ACK * 2, 0.0)
    conn.take_output()
    _feed(conn, data)


def client(data: bytes) -> None:
    """An endpoint's bytes, with a call under way."""
    echo = Echo()
    conn = echo.conn = Connection(Role.CLIENT, echo, Settings())
    conn.open_stream(headers.encode([(b":method", b"GET")]), False)
    conn.take_output()
    _feed(conn, frames.settings({}) + frames.SETTINGS_ACK + data)


def block(data: bytes) -> None:
    """A header block: what is read of it reads the same when it is written again."""
    try:
        fields = headers.decode(data)
    except (HeaderError, TooLarge):
        return
    assert headers.decode(headers.encode(fields)) == fields


def decision(data: bytes) -> None:
    """A request's header block."""
    cache = DecisionCache(Stats(), Random(1))
    match = RouteMatch(prefix=b"/")
    cache.reconfigure(Router(RouteTable("all", (VirtualHost("all", ("*",), (Route(match, (("a", 1),)),)),))), {}, None)
    seen: dict[int, None] = {}
    for _ in range(3):
        try:
            cache.plan(data, seen)
        except (HeaderError, Malformed):
            return


def response(data: bytes) -> None:
    """A response's header block."""
    try:
        Block(data)
    except (HeaderError, Malformed, TooLarge):
        return


def first_bytes(data: bytes) -> None:
    """What a new connection says first."""
    inspect.http(data)
    inspect.tls(data)


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (server, stateless, client, block, decision, response, first_bytes)
}
