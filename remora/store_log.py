"""The transaction coordinator's log in the mesh's store: embedded for one replica, etcd for several.

| key | value |
|---|---|
| `/remora-tx/open/GID` | a record that has not ended |
| `/remora-tx/over/GID` | one that has |
| `/remora-tx/session/SESSION` | a replica's sign of life, under a lease: the store ends it, too, if nobody else notices |

Theory of operation. A write compares the revision at which its key was last put with the one at which this replica last saw it, so nobody writes
over what he has not seen; and it goes through only if the token that is there is the writer's. A record that ends moves from `open` to `over` in
one transaction. A write whose outcome is in doubt is done again by the coordinator; then the key is read, and if it holds what was to be written,
it was written.
"""

import json
from collections.abc import Awaitable, Sequence
from typing import Any, Final, TypeVar

from apps.transactions.coordinator.log import Fenced, LogUnavailable, Record, SessionLost
from apps.transactions.coordinator.states import ENDS, State
from apps.transactions.seam import crossing
from control_plane.store.contract import (
    MIN_LEASE_TTL_S,
    Compare,
    Delete,
    KeyValue,
    LeaseNotFound,
    Put,
    Store,
    StoreError,
    TxnResult,
)

T = TypeVar("T")
PREFIX: Final = b"/remora-tx/"
OPEN: Final = PREFIX + b"open/"
OVER: Final = PREFIX + b"over/"
SESSION: Final = PREFIX + b"session/"
SESSION_TTL_S: Final = 2 * MIN_LEASE_TTL_S
"""Longer than replicas need to notice each other's death; this is for when all of them die."""
MAX_CONTENDED: Final = 16
"""Tries of one write against others of the same key."""


