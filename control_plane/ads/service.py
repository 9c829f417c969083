"""ADS over grpc.aio: a thin shell around `core`, and the table of who is connected."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final, NoReturn

import grpc
from envoy.service.discovery.v3 import discovery_pb2
from prometheus_client import Histogram

from control_plane.ads import delta, sotw
from control_plane.ads import request as requests
from control_plane.ads.core import NodeStream, Variant
from control_plane.ads.memory import Trimmer
from control_plane.ads.request import BadRequest, DeltaRequest, Request
from control_plane.ads.subscription import Answer
from control_plane.ads.waves import ROUND_S, WAVE, Wave, batched
from control_plane.registry.state import State
from control_plane.translate import node as node_reader
from control_plane.translate.node import BadNode, Node
from control_plane.translate.translator import Translator
from control_plane.translate.view import MeshView

log = logging.getLogger("remora.ads")

MAX_STREAMS: Final = 20_000
MAX_STREAMS_PER_NODE: Final = 8
"""A node needs one; while it comes back, its old ones may not have been noticed to be dead yet."""
STREAMS_OF_PROXYLESS: Final = 32
"""Times as many for a program with gRPC's own xDS client: it has a stream for each target that it calls (gRFC A71)."""
FIRST_REQUEST_S: Final = 10.0
"""A stream that says nothing for so long is ended."""
SLOW_READER_S: Final = 30.0
"""A node that does not take a response off the wire for so long is dropped; it comes back when it can read."""
LARGE_BYTES: Final = 64 * 1024
"""A response that leaves something behind in the heap."""
LARGE_AT_ONCE: Final = 16
"""Such responses that are on the way at a time. A hundred nodes that connect to ten thousand services are told a gigabyte: all at once, none of
them would have its part in time, and keepalive pings would wait behind it until the connections are taken for dead."""
LAG_BUCKETS_S: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SERVICE: Final = "envoy.service.discovery.v3.AggregatedDiscoveryService"

Context = grpc.aio.ServicerContext[bytes, bytes]


@dataclass(frozen=True, slots=True)
class _Form:
    """How a variant's requests are read."""

    variant: Variant
    message: Any
    read: Callable[[bytes], Request | DeltaRequest]


_SOTW: Final = _Form(sotw, discovery_pb2.DiscoveryRequest, requests.read)
_DELTA: Final = _Form(delta, discovery_pb2.DeltaDiscoveryRequest, requests.read_delta)


@dataclass(slots=True, eq=False)
class _Connection:
    """A node that is served."""

    number: int
    stream: NodeStream
    form: _Form
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    mesh: MeshView | None = None
    """What its snapshot was made of."""
    faults: list[str] = field(default_factory=list)
    """Why it is ended."""


