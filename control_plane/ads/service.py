"""ADS over grpc.aio: a thin shell around `core`, and the table of who is connected."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from time import monotonic
from typing import Any, Final, NoReturn

import grpc
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.message import DecodeError
from prometheus_client import Histogram

from control_plane.ads.core import Answer, BadRequest, NodeStream
from control_plane.registry.state import State
from control_plane.translate import node as node_reader
from control_plane.translate import view
from control_plane.translate.node import BadNode
from control_plane.translate.snapshot import build
from control_plane.translate.view import MeshView

log = logging.getLogger("remora.ads")

MAX_STREAMS: Final = 20_000
FIRST_REQUEST_S: Final = 10.0
"""A stream that says nothing for so long is ended."""
SLOW_READER_S: Final = 30.0
"""A node that does not take a response off the wire for so long is dropped; it comes back when it can read."""
LAG_BUCKETS_S: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SERVICE: Final = "envoy.service.discovery.v3.AggregatedDiscoveryService"

Context = grpc.aio.ServicerContext[bytes, bytes]


class AdsService:
    """Serves every connected node; told of every new state."""

    def __init__(self, *, slow_reader_s: float = SLOW_READER_S, max_streams: int = MAX_STREAMS) -> None:
        self.streams: dict[int, NodeStream] = {}
        self.pushes: Counter[str] = Counter()
        """Responses sent, by type."""
        self.nacks: Counter[str] = Counter()
        """Responses refused, by type."""
        self.slow_readers = 0
        """Streams that were ended because the node did not read."""
        self.lag = Histogram(
            "remora_control_plane_ack_seconds",
            "From sending a response to the node's acknowledgement.",
            ["type"],
            buckets=LAG_BUCKETS_S,
            registry=None,
        )
        self._slow_reader_s = slow_reader_s
        self._max_streams = max_streams
        self._wakes: dict[int, asyncio.Event] = {}
        self._next = 0
        self._state = State()
        self._mesh: MeshView | None = None
        self._programmed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    # -- state --------------------------------------------------------------------------------------

    def on_state(self, state: State) -> None:
        """A new state: every node is brought to it. Many states in one turn of the loop make one push."""
        is_pending = self._mesh is None and self._state.revision > 0
        self._state = state
        self._mesh = None
        if not is_pending:
            asyncio.get_running_loop().call_soon(self._swap)

    def _swap(self) -> None:
        if self._mesh is None:
            self._mesh = view.mesh(self._state)
        for number, stream in self.streams.items():
            stream.set_snapshot(build(self._mesh, stream.node))
            self._wakes[number].set()
        self._notify()

    def _notify(self) -> None:
        """Wake those who wait for nodes to acknowledge."""

        async def notify() -> None:
            async with self._programmed:
                self._programmed.notify_all()

        task = asyncio.get_running_loop().create_task(notify())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def behind(self, revision: int) -> list[NodeStream]:
        """The connected nodes that have not acknowledged a revision."""
        return [stream for stream in self.streams.values() if stream.programmed < revision]

    def is_programmed(self, revision: int) -> bool:
        """True if a revision is served, and acknowledged by every connected node."""
        return self._state.revision >= revision and not self.behind(revision)

    async def programmed(self, revision: int, timeout_s: float) -> bool:
        """Wait until all connected nodes have acknowledged a revision; False when the time is over before."""
        try:
            async with asyncio.timeout(timeout_s), self._programmed:
                await self._programmed.wait_for(lambda: self.is_programmed(revision))
        except TimeoutError:
            return False
        return True

    # -- gRPC ---------------------------------------------------------------------------------------

    def handler(self) -> grpc.GenericRpcHandler:
        """For `grpc.aio.Server.add_generic_rpc_handlers`; responses are bytes that were made once."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "StreamAggregatedResources": grpc.stream_stream_rpc_method_handler(
                    self._stream, request_deserializer=_as_it_is, response_serializer=_as_it_is
                )
            },
        )

    async def _stream(self, requests: AsyncIterator[bytes], context: Context) -> None:
        try:
            async with asyncio.timeout(FIRST_REQUEST_S):
                data = await anext(requests, None)
        except TimeoutError:
            await _end(context, grpc.StatusCode.DEADLINE_EXCEEDED, f"no request within {FIRST_REQUEST_S:g} s")
        if data is None:
            return
        if len(self.streams) >= self._max_streams:
            text = f"{len(self.streams)} nodes are connected already; at most {self._max_streams} are served"
            await _end(context, grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        try:
            first = _parsed(data)
            stream = NodeStream(node_reader.read(first.node))
            stream.on_request(first, monotonic())
        except (BadNode, BadRequest) as error:
            await _end(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        self._next += 1
        number = self._next
        wake = self._wakes[number] = asyncio.Event()
        self.streams[number] = stream
        if self._mesh is None and self._state.revision:
            self._mesh = view.mesh(self._state)
        if self._mesh is not None:
            stream.set_snapshot(build(self._mesh, stream.node))
        faults: list[str] = []
        reader = asyncio.create_task(self._read(requests, stream, wake, faults.append))
        log.info("node %s connected (%s)", stream.node.id, stream.node.engine)
        code, unread = grpc.StatusCode.INVALID_ARGUMENT, None
        try:
            while not reader.done() and unread is None:
                wake.clear()
                while unread is None and (response := stream.next_response(monotonic())) is not None:
                    self.pushes[short(response.type_url)] += 1
                    unread = await self._write(context, response.data)
                if unread is None:
                    await wake.wait()
            if unread is None:
                await reader  # raises what it ended with
            else:
                code = grpc.StatusCode.RESOURCE_EXHAUSTED
                self.slow_readers += 1
                faults.append(f"the node did not read a response for {self._slow_reader_s:g} s; connect again")
        finally:
            reader.cancel()
            del self.streams[number]
            del self._wakes[number]
            self._notify()
            log.info("node %s disconnected%s", stream.node.id, "".join(f": {fault}" for fault in faults))
        if unread is not None:
            # gRPC cannot take a response back: the status follows it as soon as the node reads on.
            await _written(unread)
        if faults:
            await _end(context, code, faults[0])

    async def _write(self, context: Context, data: bytes) -> asyncio.Task[None] | None:
        """Send a response; the write itself if the node does not read it in time."""
        write = asyncio.ensure_future(context.write(data))
        try:
            await asyncio.wait((write,), timeout=self._slow_reader_s)
        except asyncio.CancelledError:
            write.cancel()
            raise
        if not write.done():
            return write
        await _written(write)
        return None

    async def _read(
        self, requests: AsyncIterator[bytes], stream: NodeStream, wake: asyncio.Event, fail: Callable[[str], None]
    ) -> None:
        try:
            async for data in requests:
                request = _parsed(data)
                self._count(stream, request, stream.on_request(request, monotonic()))
                wake.set()
                self._notify()
        except BadRequest as error:
            fail(str(error))
        finally:
            wake.set()

    def _count(self, stream: NodeStream, request: Any, answer: Answer) -> None:
        if answer is Answer.NONE:
            return
        kind = short(request.type_url)
        subscription = stream.subscriptions[request.type_url]
        self.lag.labels(kind).observe(subscription.lag_ms / 1000)
        if answer is Answer.NACK:
            self.nacks[kind] += 1
            log.error("node %s refused %s: %s", stream.node.id, kind, subscription.nack_reason)


def short(type_url: str) -> str:
    """The last word of a type, for people and labels: there are as many as types that are served."""
    return type_url.rpartition(".")[2]


def _parsed(data: bytes) -> Any:
    """A DiscoveryRequest. Raises BadRequest."""
    try:
        return discovery_pb2.DiscoveryRequest.FromString(data)
    except DecodeError:
        raise BadRequest(f"{len(data)} bytes that are no DiscoveryRequest") from None


async def _written(write: asyncio.Task[None]) -> None:
    """Wait for a write. When the node has gone instead, the call counts as cancelled: a status after a write that failed is an error of gRPC."""
    try:
        await write
    except grpc.aio.InternalError:
        raise asyncio.CancelledError from None


async def _end(context: Context, code: grpc.StatusCode, text: str) -> NoReturn:
    await context.abort(code, text)
    raise AssertionError("abort does not return")


def _as_it_is(data: bytes) -> bytes:
    return data
