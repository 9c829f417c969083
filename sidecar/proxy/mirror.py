"""A client that nobody is behind: copies of calls come out of it as requests, and what is answered goes nowhere."""

from typing import TYPE_CHECKING, Final

from sidecar.http2 import frames
from sidecar.http2.connection import Settings
from sidecar.proxy.config import Route, RouteMatch, RouteTable, VirtualHost
from sidecar.proxy.decision import DecisionCache
from sidecar.proxy.downstream import Downstream
from sidecar.proxy.route import Router

if TYPE_CHECKING:
    from sidecar.proxy.cluster import Cluster

MAX_CALLS: Final = 256
"""Copies under way to one cluster; further ones are left out, so that a slow mirror costs a bounded amount of memory."""
_REFILL: Final = 2**30
"""Bytes of answers after which the connection's window is filled up again."""


class Mirror(Downstream):
    """The copies of calls that go to one cluster; for the data path a connection like any other."""

    def __init__(self, origin: Downstream, cluster: "Cluster", timeout_s: float) -> None:
        worker = origin.worker
        cache = DecisionCache(worker.stats, worker.chance)
        route = Route(RouteMatch(prefix=b"/"), ((cluster.name, 1),), timeout_s=timeout_s)
        table = RouteTable("mirror", (VirtualHost("all", ("*",), (route,)),))
        cache.reconfigure(Router(table), {cluster.name: cluster}, None)
        window = frames.LARGEST_WINDOW
        settings = Settings(initial_stream_window=window, initial_connection_window=window)
        super().__init__(origin.listener, worker, cache, origin.stats, settings, origin.limits)
        self._next_id = 1
        self._dropped = 0
        """Bytes of answers since the window was filled up."""
        hello = (
            frames.PREFACE
            + frames.settings({frames.HEADER_TABLE_SIZE: 0, frames.INITIAL_WINDOW_SIZE: window})
            + frames.SETTINGS_ACK
            + frames.window_update(0, window - frames.DEFAULT_WINDOW)
        )
        self.conn.receive(hello, worker.now)
        self.mark()

    @property
    def is_usable(self) -> bool:
        """False once another one is needed."""
        return not self.conn.is_closed and self._next_id < frames.LARGEST_WINDOW

    def send(self, block: bytes, body: list[bytes], trailers: bytes | None) -> bool:
        """Send a whole request; False if it is left out."""
        if self.calls >= MAX_CALLS or len(block) > frames.DEFAULT_FRAME_SIZE:
            return False
        stream_id = self._next_id
        self._next_id += 2
        is_bare = not body and trailers is None
        parts = [_frame(frames.HEADERS, stream_id, block, ended=is_bare, flags=frames.END_HEADERS)]
        data = b"".join(body)
        for at in range(0, len(data), frames.DEFAULT_FRAME_SIZE):
            payload = data[at : at + frames.DEFAULT_FRAME_SIZE]
            is_last = at + len(payload) == len(data) and trailers is None
            parts.append(_frame(frames.DATA, stream_id, payload, ended=is_last))
        if body and not data and trailers is None:
            parts.append(_frame(frames.DATA, stream_id, b"", ended=True))
        if trailers is not None:
            parts.append(_frame(frames.HEADERS, stream_id, trailers, ended=True, flags=frames.END_HEADERS))
        self.conn.receive(b"".join(parts), self.worker.now)
        self.mark()
        return True

    def flush(self) -> None:
        """Drop what has gathered."""
        conn = self.conn
        if conn.has_output():
            self._dropped += len(conn.take_output())
            if self._dropped >= _REFILL:
                conn.receive(frames.window_update(0, self._dropped), self.worker.now)
                self._dropped = 0


def _frame(kind: int, stream_id: int, payload: bytes, *, ended: bool, flags: int = 0) -> bytes:
    flags |= frames.END_STREAM if ended else 0
    return frames.HEAD.pack(len(payload) << 8 | kind, flags, stream_id) + payload
