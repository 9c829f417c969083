"""Looks after connections while they live: silence, age, peers that are gone, calls in which nothing moves.

Nothing here is done per call or per frame. A sweep asks, a few times within the shortest of its times, what has changed since the last one; so each time
is kept to within a part of itself (an eighth for connections, a quarter for calls), and costs a microsecond a connection.
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from time import monotonic
from typing import Final, Protocol

from sidecar.http2.connection import Connection, Stream
from sidecar.proxy.config import ConnectionLife
from sidecar.proxy.timers import Timed
from sidecar.proxy.worker import Worker

SWEEPS: Final = 8
QUIET_SWEEPS: Final = 8
"""Within the shortest time that is kept."""
SHORTEST_SWEEP_S: Final = 0.02
LONGEST_SWEEP_S: Final = 60.0
STALL_SWEEP_S: Final = 0.1
FAREWELL_S: Final = 5.0
"""A client that was asked to leave and does not even answer our PING is cut after so long."""


class Connected(Hashable, Protocol):
    """A connection to look after."""

    conn: Connection

    def mark(self) -> None: ...
    def retire(self) -> None:
        """Take no new calls; close when the running ones are over."""

    def cut(self, reason: str) -> None:
        """End it at once."""

    def unread(self) -> int:
        """Bytes that the peer's socket has not taken."""
        ...


@dataclass(slots=True)
class _Seen:
    """What the last sweep saw of a connection."""

    born: float
    idle_since: float
    next_ping: float
    pinged: float = 0.0
    is_overdue: bool = False
    opened: int = -1
    retired: float = 0.0


