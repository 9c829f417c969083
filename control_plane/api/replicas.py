"""The other replicas of this control plane: each has some of the nodes, so a question about all nodes goes to all replicas.

Each replica keeps its address in the store, under a lease. Who is asked by another one answers for its own nodes only. One that does not answer
is asked again until its lease has ended: then its nodes have gone elsewhere, or will be at one that can be asked.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from random import random
from time import monotonic
from typing import Any, Final

import grpc

from control_plane.registry import keys
from control_plane.store.contract import Compacted, EventType, LeaseNotFound, Put, Store, StoreError
from proto.mesh.v1 import api_pb2, api_pb2_grpc

log = logging.getLogger("remora.api")

TTL_S: Final = 5
LEAVE_S: Final = 1.0
"""Who ends tries so long to say so."""
RETRY_S: Final = 0.25
ASK_S: Final = 2.0
"""How long a replica may take to say which nodes it has."""
ONLY_YOURS: Final = (("remora-only-yours", "1"),)
"""Goes with a question of a replica to another."""
_OPTIONS: Final = (("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 1000))


def is_from_replica(context: grpc.aio.ServicerContext[Any, Any]) -> bool:
    """Whether the question is about our own nodes only."""
    return any((key, value) == ONLY_YOURS[0] for key, value in context.invocation_metadata() or ())


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a replica said of a revision."""

    nodes: int
    """How many have acknowledged it."""
    why_not: str = ""
    """Empty if all have."""


class Replicas:
    """The others. `present` keeps our own address in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._own = secrets.token_hex(8)
        self._address = ""
        self._there: dict[bytes, str] = {}
        """Addresses by key in the store, our own among them."""
        self._channels: dict[str, grpc.aio.Channel] = {}

    @asynccontextmanager
    async def present(self, address: str) -> AsyncIterator[None]:
        """Let the others know of us, as long as the context lasts."""
        self._address = address
        lease: list[int] = []
        tasks = [asyncio.create_task(self._keep(address, lease)), asyncio.create_task(self._follow())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with suppress(StoreError, TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    for each in lease[-1:]:
                        await self._store.revoke(each)
            await asyncio.gather(*(channel.close() for channel in self._channels.values()))

    async def _keep(self, address: str, lease: list[int]) -> None:
        key = keys.REPLICAS + self._own.encode()
        while True:
            try:
                lease.append(await self._store.grant(TTL_S))
                await self._store.txn((), [Put(key, address.encode(), lease[-1])])
                while True:
                    await asyncio.sleep(TTL_S / 3 * (0.8 + 0.4 * random()))
                    await self._store.keep_alive(lease[-1])
            except LeaseNotFound:
                continue
            except StoreError as error:
                log.debug("the other replicas cannot be told of this one: %s", error)
                await asyncio.sleep(RETRY_S * (0.5 + random()))

    async def _follow(self) -> None:
        """Know the others at any time, also while the store is away: then those of before."""
        while True:
            try:
                listing = await self._store.range(keys.REPLICAS)
                self._there = {item.key: item.value.decode() for item in listing.items}
                async with aclosing(self._store.watch(keys.REPLICAS, listing.revision + 1)) as batches:
                    async for batch in batches:
                        for event in batch:
                            self._there.pop(event.key, None)
                            if event.type is EventType.PUT:
                                self._there[event.key] = event.value.decode()
            except Compacted:
                continue
            except StoreError as error:
                log.debug("which other replicas there are cannot be followed: %s", error)
                await asyncio.sleep(RETRY_S * (0.5 + random()))

    @property
    def others(self) -> list[str]:
        """Addresses of the other replicas that are there. One that was killed and came back may stand there twice; we may, too."""
        own = keys.REPLICAS + self._own.encode()
        return sorted({address for key, address in self._there.items() if key != own and address != self._address})

    def _stub(self, kind: Any, address: str) -> Any:
        if address not in self._channels:
            self._channels[address] = grpc.aio.insecure_channel(address, options=_OPTIONS)
        return kind(self._channels[address])

    async def programmed(self, revision: int, wait_s: float) -> list[Verdict]:
        """What the others say of a revision, each after its own nodes have acknowledged it or the time is over."""
        end = monotonic() + wait_s
        return list(await asyncio.gather(*(self._verdict(address, revision, end) for address in self.others)))

    async def _verdict(self, address: str, revision: int, end: float) -> Verdict:
        stub = self._stub(api_pb2_grpc.ResourcesStub, address)
        while True:
            left_s = max(0.0, end - monotonic())
            request = api_pb2.WaitProgrammedRequest(revision=revision)
            request.timeout.FromNanoseconds(int(left_s * 1e9))
            try:
                answer = await stub.WaitProgrammed(request, timeout=left_s + ASK_S, metadata=ONLY_YOURS)
                return Verdict(answer.nodes)
            except grpc.aio.AioRpcError as error:
                why = f"replica {address}: {error.details() or error.code().name}"
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    return Verdict(0, why)
            if address not in self.others:
                return Verdict(0)
            if monotonic() + RETRY_S > end:
                return Verdict(0, why)
            await asyncio.sleep(RETRY_S)

    async def nodes(self) -> tuple[list[api_pb2.Node], list[str]]:
        """The nodes of the others; and the addresses of those that did not answer."""
        others = self.others
        answers = await asyncio.gather(*map(self._nodes_of, others))
        found = [node for answer in answers for node in answer or ()]
        return found, [address for address, answer in zip(others, answers, strict=True) if answer is None]

    async def _nodes_of(self, address: str) -> Sequence[api_pb2.Node] | None:
        stub = self._stub(api_pb2_grpc.MeshStub, address)
        try:
            answer = await stub.Nodes(api_pb2.NodesRequest(), timeout=ASK_S, metadata=ONLY_YOURS)
        except grpc.aio.AioRpcError:
            return None
        nodes = list(answer.nodes)
        for node in nodes:
            node.replica = address
        return nodes