class AdsService:
    """Serves every connected node; told of every new state."""

    def __init__(
        self,
        *,
        slow_reader_s: float = SLOW_READER_S,
        max_streams: int = MAX_STREAMS,
        max_streams_per_node: int = MAX_STREAMS_PER_NODE,
    ) -> None:
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
        self._max_streams_per_node = max_streams_per_node
        self._per_node: Counter[str] = Counter()
        self._connections: dict[int, _Connection] = {}
        self._next = 0
        self._state = State()
        self._changed: frozenset[bytes] | None = frozenset()
        """Keys in which the state may differ from what was translated; None for any."""
        self._is_stale = False
        """The state is newer than what was translated."""
        self._translator = Translator()
        self._wave = Wave()
        self._trimmer = Trimmer()
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)
        self._pusher: asyncio.Task[None] | None = None
        self._programmed = asyncio.Condition()
        self._notifier: asyncio.Task[None] | None = None

    # -- state --------------------------------------------------------------------------------------

    def on_state(self, state: State) -> None:
        """A new state: every node is brought to it. States that come while others are still being brought make one push."""
        known, fresh = self._changed, state.changed
        self._changed = known | fresh if known is not None and fresh is not None else None
        self._state = state
        self._is_stale = True
        if self._pusher is None:
            self._pusher = asyncio.get_running_loop().create_task(self._push())

    def _refresh(self) -> None:
        """Translate the newest state."""
        if self._is_stale:
            self._translator.advance(self._state, self._changed)
            self._is_stale, self._changed = False, frozenset()

    async def _push(self) -> None:
        """Bring all streams to the newest state, wave by wave, round by round, until all have it."""
        loop = asyncio.get_running_loop()
        try:
            while self._is_stale or any(each.mesh is not self._translator.mesh for each in self._connections.values()):
                began = loop.time()
                self._refresh()
                self._notify()
                for wave in batched(self._connections.values(), WAVE):
                    self._refresh()
                    behind = [each for each in wave if each.mesh is not self._translator.mesh]
                    # Who owes an answer already is not waited for: it had its chance.
                    awaited = [each.number for each in behind if each.stream.is_quiet]
                    for each in behind:
                        self._bring(each)
                    await self._wave.over(awaited)
                await asyncio.sleep(began + ROUND_S - loop.time())
        finally:
            self._pusher = None

    def _notify(self) -> None:
        """Wake those who wait for nodes to acknowledge."""
        if self._notifier is None:
            self._notifier = asyncio.get_running_loop().create_task(self._notify_all())

    async def _notify_all(self) -> None:
        self._notifier = None
        async with self._programmed:
            self._programmed.notify_all()

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

        def serving(form: _Form) -> Any:
            async def serve(requests: AsyncIterator[bytes], context: Context) -> None:
                await self._serve(form, requests, context)

            return grpc.stream_stream_rpc_method_handler(
                serve, request_deserializer=_as_it_is, response_serializer=_as_it_is
            )

        return grpc.method_handlers_generic_handler(
            SERVICE, {"StreamAggregatedResources": serving(_SOTW), "DeltaAggregatedResources": serving(_DELTA)}
        )

    async def _serve(self, form: _Form, requests: AsyncIterator[bytes], context: Context) -> None:
        try:
            async with asyncio.timeout(FIRST_REQUEST_S):
                data = await anext(requests, None)
        except TimeoutError:
            await _end(context, grpc.StatusCode.DEADLINE_EXCEEDED, f"no request within {FIRST_REQUEST_S:g} s")
        if data is None:
            return
        try:
            first = form.read(data)
            node = node_reader.read(form.message.FromString(data).node)
            stream = NodeStream(node, form.variant)
            stream.on_request(first, monotonic())
        except (BadNode, BadRequest) as error:
            await _end(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        refusal = self._refusal(node)
        if refusal:
            await _end(context, grpc.StatusCode.RESOURCE_EXHAUSTED, refusal)
        del data, first  # what a node says of itself is much more than what it is served by
        self._next += 1
        connection = _Connection(self._next, stream, form)
        self._refresh()
        self._bring(connection)
        self._connections[connection.number] = connection
        self.streams[connection.number] = stream
        self._per_node[node.id] += 1
        self._trimmer.later()
        reader = asyncio.create_task(self._read(requests, connection))
        log.info("node %s connected (%s)", node.id, node.engine)
        code, unread = grpc.StatusCode.INVALID_ARGUMENT, None
        try:
            unread = await self._tell(connection, reader, context)
            if unread is None:
                await reader  # raises what it ended with
            else:
                code = grpc.StatusCode.RESOURCE_EXHAUSTED
                self.slow_readers += 1
                connection.faults.append(
                    f"the node did not read a response for {self._slow_reader_s:g} s; connect again"
                )
        finally:
            reader.cancel()
            self._forget(connection)
        if unread is not None:
            # gRPC cannot take a response back: the status follows it as soon as the node reads on.
            await _written(unread)
        if connection.faults:
            await _end(context, code, connection.faults[0])

    def _refusal(self, node: Node) -> str | None:
        """Why one more stream of a node is not served."""
        if len(self.streams) >= self._max_streams:
            return f"{len(self.streams)} nodes are connected already; at most {self._max_streams} are served"
        most = self._max_streams_per_node * (STREAMS_OF_PROXYLESS if node.profile.is_proxyless else 1)
        if self._per_node[node.id] >= most:
            return f"node {node.id} has {self._per_node[node.id]} streams already; give each node an id of its own"
        return None

    def _forget(self, connection: _Connection) -> None:
        node = connection.stream.node
        del self._connections[connection.number]
        del self.streams[connection.number]
        self._per_node[node.id] -= 1
        if not self._per_node[node.id]:
            del self._per_node[node.id]
        self._wave.settled(connection.number)
        self._trimmer.later()
        self._notify()
        log.info("node %s disconnected%s", node.id, "".join(f": {fault}" for fault in connection.faults))

    async def _tell(
        self, connection: _Connection, reader: asyncio.Task[None], context: Context
    ) -> asyncio.Task[None] | None:
        """Send what there is to say until the node says no more; a response that it does not read is given back."""
        stream, wake = connection.stream, connection.wake
        while not reader.done():
            wake.clear()
            while (response := stream.next_response(monotonic())) is not None:
                self.pushes[short(response.type_url)] += 1
                if len(response.data) > LARGE_BYTES:
                    self._trimmer.later()
                    async with self._large:  # given back by a node that does not read at the end of its time
                        unread = await self._write(context, response.data)
                else:
                    unread = await self._write(context, response.data)
                if unread is not None:
                    return unread
            del response
            if stream.is_quiet:
                self._wave.settled(connection.number)
            await wake.wait()
        return None

    def _bring(self, connection: _Connection) -> None:
        """Let a stream know the newest state."""
        mesh, stream = self._translator.mesh, connection.stream
        connection.mesh = mesh
        if mesh.revision:
            stream.set_snapshot(self._translator.snapshot(stream.node, stream.snapshot))
            connection.wake.set()
            self._notify()

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

    async def _read(self, requests: AsyncIterator[bytes], connection: _Connection) -> None:
        stream = connection.stream
        try:
            async for data in requests:
                request = connection.form.read(data)
                self._count(stream, request.type_url, stream.on_request(request, monotonic()))
                connection.wake.set()
                self._notify()
                del data, request  # nothing is held while there is nothing to read
        except BadRequest as error:
            connection.faults.append(str(error))
        finally:
            connection.wake.set()

    def _count(self, stream: NodeStream, type_url: str, answer: Answer) -> None:
        if answer is Answer.NONE:
            return
        kind = short(type_url)
        subscription = stream.subscriptions[type_url]
        self.lag.labels(kind).observe(subscription.lag_ms / 1000)
        if answer is Answer.NACK:
            self.nacks[kind] += 1
            log.error("node %s refused %s: %s", stream.node.id, kind, subscription.nack_reason)


def short(type_url: str) -> str:
    """The last word of a type, for people and labels: there are as many as types that are served."""
    return type_url.rpartition(".")[2]


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
