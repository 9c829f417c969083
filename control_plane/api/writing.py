"""Changes of resources: each request is one transaction, and each change keeps what it replaced (`registry.history`)."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from time import time_ns
from typing import Final, TypeVar

import grpc

from control_plane.api.refused import Refused
from control_plane.registry import history, keys, state
from control_plane.resources import kinds
from control_plane.resources.check import check
from control_plane.resources.differ import changes
from control_plane.store.contract import MAX_TXN_BYTES, MAX_TXN_OPS, Compare, Delete, Put, Store, StoreFull
from proto.mesh.v1 import api_pb2, meta_pb2

log = logging.getLogger("remora.api")

T = TypeVar("T")
MAX_ATTEMPTS: Final = 5
"""Tries of a change that collides with another."""

Outcome = api_pb2.ApplyResponse


@dataclass(slots=True)
class Written:
    """What a change comes to; `revision` is 0 if nothing was stored."""

    applied: list[api_pb2.ApplyResponse.Applied] = field(default_factory=list)
    before: list[api_pb2.Resource | None] = field(default_factory=list)
    """As stored before, in the order of `applied`."""
    revision: int = 0
    to_revision: int = 0
    """Of a rollback."""


@dataclass(frozen=True, slots=True)
class Author:
    """Who asks for a change, and in which way."""

    by: str
    verb: meta_pb2.Change.Verb.ValueType = meta_pb2.Change.APPLIED
    to_revision: int = 0

    def change(self, number: int) -> meta_pb2.Change:
        """The change that he makes now."""
        change = meta_pb2.Change(number=number, by=self.by, verb=self.verb, to_revision=self.to_revision)
        change.time.FromNanoseconds(time_ns())
        return change


class Writer:
    """Changes what is stored; methods raise Refused and StoreError."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def apply(self, given: Sequence[api_pb2.Resource], author: Author, *, is_dry: bool) -> Written:
        """Store resources that have been checked, all or none."""
        return await _persistent(lambda: self._apply(given, author, is_dry=is_dry))

    async def delete(self, kind: str, namespace: str, name: str, by: str) -> int:
        """Remove a resource; the revision of that."""
        return await _persistent(lambda: self._delete(kind, namespace, name, Author(by, meta_pb2.Change.DELETED)))

    async def history(self, kind: str, namespace: str, name: str) -> list[api_pb2.Revision]:
        """The present and the past of a resource, newest first; empty if nothing is known of it."""
        present = await self._stored(keys.resource(kind, namespace, name))
        past = await self._store.range(keys.history(kind, namespace, name))
        return history.read(present, past.items)

    async def rollback(self, kind: str, namespace: str, name: str, revision: int, by: str, *, is_dry: bool) -> Written:
        """Apply what a resource was at a revision, or 0 for the newest that differs from the present."""
        return await _persistent(lambda: self._rollback(kind, namespace, name, revision, by, is_dry=is_dry))

    # -- one try each; None if somebody else changed a resource meanwhile ---------------------------------

    async def _apply(self, given: Sequence[api_pb2.Resource], author: Author, *, is_dry: bool) -> Written | None:
        written = Written()
        compares: list[Compare] = []
        ops: list[Put | Delete] = []
        for resource in given:
            old = await self._stored(state.key_of(resource))
            _check_version(resource, old)
            fresh, outcome = await self._merged(resource, old, author)
            compares.append(Compare(state.key_of(resource), old.metadata.resource_version if old is not None else 0))
            if outcome != Outcome.UNCHANGED:
                ops.append(Put(state.key_of(resource), state.stored(fresh)))
                if old is not None:
                    ops.append(history.replaced(old))
            differing = changes(old, fresh) if outcome != Outcome.UNCHANGED else ()
            written.applied.append(Outcome.Applied(resource=fresh, outcome=outcome, changes=differing))
            written.before.append(old)
        _check_size(ops)
        if ops and not is_dry:
            result = await self._store.txn(compares, ops)
            if not result.succeeded:
                return None
            written.revision = result.revision
            for applied in written.applied:
                if applied.outcome != Outcome.UNCHANGED:
                    applied.resource.metadata.resource_version = result.revision
        return written

    async def _merged(
        self, given: api_pb2.Resource, old: api_pb2.Resource | None, author: Author
    ) -> tuple[api_pb2.Resource, api_pb2.ApplyResponse.Outcome.ValueType]:
        """What to store, and what that means."""
        fresh = api_pb2.Resource()
        fresh.CopyFrom(given)
        fresh.ClearField("status")
        metadata = fresh.metadata
        metadata.namespace = metadata.namespace or kinds.DEFAULT_NAMESPACE
        metadata.resource_version = 0
        if old is None:
            past = history.read(None, (await self._store.range(history.prefix_of(fresh))).items)
            metadata.generation = 1
            metadata.creation_timestamp.FromNanoseconds(time_ns())
            metadata.last_change.CopyFrom(author.change(past[0].change.number + 1 if past else 1))
            return fresh, Outcome.CREATED
        metadata.generation = old.metadata.generation
        metadata.creation_timestamp.CopyFrom(old.metadata.creation_timestamp)
        metadata.ClearField("last_change")
        if old.metadata.HasField("last_change"):
            metadata.last_change.CopyFrom(old.metadata.last_change)
        if state.stored(fresh) == state.stored(old):
            return old, Outcome.UNCHANGED
        spec = str(fresh.WhichOneof("spec"))
        if getattr(fresh, spec) != getattr(old, spec):
            metadata.generation += 1
        metadata.last_change.CopyFrom(author.change(old.metadata.last_change.number + 1))
        return fresh, Outcome.CONFIGURED

    async def _delete(self, kind: str, namespace: str, name: str, author: Author) -> int | None:
        key = keys.resource(kind, namespace, name)
        item = await self._store.get(key)
        if item is None:
            raise Refused(grpc.StatusCode.NOT_FOUND, f"no {kind} {namespace}/{name}")
        compare = Compare(key, item.mod_revision)
        try:
            old = state.read(item)
        except state.Unreadable as error:
            log.warning("deleted without a past: %s", error)
            forgotten = history.forgotten(keys.history(kind, namespace, name))
            result = await self._store.txn([compare], [Delete(key), *forgotten])
            return result.revision if result.succeeded else None
        lease, is_kept = 0, False
        try:
            lease = await self._store.grant(history.KEPT_AFTER_DELETION_S)
            past = history.deleted(old, author.change(old.metadata.last_change.number + 1), lease)
            result = await self._store.txn([compare], [Delete(key), *past])
            is_kept = result.succeeded
        except StoreFull:
            # Deleting is the way out of that, so it must not need room.
            log.warning("%s is deleted without a past: the store is full", kinds.describe(old))
            result = await self._store.txn([compare], [Delete(key), *history.forgotten(history.prefix_of(old))])
        finally:
            if lease and not is_kept:
                await self._store.revoke(lease)
        return result.revision if result.succeeded else None

    async def _rollback(
        self, kind: str, namespace: str, name: str, revision: int, by: str, *, is_dry: bool
    ) -> Written | None:
        known = await self.history(kind, namespace, name)
        if not known:
            raise Refused(grpc.StatusCode.NOT_FOUND, f"no {kind} {namespace}/{name}, and no past of one")
        wanted = _chosen(f"{kind} {namespace}/{name}", known, revision)
        given = api_pb2.Resource()
        given.CopyFrom(wanted.resource)
        # The present one must still be there, unchanged; if it was deleted, nobody may have made it again.
        given.metadata.resource_version = known[0].revision if known[0].HasField("resource") else 0
        faults = check(given)
        if faults:
            lines = [
                f"{kinds.describe(given)} of revision {wanted.revision} is not taken any more: {each}"
                for each in faults
            ]
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "\n".join(lines))
        author = Author(by, meta_pb2.Change.ROLLED_BACK, wanted.revision)
        try:
            written = await self._apply([given], author, is_dry=is_dry)
        except _Changed:
            return None
        if written is not None:
            written.to_revision = wanted.revision
        return written

    async def _stored(self, key: bytes) -> api_pb2.Resource | None:
        """Raises Unreadable."""
        item = await self._store.get(key)
        return state.read(item) if item is not None else None


