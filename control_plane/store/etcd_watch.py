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
from contextlib import aclosing
from dataclasses import dataclass
from time import monotonic
from typing import Any

import grpc
import grpc.aio

from control_plane.store.contract import Compacted, Event, EventType, StoreUnavailable
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
    next_revision = start_revision
    away_since = monotonic()
    waits = pauses()
    while True:
        member = await members.connected(away_since + members.patience.total_s)
        metadata = await members.metadata()
        failure: Failure
        try:
            async with aclosing(_stream(members, member, metadata, prefix, next_revision)) as batches:
                async for batch in batches:
                    waits = pauses()
                    if batch:
                        next_revision = batch[-1].revision + 1
                        yield batch
                    away_since = 0.0
        except grpc.aio.AioRpcError as error:
            failure = error
        except _Broken as broken:
            failure = broken.failure
        await members.settle(member, failure, metadata)
        away_since = away_since or monotonic()
        pause_s = next(waits)
        if monotonic() + pause_s > away_since + members.patience.total_s:
            raise StoreUnavailable(members.away(member, failure))
        await asyncio.sleep(pause_s)


async def _stream(
    members: Members, member: Member, metadata: Metadata, prefix: bytes, next_revision: int
) -> AsyncGenerator[tuple[Event, ...], None]:
    """One watch on one member; the first tuple is empty and says that it stands. Never ends but by raising."""
    call = member.watch.Watch(metadata=metadata)
    reading: asyncio.Future[Any] | None = None
    try:
        create = pb.WatchCreateRequest(
            key=prefix or b"\0", range_end=end_of(prefix), start_revision=max(1, next_revision - 1), fragment=True
        )
        await call.write(pb.WatchRequest(create_request=create))
        is_asked = False
        held: list[pb.Event] = []
        while True:
            reading = reading or asyncio.ensure_future(call.read())
            await asyncio.wait({reading}, timeout=members.patience.silence_s)
            if not reading.done():
                if is_asked:
                    raise _Broken(_Ended("silent", grpc.StatusCode.DEADLINE_EXCEEDED))
                await call.write(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))
                is_asked = True
                continue
            response, reading, is_asked = reading.result(), None, False
            if response is grpc.aio.EOF:
                raise _Broken(_Ended("the watch was ended"))
            if response.canceled:
                if response.compact_revision:
                    raise Compacted(response.compact_revision)
                raise _Broken(_refusal(response.cancel_reason))
            if response.created:
                yield ()
            events = [*held, *response.events]
            held = []
            if response.fragment and events:
                last = events[-1].kv.mod_revision
                held = [event for event in events if event.kv.mod_revision == last]
            fresh = _events(events[: len(events) - len(held)], next_revision)
            if fresh:
                yield fresh
    except asyncio.InvalidStateError:  # written to after its end
        raise _Broken(_Ended(await call.details() or "", await call.code())) from None
    except (asyncio.CancelledError, grpc.aio.UsageError):
        if is_cancelled():
            raise
        members.check_open()  # a closed channel cancels what is under way
        raise _Broken(_Ended("the watch was cancelled")) from None
    finally:
        call.cancel()
        if reading is not None:
            reading.cancel()
            await asyncio.wait({reading})


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
