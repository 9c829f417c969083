"""A watch on etcd that outlives its members.

Rules, each of them for a way in which a watch on etcd loses or repeats events:

- It resumes after the last revision that its consumer was given. The revision in a header is the whole store's and runs ahead of the
  events that it comes with, and what a progress answer says may be behind: neither is looked at.
- etcd is asked for one revision more than is wanted, and that one is dropped. A compaction at a revision removes the deletions of that
  very revision, and etcd (before 3.5.18) takes a watch from there without a word; asked for one earlier it answers that the
  history is gone.
- A long answer comes in fragments that may split a revision: the last revision of a fragment is held back until the next one shows that
  it is whole.
- A refusal looks like a success with `canceled` set, so that is looked at first.
- A member that is stopped keeps its connection. If nothing comes for a while, the member is asked for a sign of life.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

import grpc
import grpc.aio

from control_plane.store.contract import Compacted, Event, EventType, StoreUnavailable, check_start
from control_plane.store.etcd_members import Failure, Member, Members, Metadata, is_cancelled, pauses
from proto.etcd.v1 import rpc_pb2 as pb


@dataclass(frozen=True, slots=True)
class _Ended:
    """How a watch ended that did not end with a status of its own."""

    text: str
    status: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE

    def code(self) -> grpc.StatusCode:
        return self.status

    def details(self) -> str:
        return self.text


class _Broken(Exception):
    """The stream is of no use any more; `failure` says why."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure


def end_of(prefix: bytes) -> bytes:
    """The `range_end` that takes in everything with this prefix."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\0"


async def follow(members: Members, prefix: bytes, start_revision: int) -> AsyncGenerator[tuple[Event, ...], None]:
    """See `Store.watch`."""
    check_start(start_revision)
    next_revision = start_revision
    away_since = monotonic()
    waits = pauses()
    while True:
        member = await members.connected(away_since + members.patience.total_s)
        metadata = await members.metadata()
        stream = _Stream(members, member, metadata, prefix, next_revision)
        failure: Failure
        try:
            await stream.begin()
            waits = pauses()
            while True:
                batch = await stream.read()
                if batch:
                    next_revision = batch[-1].revision + 1
                    yield batch
        except grpc.aio.AioRpcError as error:
            failure = error
        except _Broken as broken:
            failure = broken.failure
        finally:
            await stream.close()
        await members.settle(member, failure, metadata)
        away_since = monotonic() if stream.has_begun else away_since
        pause_s = next(waits)
        if monotonic() + pause_s > away_since + members.patience.total_s:
            raise StoreUnavailable(members.away(member, failure))
        await asyncio.sleep(pause_s)


class _Stream:
    """One watch on one member. Its methods raise AioRpcError or _Broken when it is of no use any more, and Compacted."""

    def __init__(self, members: Members, member: Member, metadata: Metadata, prefix: bytes, next_revision: int) -> None:
        self.has_begun = False
        self._members = members
        self._call = member.watch.Watch(metadata=metadata)
        self._create = pb.WatchCreateRequest(
            key=prefix or b"\0", range_end=end_of(prefix), start_revision=max(1, next_revision - 1), fragment=True
        )
        self._next_revision = next_revision
        self._reading: asyncio.Future[Any] | None = None
        self._held: list[pb.Event] = []
        """Of a revision of which there may be more."""

    async def begin(self) -> None:
        """Returns when the watch stands."""
        await self._write(pb.WatchRequest(create_request=self._create))
        while not (await self._answer()).created:
            continue
        self.has_begun = True

    async def read(self) -> tuple[Event, ...]:
        """The next events, whole revisions; () if an answer had none that are new."""
        answer = await self._answer()
        events = [*self._held, *answer.events]
        last = events[-1].kv.mod_revision if answer.fragment and events else None
        self._held = [event for event in events if event.kv.mod_revision == last]
        return _events(events[: len(events) - len(self._held)], self._next_revision)

    async def _answer(self) -> pb.WatchResponse:
        """The next answer that is no refusal."""
        is_asked = False
        while True:
            self._reading = self._reading or asyncio.ensure_future(self._call.read())
            await asyncio.wait({self._reading}, timeout=self._members.patience.silence_s)
            if self._reading.done():
                break
            if is_asked:
                raise _Broken(_Ended("silent", grpc.StatusCode.DEADLINE_EXCEEDED))
            await self._write(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))
            is_asked = True
        try:
            answer, self._reading = self._reading.result(), None
        except (asyncio.CancelledError, grpc.aio.UsageError):
            self._members.check_open()  # a closed channel cancels what is under way
            raise _Broken(_Ended("the watch was cancelled")) from None
        if answer is grpc.aio.EOF:
            raise _Broken(_Ended("the watch was ended"))
        if answer.canceled:
            if answer.compact_revision:
                raise Compacted(answer.compact_revision)
            raise _Broken(_refusal(answer.cancel_reason))
        assert isinstance(answer, pb.WatchResponse)
        return answer

    async def _write(self, request: pb.WatchRequest) -> None:
        try:
            await self._call.write(request)
        except asyncio.InvalidStateError:  # it has ended
            self._members.check_open()
            raise _Broken(_Ended(await self._call.details() or "", await self._call.code())) from None
        except (asyncio.CancelledError, grpc.aio.UsageError):
            if not is_cancelled():
                self._members.check_open()
            raise

    async def close(self) -> None:
        self._call.cancel()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})


def _refusal(reason: str) -> _Ended:
    """etcd refuses a watch with a text and no status."""
    denied = "permission denied" in reason
    return _Ended(reason, grpc.StatusCode.PERMISSION_DENIED if denied else grpc.StatusCode.UNAVAILABLE)


def _events(events: Sequence[pb.Event], next_revision: int) -> tuple[Event, ...]:
    return tuple(
        Event(EventType.DELETE, event.kv.key, b"", event.kv.mod_revision)
        if event.type == pb.Event.DELETE
        else Event(EventType.PUT, event.kv.key, event.kv.value, event.kv.mod_revision, event.kv.lease)
        for event in events
        if event.kv.mod_revision >= next_revision
    )
