"""Active health checks at work: one task for each endpoint and check asks it now and then, by gRPC, HTTP or TCP.

Each check has a connection of its own, so that it sees what a new caller would see.
"""

import asyncio
import struct
from time import monotonic
from typing import TYPE_CHECKING, Final, cast

from sidecar.http2 import headers
from sidecar.http2.connection import Connection, Handler, Role, Settings, Stream
from sidecar.http2.headers import HeaderError
from sidecar.policy.checking import Health, Result
from sidecar.proxy.config import CheckConfig, CheckKind, Codec
from sidecar.proxy.connect import ConnectError, connect, connect_http1

if TYPE_CHECKING:
    from sidecar.proxy.cluster import Cluster, Endpoint

MAX_ANSWER: Final = 64 * 1024
"""Bytes of an answer that are read."""
SERVING: Final = 1
"""grpc.health.v1.HealthCheckResponse.ServingStatus."""
_GRPC_PATH: Final = b"/grpc.health.v1.Health/Check"


class Checker:
    """The checks of one endpoint: it is healthy if all are passed."""

    def __init__(self, cluster: "Cluster", endpoint: "Endpoint", *, is_first: bool) -> None:
        """`is_first`: it came with its cluster, and is used until a check says otherwise."""
        self._cluster = cluster
        self._endpoint = endpoint
        self._is_first = is_first
        self.is_late = False
        """The last check got no answer in time."""
        self.health = [Health(check.timing) for check in cluster.config.checks]
        loop = cluster.worker.loop
        self._tasks = [
            loop.create_task(self._run(check, health))
            for check, health in zip(cluster.config.checks, self.health, strict=True)
        ]

    @property
    def has_failed(self) -> bool:
        """True if it gets no calls."""
        return any(not health.is_passing and (health.is_known or not self._is_first) for health in self.health)

    def stop(self) -> None:
        """The endpoint is gone."""
        for task in self._tasks:
            task.cancel()

    async def _run(self, check: CheckConfig, health: Health) -> None:
        chance = self._cluster.worker.chance
        timing = check.timing
        await asyncio.sleep(chance.random() * timing.initial_jitter_s)
        while True:
            before = self.has_failed
            result = await self.ask(check)
            self.is_late = result is Result.LATE
            _, wait = health.take(result, has_traffic=self._cluster.had_traffic)
            self._cluster.worker.now = monotonic()
            if result is Result.PASSED:
                self._endpoint.on_check_passed()
            if self.has_failed != before:
                self._cluster.worker.stats.count_check(
                    self._cluster.label, self._endpoint.config.version, failed=not before
                )
                self._cluster.rebalance_by_health()
            jitter = chance.random() * (timing.jitter_s + wait * timing.jitter_percent / 100.0)
            await asyncio.sleep(wait + jitter)

    async def ask(self, check: CheckConfig) -> Result:
        """One check."""
        try:
            async with asyncio.timeout(check.timing.timeout_s):
                if check.kind is CheckKind.TCP:
                    return await self._tcp(check)
                return await self._http(check)
        except TimeoutError:
            return Result.LATE
        except (ConnectError, OSError):
            return Result.UNREACHABLE

    async def _tcp(self, check: CheckConfig) -> Result:
        talk = _Talk(check.send, check.receive)
        endpoint, cluster = self._endpoint, self._cluster
        transport = await connect(
            cluster.config, endpoint.config, lambda: cast(asyncio.BaseProtocol, talk), cluster.worker.secrets, alpn=""
        )
        try:
            return Result.PASSED if await talk.outcome else Result.UNREACHABLE
        finally:
            transport.abort()

    async def _http(self, check: CheckConfig) -> Result:
        probe = Probe(self._cluster.worker.loop, _request(check, self._cluster.name))
        cluster, endpoint = self._cluster, self._endpoint
        try:
            if check.codec is Codec.HTTP1:
                await connect_http1(
                    cluster.config, endpoint.config, cast(asyncio.Protocol, probe), cluster.worker.secrets
                )
            else:
                await connect(
                    cluster.config, endpoint.config, lambda: cast(asyncio.BaseProtocol, probe), cluster.worker.secrets
                )
            return _verdict(check, await probe.outcome)
        finally:
            probe.close()


def _request(check: CheckConfig, cluster: str) -> tuple[bytes, bytes]:
    """Header block and body."""
    authority = (check.host or cluster).encode()
    if check.kind is CheckKind.GRPC:
        name = check.service.encode()
        message = b"\x0a" + _varint(len(name)) + name if name else b""
        fields = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", _GRPC_PATH),
            (b":authority", authority),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
            (b"user-agent", b"Remora/HC"),
        ]
        return headers.encode(fields), struct.pack(">BI", 0, len(message)) + message
    fields = [
        (b":method", check.method.encode()),
        (b":scheme", b"http"),
        (b":path", check.path.encode()),
        (b":authority", authority),
        (b"user-agent", b"Remora/HC"),
    ]
    return headers.encode(fields), b""