class StoreLog:
    """See `apps.transactions.coordinator.log.Log`. Use it within one event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: dict[str, tuple[int, Record]] = {}
        """Open records that this replica wrote: revision and content of its last write."""
        self._leases: dict[str, int] = {}
        self._compactable = 0
        self._is_closed = False

    # Writes.

    async def create(self, record: Record) -> bool:
        key = _key(record)
        other = (OVER if key.startswith(OPEN) else OPEN) + record.gid.encode()
        compares = [Compare(key, 0), Compare(other, 0)]
        with crossing("write", f"log create {record.state}"):
            done = await self._txn(compares, [Put(key, _pack(record))])
        if done.succeeded:
            self._remember(record, done.revision)
        elif await self.read(record.gid) == record:
            return True  # this very write was done before, though nobody could tell
        return done.succeeded

    async def write(self, record: Record, token: int) -> None:
        for _ in range(MAX_CONTENDED):
            revision, before = self._seen.get(record.gid) or await self._look(record.gid)
            if before == record:
                return
            if before is None or before.token != token:
                break
            key, old = _key(record), _key(before)
            ops: list[Put | Delete] = [Put(key, _pack(record))]
            if old != key:
                ops.append(Delete(old))
            with crossing("write", f"log update {record.state}"):
                done = await self._txn([Compare(old, revision)], ops)
            self._seen.pop(record.gid, None)
            if done.succeeded:
                self._remember(record, done.revision)
                return
        self._seen.pop(record.gid, None)
        raise Fenced(f"{record.gid} has changed hands: its token is no longer {token}")

    def _remember(self, record: Record, revision: int) -> None:
        if record.state not in ENDS:
            self._seen[record.gid] = revision, record

    async def forget(self, before: float, limit: int) -> int:
        old = [each for _, each in await self._range(OVER) if each.created_at < before][:limit]
        for each in old:
            await self._txn([], [Delete(_key(each))])
        # History is of no use here; what was there a minute ago is surely read by nobody any more.
        if self._compactable:
            await self._guarded(self._store.compact(self._compactable))
        self._compactable = (await self._guarded(self._store.range(SESSION))).revision
        return len(old)

    # Sessions.

    async def open_session(self, session: str, name: str) -> None:
        older = [each.key for each in await self._sessions() if _fields(each)["name"] == name]
        lease = await self._guarded(self._store.grant(SESSION_TTL_S))
        self._leases[session] = lease
        ops: list[Put | Delete] = [Delete(key) for key in older]
        ops.append(Put(SESSION + session.encode(), json.dumps({"name": name, "beat": 0}).encode(), lease))
        with crossing("write", "log session open"):
            await self._txn([], ops)

    async def beat(self, session: str) -> None:
        key = SESSION + session.encode()
        found = await self._guarded(self._store.get(key))
        lease = self._leases.get(session, 0)
        if found is None or not lease:
            raise SessionLost(f"{session} was ended by another replica")
        fields = _fields(found)
        fields["beat"] += 1
        try:
            await self._guarded(self._store.keep_alive(lease))
            done = await self._txn([Compare(key, found.mod_revision)], [Put(key, json.dumps(fields).encode(), lease)])
        except LeaseNotFound:
            raise SessionLost(f"{session} was ended by the store, which had no sign of life") from None
        if not done.succeeded:
            raise SessionLost(f"{session} was ended by another replica")

    async def sessions(self) -> dict[str, int]:
        return {_name(each): _fields(each)["beat"] for each in await self._sessions()}

    async def end_session(self, session: str, beat: int | None) -> None:
        key = SESSION + session.encode()
        found = await self._guarded(self._store.get(key))
        if found is None or (beat is not None and _fields(found)["beat"] != beat):
            return
        await self._txn([Compare(key, found.mod_revision)], [Delete(key)])

    async def _sessions(self) -> Sequence[KeyValue]:
        return (await self._guarded(self._store.range(SESSION))).items

    # Reads.

    async def read(self, gid: str) -> Record | None:
        return (await self._look(gid))[1]

    async def _look(self, gid: str) -> tuple[int, Record | None]:
        for prefix in (OPEN, OVER):  # in the order in which a record moves
            found = await self._guarded(self._store.get(prefix + gid.encode()))
            if found is not None:
                return found.mod_revision, _unpack(gid, found.value)
        return 0, None

    async def orphans(self, limit: int) -> Sequence[Record]:
        alive = {_name(each) for each in await self._sessions()}
        found = [each for _, each in await self._range(OPEN) if each.owner not in alive]
        return sorted(found, key=lambda each: each.created_at)[:limit]

    async def page(self, states: Sequence[State], only_dead_letters: bool, after: str, limit: int) -> Sequence[Record]:
        found = [
            each
            for prefix in (OPEN, OVER)
            for gid, each in await self._range(prefix)
            if gid > after and (not states or each.state in states) and (each.is_dead_letter or not only_dead_letters)
        ]
        newest = {each.gid: each for each in found}  # one that moved in between is there twice
        return sorted(newest.values(), key=lambda each: each.gid)[:limit]

    async def count_dead_letters(self) -> int:
        return sum(each.is_dead_letter for _, each in await self._range(OPEN))

    async def _range(self, prefix: bytes) -> list[tuple[str, Record]]:
        listing = await self._guarded(self._store.range(prefix))
        gids = [(each.key.removeprefix(prefix).decode(), each.value) for each in listing.items]
        return [(gid, _unpack(gid, value)) for gid, value in gids]

    async def close(self) -> None:
        self._is_closed = True
        await self._store.close()

    async def _txn(self, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> TxnResult:
        return await self._guarded(self._store.txn(compares, ops))

    async def _guarded(self, work: Awaitable[T]) -> T:
        try:
            return await work
        except LeaseNotFound:
            raise
        except StoreError as error:
            text = "the log is closed" if self._is_closed else f"the log cannot be written or read: {error}"
            raise LogUnavailable(text) from error


def _key(record: Record) -> bytes:
    return (OVER if record.state in ENDS else OPEN) + record.gid.encode()


def _name(item: KeyValue) -> str:
    return item.key.removeprefix(SESSION).decode()


def _fields(item: KeyValue) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(item.value)
    return fields


def _pack(record: Record) -> bytes:
    """A line of JSON that the log looks into, then the transaction, which it does not."""
    head = [record.state.value, record.is_dead_letter, record.owner, record.token, record.created_at]
    return json.dumps(head).encode() + b"\n" + record.value


def _unpack(gid: str, value: bytes) -> Record:
    head, _, body = value.partition(b"\n")
    state, is_dead_letter, owner, token, created_at = json.loads(head)
    return Record(gid, State(state), is_dead_letter, owner, token, created_at, body)
