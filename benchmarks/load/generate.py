"""Three loads on raw frames: a closed loop, bidi streams, an open loop. Each returns only if every call succeeded."""

import contextlib
import ctypes
import math
import os
import select
import socket
import time
from collections.abc import Callable
from random import Random
from typing import Final

from benchmarks.load.wire import LoadError, RequestHead, Wire, literal, message

PATH: Final = "/echo.Echo/Unary"
CONNECT_TIMEOUT_S: Final = 5.0
FIRST_CALL_S: Final = 0.01
"""From the last connection to the first call of an open loop."""
RECEIVE: Final = 256 * 1024
STALL_S: Final = 20.0
"""Nothing came for so long: the calls are lost."""
_PR_SET_TIMERSLACK: Final = 29
_HEX: Final = "0123456789abcdef"


class _Connection:
    """A socket and its wire, with the peer's SETTINGS taken; whoever drives it says what to do with data and ends."""

    def __init__(self, port: int, on_data: Callable[[int, int], None], on_end: Callable[[int], None]) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), CONNECT_TIMEOUT_S)
        self.wire = Wire(RequestHead(f"127.0.0.1:{port}", PATH), on_data, on_end)
        try:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.flush()
            while not self.wire.has_settings:
                self.receive()
            self.flush()
        except BaseException:
            self.socket.close()
            raise
        self.socket.setblocking(False)

    def receive(self) -> None:
        """Read once. Raises LoadError."""
        try:
            data = self.socket.recv(RECEIVE)
        except BlockingIOError:
            return
        if not data:
            raise LoadError("the peer closed the connection")
        self.wire.receive(data)

    def flush(self) -> bool:
        """Write what there is; False if some is left, because the socket is full."""
        out = self.wire.out
        if out:
            with contextlib.suppress(BlockingIOError):
                sent = self.socket.send(out)
                del out[:sent]
        return not out


class _Connections:
    """The connections of one load; leaving the context closes them."""

    def __init__(self) -> None:
        self.all: list[_Connection] = []
        self._epoll = select.epoll()
        self._by_fd: dict[int, _Connection] = {}

    def __enter__(self) -> "_Connections":
        return self

    def __exit__(self, *error: object) -> None:
        self._epoll.close()
        for connection in self.all:
            connection.socket.close()

    def open(self, port: int, on_data: Callable[[int, int], None], on_end: Callable[[int], None]) -> _Connection:
        """One more."""
        connection = _Connection(port, on_data, on_end)
        self.all.append(connection)
        fd = connection.socket.fileno()
        self._by_fd[fd] = connection
        self._epoll.register(fd, select.EPOLLIN)
        return connection

    def drive(self, is_over: Callable[[], bool]) -> float:
        """Send what has gathered, and go on until it is over; returns the seconds. Raises LoadError."""
        begin = time.perf_counter()
        for connection in self.all:
            self._flush(connection)
        while not is_over():
            ready = self._epoll.poll(STALL_S)
            if not ready:
                raise LoadError(f"no answer for {STALL_S:g} s")
            for fd, _ in ready:
                connection = self._by_fd[fd]
                connection.receive()
                self._flush(connection)
        return time.perf_counter() - begin

    def _flush(self, connection: _Connection) -> None:
        """Write, and be woken again while the socket is full."""
        events = select.EPOLLIN if connection.flush() else select.EPOLLIN | select.EPOLLOUT
        self._epoll.modify(connection.socket.fileno(), events)