def _varint(number: int) -> bytes:
    return bytes((number,)) if number < 128 else bytes((number & 127 | 128,)) + _varint(number >> 7)


def _verdict(check: CheckConfig, answer: "Answer | None") -> Result:
    if answer is None:
        return Result.UNREACHABLE
    if check.kind is CheckKind.HTTP:
        if any(low <= answer.http_status < high for low, high in check.expected):
            return Result.PASSED
        is_retriable = any(low <= answer.http_status < high for low, high in check.retriable)
        return Result.UNREACHABLE if is_retriable else Result.FAILED
    is_serving = answer.grpc_status == 0 and _serving_status(bytes(answer.body)) == SERVING
    return Result.PASSED if is_serving else Result.FAILED


def _serving_status(body: bytes) -> int:
    """Of a HealthCheckResponse: its only field is an enumeration below 128."""
    return body[6] if len(body) == 7 and body[5] == 0x08 else 0


class Answer:
    """What an endpoint answered."""

    __slots__ = ("body", "grpc_status", "http_status")

    def __init__(self) -> None:
        self.http_status = 0
        self.grpc_status = -1
        self.body = bytearray()


class _Talk(asyncio.Protocol):
    """A TCP check: something is sent, and must be answered by what contains each of the given texts in order; nothing given, a connection is enough."""

    def __init__(self, send: bytes, receive: tuple[bytes, ...]) -> None:
        self.outcome: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._send = send
        self._receive = receive
        self._got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._send:
            cast(asyncio.Transport, transport).write(self._send)
        if not self._receive:
            self._settle(True)

    def data_received(self, data: bytes) -> None:
        self._got = (self._got + data)[-MAX_ANSWER:]
        at = 0
        for text in self._receive:
            found = self._got.find(text, at)
            if found < 0:
                return
            at = found + len(text)
        self._settle(True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._settle(False)

    def _settle(self, is_good: bool) -> None:
        if not self.outcome.done():
            self.outcome.set_result(is_good)


class Probe(Handler):
    """One request on an HTTP/2 connection of its own; a protocol of asyncio."""

    def __init__(self, loop: asyncio.AbstractEventLoop, request: tuple[bytes, bytes]) -> None:
        self.outcome: asyncio.Future[Answer | None] = loop.create_future()
        """None if the connection broke, or was no HTTP."""
        self._request = request
        self._conn = Connection(Role.CLIENT, self, Settings())
        self._answer = Answer()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        block, body = self._request
        stream = self._conn.open_stream(block, not body)
        if body:
            self._conn.send_data(stream, body, 0, True)
        self._write()

    def data_received(self, data: bytes) -> None:
        self._conn.receive(data, monotonic())
        if self._conn.is_closed:
            self._settle(None)
        self._write()

    def eof_received(self) -> None:
        """The endpoint sends no more: asyncio closes the transport."""

    def pause_writing(self) -> None:
        """So little is sent that it does not matter."""

    def resume_writing(self) -> None:
        """The same."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._settle(None)

    def close(self) -> None:
        """The check is over."""
        if self._transport is not None:
            self._transport.close()

    def _write(self) -> None:
        if self._conn.has_output() and self._transport is not None:
            self._transport.write(self._conn.take_output())

    def _settle(self, answer: Answer | None) -> None:
        if not self.outcome.done():
            self.outcome.set_result(answer)

    def on_headers(self, stream: Stream, block: bytes, ended: bool) -> None:
        try:
            fields = headers.decode(block)
        except HeaderError:
            self._settle(None)
            return
        for name, value in fields:
            if name == b":status" and value.isdigit():
                self._answer.http_status = int(value)
            elif name == b"grpc-status" and value.isdigit():
                self._answer.grpc_status = int(value)
        if ended:
            self._settle(self._answer)

    def on_data(self, stream: Stream, payload: bytes, credit: int, ended: bool) -> None:
        self._conn.credit(stream, credit)
        if len(self._answer.body) < MAX_ANSWER:
            self._answer.body += payload
        if ended:
            self._settle(self._answer)

    def on_reset(self, stream: Stream, code: int, was_refused: bool) -> None:
        self._settle(self._answer if self._answer.http_status else None)

    def on_goaway(self, code: int) -> None:
        """What was asked may still be answered."""

    def on_sent(self, stream: Stream, credit: int) -> None:
        """Nobody waits for window."""

    def on_capacity(self) -> None:
        """One request is all."""

    def on_request(self, stream: Stream, block: bytes, ended: bool) -> None:
        raise AssertionError("a client connection gets no requests")