class Sweep(Timed):
    """Called again and again while there is anything to look after."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.deadline = 0.0
        self.period_s = 0.0
        """0 while there is nothing to keep."""

    def watch(self) -> None:
        """There is a connection: look after it."""
        if not self.deadline and self.period_s:
            self._again(monotonic())

    def stop(self) -> None:
        """Look no more."""
        self.period_s = 0.0
        self.deadline = 0.0

    def keep(self, times: Iterable[float], sweeps: int) -> None:
        """So many sweeps within the shortest of these times; 0 is none."""
        wanted = [time for time in times if time > 0.0]
        self.period_s = min(LONGEST_SWEEP_S, max(SHORTEST_SWEEP_S, min(wanted) / sweeps)) if wanted else 0.0
        self.deadline = 0.0

    def _again(self, now: float) -> None:
        self.deadline = now + self.period_s
        self.worker.timers.add(self)

    def on_deadline(self) -> None:
        now = monotonic()
        self.worker.now = now
        self.deadline = 0.0
        if self.look(now) and self.period_s:
            self._again(now)

    def look(self, now: float) -> bool:
        """Sweep once; False if there is nothing left to look after."""
        raise NotImplementedError


class ConnectionCare(Sweep):
    """Idle time-outs, ages and keepalives of the connections of one filter chain or one cluster."""

    def __init__(self, worker: Worker, connections: Callable[[], Iterable[Connected]]) -> None:
        super().__init__(worker)
        self._life = ConnectionLife()
        self._connections = connections
        self._seen: dict[Connected, _Seen] = {}

    def update(self, life: ConnectionLife) -> None:
        """From now on keep these."""
        if life == self._life and self.period_s:
            return
        self._life = life
        self.keep(
            (life.idle_timeout_s, life.max_duration_s, life.keepalive_interval_s, life.keepalive_timeout_s), SWEEPS
        )
        self.watch()

    def look(self, now: float) -> bool:
        before, self._seen = self._seen, {}
        for connected in list(self._connections()):
            seen = before.get(connected)
            if seen is None:
                seen = _Seen(born=now, idle_since=now, next_ping=self._next_ping(now))
            self._seen[connected] = seen
            if not connected.conn.is_closed:
                self._look_at(connected, seen, now)
        return bool(self._seen)

    def _next_ping(self, now: float) -> float:
        life = self._life
        return now + life.keepalive_interval_s * (1.0 + life.keepalive_jitter * self.worker.chance.random())

    def _look_at(self, connected: Connected, seen: _Seen, now: float) -> None:
        life, conn, stats = self._life, connected.conn, self.worker.stats
        opened = conn.opened
        if conn.streams or opened != seen.opened:
            seen.opened = opened
            seen.idle_since = now
        if seen.retired:
            if conn.streams:
                seen.retired = now
            elif now - seen.retired >= FAREWELL_S:
                connected.cut("it was asked to leave and does not answer")
            return
        if life.max_duration_s and now - seen.born >= life.max_duration_s:
            stats.count_ended("age")
            self._retire(connected, seen, now)
        elif life.idle_timeout_s and now - seen.idle_since >= life.idle_timeout_s:
            stats.count_ended("idle")
            self._retire(connected, seen, now)
        elif life.keepalive_interval_s:
            if conn.awaits_pong:
                if now - seen.pinged < life.keepalive_timeout_s:
                    pass
                elif not seen.is_overdue:
                    seen.is_overdue = True  # if it was we who were late, the answer is read before the next sweep
                else:
                    stats.count_ended("keepalive")
                    connected.cut(f"no answer to a PING within {life.keepalive_timeout_s:g} s")
            elif now >= seen.next_ping:
                conn.ping()
                connected.mark()
                seen.pinged = now
                seen.is_overdue = False
                seen.next_ping = self._next_ping(now)

    def _retire(self, connected: Connected, seen: _Seen, now: float) -> None:
        seen.retired = now
        connected.retire()


class Stalled(Sweep):
    """Connections whose peers read nothing while we have something to say: kept within a bound.

    Data is held back by then, but answers to PING, SETTINGS and broken calls are not: what they add is counted.
    """

    def __init__(self, worker: Worker, most: int) -> None:
        super().__init__(worker)
        self._most = most
        self._connections: dict[Connected, int] = {}
        """With the bytes that were unread when they were fewest."""
        self.period_s = STALL_SWEEP_S

    def add(self, connected: Connected) -> None:
        """Its socket takes no more bytes."""
        self._connections[connected] = connected.unread()
        self.watch()

    def discard(self, connected: Connected) -> None:
        """Its socket takes bytes again, or is gone."""
        self._connections.pop(connected, None)

    def look(self, now: float) -> bool:
        for connected, fewest in list(self._connections.items()):
            unread = connected.unread()
            if unread <= fewest:
                self._connections[connected] = unread
            elif unread - fewest > self._most:
                self.worker.stats.count_limit("max_unread_bytes")
                connected.cut("it reads nothing of what is written")
        return bool(self._connections)


class QuietCalls(Sweep):
    """Ends calls in which nothing has moved for too long, on the connections of one filter chain."""

    def __init__(self, worker: Worker, connections: Callable[[], Iterable[Connected]]) -> None:
        super().__init__(worker)
        self._connections = connections
        self._timeout_s = 0.0
        self._seen: dict[tuple[Connected, int], tuple[float, tuple[int, int], bool]] = {}
        """By connection and stream: since when nothing moves, what was left to send, and whether its time was over already."""

    def update(self, timeout_s: float, on_routes: Iterable[float]) -> None:
        """From now on keep these; those of routes go before the listener's."""
        self._timeout_s = timeout_s
        self.keep((timeout_s, *on_routes), QUIET_SWEEPS)
        self.watch()

    def look(self, now: float) -> bool:
        before, self._seen = self._seen, {}
        any_connection = False
        for connected in list(self._connections()):
            any_connection = True
            for stream in list(connected.conn.streams.values()):
                key = (connected, stream.id)
                left = _left(stream)
                since, left_before, was_overdue = before.get(key, (now, left, False))
                if left != left_before or _was_active(stream):
                    since = now
                timeout = self._timeout_of(stream)
                is_overdue = 0.0 < timeout <= now - since
                if is_overdue and was_overdue:
                    self._end(connected, stream, timeout)
                else:
                    # If it was we who were late, what came meanwhile is read before the next sweep.
                    self._seen[key] = (since, left, is_overdue)
        return any_connection

    def _timeout_of(self, stream: Stream) -> float:
        call = stream.call
        route = call.plan.decision.route if call is not None else None
        return self._timeout_s if route is None or route.idle_timeout_s is None else float(route.idle_timeout_s)

    def _end(self, connected: Connected, stream: Stream, timeout_s: float) -> None:
        self.worker.stats.count_ended("quiet call")
        if stream.call is not None:
            stream.call.on_quiet(timeout_s)
        else:
            connected.conn.reset(stream, 0)
            connected.mark()


def _was_active(stream: Stream) -> bool:
    """True if data moved since this was asked last."""
    call = stream.call
    if call is None or not call.is_active:
        return False
    call.is_active = False
    return True


def _left(stream: Stream) -> tuple[int, int]:
    """What waits to be sent of an answer: it only becomes less while nothing is added."""
    queue = stream.queue
    return (len(queue), len(queue[0][0])) if queue else (0, 0)
