"""ADS over grpc.aio: a thin shell around `core`, and the table of who is connected."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from time import monotonic
from typing import Any, Final

import grpc
from envoy.service.discovery.v3 import discovery_pb2

from control_plane.ads.core import BadRequest, NodeStream
from control_plane.registry.state import State
from control_plane.translate import node as node_reader
from control_plane.translate import view
from control_plane.translate.node import BadNode
from control_plane.translate.snapshot import build
from control_plane.translate.view import MeshView

log = logging.getLogger("remora.ads")

MAX_STREAMS: Final = 20_000
SERVICE: Final = "envoy.service.discovery.v3.AggregatedDiscoveryService"


class AdsService:
    """Serves every connected node; told of every new state."""

    def __init__(self) -> None:
        self.streams: dict[int, NodeStream] = {}
        self.pushes = 0
        self.nacks = 0
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
            stream.set_snapshot(build(self._state, self._mesh, stream.node))
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

    async def programmed(self, revision: int, timeout_s: float) -> list[NodeStream]:
        """Wait until all connected nodes acknowledged a revision; those that have not when the time is over."""
        try:
            async with asyncio.timeout(timeout_s), self._programmed:
                await self._programmed.wait_for(lambda: self._state.revision >= revision and not self.behind(revision))
        except TimeoutError:
            return self.behind(revision)
        return []

    # -- gRPC ---------------------------------------------------------------------------------------

    def handler(self) -> grpc.GenericRpcHandler:
        """For `grpc.aio.Server.add_generic_rpc_handlers`; responses are bytes that were made once."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "StreamAggregatedResources": grpc.stream_stream_rpc_method_handler(
                    self._stream,
                    request_deserializer=discovery_pb2.DiscoveryRequest.FromString,
                    response_serializer=_as_it_is,
                )
            },
        )

    async def _stream(
        self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, bytes]
    ) -> AsyncIterator[bytes]:
        if len(self.streams) >= MAX_STREAMS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MAX_STREAMS} nodes are connected already")
        first = await anext(requests, None)
        if first is None:
            return
        try:
            stream = NodeStream(node_reader.read(first.node))
            stream.on_request(first, monotonic())
        except (BadNode, BadRequest) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        self._next += 1
        number = self._next
        wake = self._wakes[number] = asyncio.Event()
        self.streams[number] = stream
        if self._mesh is None and self._state.revision:
            self._mesh = view.mesh(self._state)
        if self._mesh is not None:
            stream.set_snapshot(build(self._state, self._mesh, stream.node))
        wake.set()
        fault: list[str] = []
        reader = asyncio.create_task(self._read(requests, stream, wake, fault.append))
        log.info("node %s connected (%s)", stream.node.id, stream.node.engine)
        try:
            while not reader.done():
                wake.clear()
                while (data := stream.next_response(monotonic())) is not None:
                    self.pushes += 1
                    yield data
                await wake.wait()
        finally:
            reader.cancel()
            del self.streams[number]
            del self._wakes[number]
            self._notify()
            log.info("node %s disconnected", stream.node.id)
        if fault:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, fault[0])

    async def _read(
        self, requests: AsyncIterator[Any], stream: NodeStream, wake: asyncio.Event, fail: Callable[[str], None]
    ) -> None:
        try:
            async for request in requests:
                stream.on_request(request, monotonic())
                if request.HasField("error_detail"):
                    self.nacks += 1
                    log.error("node %s refused %s: %s", stream.node.id, request.type_url, request.error_detail.message)
                wake.set()
                self._notify()
        except BadRequest as error:
            fail(str(error))
        finally:
            wake.set()


def _as_it_is(data: bytes) -> bytes:
    return data