class _Changed(Refused):
    """A resource is not at the version that was asked for."""


async def _persistent(attempt: Callable[[], Awaitable[T | None]]) -> T:
    """Try until nobody else interferes. Raises Refused."""
    for _ in range(MAX_ATTEMPTS):
        result = await attempt()
        if result is not None:
            return result
        await asyncio.sleep(0)
    raise Refused(grpc.StatusCode.ABORTED, "others change the same resources all the time; try again")


def _check_version(given: api_pb2.Resource, old: api_pb2.Resource | None) -> None:
    """Optimistic concurrency. Raises Refused."""
    wanted = given.metadata.resource_version
    if wanted and wanted != (old.metadata.resource_version if old is not None else 0):
        there = f"is at resourceVersion {old.metadata.resource_version}" if old is not None else "is not there"
        text = f"{kinds.describe(given)} {there}, not at {wanted}: somebody else changed it; get it and apply again"
        raise _Changed(grpc.StatusCode.ABORTED, text)


def _check_size(ops: Iterable[Put | Delete]) -> None:
    """Each change of what is there takes its past with it, so fewer of them fit than of new ones. Raises Refused."""
    count, size = 0, 0
    for op in ops:
        count += 1
        size += len(op.key) + (len(op.value) if isinstance(op, Put) else 0)
    if count > MAX_TXN_OPS:
        text = f"{count} new and replaced specs in one request; at most {MAX_TXN_OPS} fit: apply in parts (RMR0001)"
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, text)
    if size > MAX_TXN_BYTES:
        text = f"{size} bytes of new and replaced specs in one request; at most {MAX_TXN_BYTES} fit: apply in parts (RMR0001)"
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, text)


def _chosen(name: str, known: Sequence[api_pb2.Revision], revision: int) -> api_pb2.Revision:
    """The revision to go back to. Raises Refused."""
    present, *past = known
    if not revision:
        for each in past:
            if each.HasField("resource") and (
                not present.HasField("resource") or changes(present.resource, each.resource)
            ):
                return each
        raise Refused(grpc.StatusCode.NOT_FOUND, f"{name} has no other spec to go back to")
    for each in known:
        if each.revision == revision:
            if not each.HasField("resource"):
                raise Refused(grpc.StatusCode.NOT_FOUND, f"revision {revision} deleted {name}; choose one before it")
            return each
    there = ", ".join(str(each.revision) for each in known if each.HasField("resource"))
    raise Refused(grpc.StatusCode.NOT_FOUND, f"revision {revision} of {name} is not known; known: {there}")