class DifferingHeaders:
    """Fields whose values differ in each call: deadline, trace, a user's header, a bearer token. Seeded."""

    def __init__(self, seed: int) -> None:
        chance = Random(seed)
        self._trace = "".join(chance.choices(_HEX, k=26))
        self._token = "".join(chance.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", k=300))
        self._chance = chance
        self._count = 0

    def next(self) -> bytes:
        """The fields of the next call."""
        self._count += 1
        unique = f"{self._count:06x}{self._chance.getrandbits(40):010x}"
        return (
            literal(b"grpc-timeout", b"%du" % (20_000_000 + self._count))
            + literal(b"traceparent", f"00-{self._trace}{unique[:6]}-{unique}-01".encode())
            + literal(b"x-user", f"user-{unique}".encode())
            + literal(b"authorization", f"Bearer {self._token[:250]}{unique}{self._token[250:]}".encode())
        )


def closed_loop(
    port: int, *, calls: int, connections: int, in_flight: int, size: int, differ: bool, seed: int
) -> float:
    """Unary calls to an echo, the next as soon as one ends; returns the seconds that they took. Raises LoadError."""
    body = message(Random(seed).randbytes(size))
    headers = DifferingHeaders(seed) if differ else None
    left = calls
    done = 0

    def start(wire: Wire) -> None:
        nonlocal left
        if left:
            left -= 1
            wire.send(wire.open(headers.next() if headers else b""), body, True)

    def connect() -> Wire:
        received: dict[int, int] = {}

        def on_data(stream: int, length: int) -> None:
            received[stream] = received.get(stream, 0) + length

        def on_end(stream: int) -> None:
            nonlocal done
            if received.pop(stream, 0) != len(body):
                raise LoadError("a response of another size than its request")
            done += 1
            start(wire)

        wire = group.open(port, on_data, on_end).wire
        return wire

    with _Connections() as group:
        wires = [connect() for _ in range(connections)]
        for number in range(in_flight):
            start(wires[number % connections])
        return group.drive(lambda: done == calls)


def streams(port: int, *, calls: int, messages: int, connections: int, in_flight: int, size: int, seed: int) -> float:
    """Bidi streams of so many messages, each sent when the echo of the one before has come; returns seconds. Raises LoadError."""
    body = message(Random(seed).randbytes(size))
    left = calls
    done = 0

    def connect() -> Callable[[], None]:
        """Returns what starts a stream there."""
        expected: dict[int, int] = {}
        """Bytes still to come, by stream."""

        def start() -> None:
            nonlocal left
            if left:
                left -= 1
                stream = wire.open()
                expected[stream] = messages * len(body)
                wire.send(stream, body, False)

        def on_data(stream: int, length: int) -> None:
            rest = expected[stream] = expected[stream] - length
            if rest < 0:
                raise LoadError("more came back than was sent")
            if rest % len(body) == 0:
                # the echo of one message is whole; after the last one comes the end
                wire.send(stream, b"" if rest == 0 else body, rest == 0)

        def on_end(stream: int) -> None:
            nonlocal done
            if expected.pop(stream):
                raise LoadError("a stream ended before its last message")
            done += 1
            start()

        wire = group.open(port, on_data, on_end).wire
        return start

    with _Connections() as group:
        starts = [connect() for _ in range(connections)]
        for number in range(in_flight):
            starts[number % connections]()
        return group.drive(lambda: done == calls)


def open_loop(port: int, *, calls: int, rate: float, connections: int, size: int, seed: int) -> list[float]:
    """Unary calls at times that do not depend on the answers (Poisson, `rate` a second on average).

    Returns each call's seconds from the time at which it should have started, so a stall counts for all calls that it held up.
    Raises LoadError.
    """
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1)  # wake up on time: the default is 50 µs late
    body = message(Random(seed).randbytes(size))
    chance = Random(seed)
    latencies: list[float] = []

    def connect() -> tuple[_Connection, dict[int, float]]:
        intended: dict[int, float] = {}

        def on_end(stream: int) -> None:
            latencies.append(time.perf_counter() - intended.pop(stream))

        return group.open(port, lambda stream, length: None, on_end), intended

    with _Connections() as group:
        peers = [connect() for _ in range(connections)]
        sockets = {connection.socket: connection for connection in group.all}
        due = time.perf_counter() + FIRST_CALL_S
        started = 0
        while len(latencies) < calls:
            now = time.perf_counter()
            while started < calls and due <= now:
                connection, intended = peers[started % connections]
                stream = connection.wire.open()
                intended[stream] = due
                connection.wire.send(stream, body, True)
                started += 1
                due += -math.log(1.0 - chance.random()) / rate
            full = [connection.socket for connection in group.all if not connection.flush()]
            is_waiting = started == calls
            wait = STALL_S if is_waiting else max(0.0, due - time.perf_counter())
            readable, writable, _ = select.select(list(sockets), full, [], wait)
            if is_waiting and not readable and not writable:
                raise LoadError(f"no answer for {STALL_S:g} s")
            for ready in readable:
                sockets[ready].receive()
    return latencies


def one_call(port: int, size: int = 128) -> None:
    """One unary call, checked. Raises LoadError or OSError."""
    closed_loop(port, calls=1, connections=1, in_flight=1, size=size, differ=False, seed=os.getpid())
