"""What the embedded store holds in memory, and what a batch of writes would make of it. Pure: no disk, no clock, no tasks.

A write is staged in a `Batch` first, which knows what the database has to do. Only when that is durable is the batch adopted, so readers
never see what is not.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from control_plane.store.contract import (
    Compacted,
    Compare,
    Delete,
    Event,
    EventType,
    KeyValue,
    LeaseNotFound,
    Put,
    TxnResult,
)

MAX_HISTORY_EVENTS: Final = 10_000
"""Events kept for watches that begin in the past…"""
MAX_HISTORY_BYTES: Final = 64 * 1024 * 1024
"""… and their bytes."""

Statement = tuple[str, tuple[object, ...]]
Revision = tuple[Event, ...]
"""All events of one revision, at least one."""


@dataclass(slots=True)
class Lease:
    """A lease that has not ended."""

    ttl_s: int
    deadline: float
    """On the store's clock."""
    keys: set[bytes] = field(default_factory=set)


class History:
    """The latest revisions, without a gap."""

    def __init__(self, compacted: int) -> None:
        self.compacted = compacted
        """The last revision that is gone."""
        self._revisions: deque[Revision] = deque()
        self._events = 0
        self._bytes = 0

    def append(self, revision: Revision) -> None:
        """Add the next revision; the oldest ones go when there are too many."""
        assert revision[0].revision == self.compacted + len(self._revisions) + 1
        self._revisions.append(revision)
        self._count(revision, 1)
        while self._events > MAX_HISTORY_EVENTS or self._bytes > MAX_HISTORY_BYTES:
            self._count(self._revisions.popleft(), -1)
            self.compacted += 1

    def _count(self, revision: Revision, sign: int) -> None:
        self._events += sign * len(revision)
        self._bytes += sign * sum(len(event.key) + len(event.value) for event in revision)

    def since(self, first: int) -> list[Revision]:
        """All from a revision on. Raises Compacted if it is gone."""
        if first <= self.compacted:
            raise Compacted(self.compacted)
        count = self.compacted + len(self._revisions) + 1 - first
        return [self._revisions[-back] for back in range(count, 0, -1)]

    def forget(self, last: int) -> None:
        """Forget all up to a revision."""
        while self._revisions and self.compacted < last:
            self._count(self._revisions.popleft(), -1)
            self.compacted += 1


@dataclass(slots=True)
class Content:
    """The store at one revision."""

    revision: int
    next_lease: int
    history: History
    data: dict[bytes, KeyValue] = field(default_factory=dict)
    leases: dict[int, Lease] = field(default_factory=dict)

    def adopt(self, batch: "Batch", now: float) -> None:
        """Make what has become durable visible; new leases begin now."""
        for lease_id, ttl_s in batch.granted.items():
            self.leases[lease_id] = Lease(ttl_s, now + ttl_s)
        for key, item in batch.changed.items():
            old = self.data.pop(key, None)
            if old is not None and old.lease in self.leases:
                self.leases[old.lease].keys.discard(key)
            if item is not None:
                self.data[key] = item
                if item.lease in self.leases:
                    self.leases[item.lease].keys.add(key)
        for lease_id in batch.ended:
            self.leases.pop(lease_id, None)
        for revision in batch.revisions:
            self.history.append(revision)
        self.revision = batch.revision
        self.next_lease = batch.next_lease


class Batch:
    """Writes one after the other, each on top of the ones before; nothing of it is visible."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self.revision = content.revision
        self.next_lease = content.next_lease
        self.changed: dict[bytes, KeyValue | None] = {}
        """None: deleted."""
        self.granted: dict[int, int] = {}
        self.ended: set[int] = set()
        self.revisions: list[Revision] = []
        self._statements: list[Statement] = []

    def statements(self) -> list[Statement]:
        """What makes it durable, all or nothing; empty if the batch changes nothing."""
        if not self._statements:
            return []
        return [
            *self._statements,
            ("UPDATE meta SET value=? WHERE name='revision'", (self.revision,)),
            ("UPDATE meta SET value=? WHERE name='next_lease'", (self.next_lease,)),
        ]

    def _get(self, key: bytes) -> KeyValue | None:
        return self.changed[key] if key in self.changed else self._content.data.get(key)

    def has_lease(self, lease_id: int) -> bool:
        """Whether a key can be put under it."""
        return lease_id not in self.ended and (lease_id in self._content.leases or lease_id in self.granted)

    def txn(self, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> TxnResult:
        """See `Store.txn`; the limits have been checked."""
        for compare in compares:
            found = self._get(compare.key)
            if (found.mod_revision if found else 0) != compare.mod_revision:
                return TxnResult(False, self.revision)
        for op in ops:
            if isinstance(op, Put) and op.lease and not self.has_lease(op.lease):
                raise LeaseNotFound("the lease has ended or never was")
        self._change(ops)
        return TxnResult(True, self.revision)

    def grant(self, ttl_s: int) -> int:
        """A new lease."""
        lease_id, self.next_lease = self.next_lease, self.next_lease + 1
        self.granted[lease_id] = ttl_s
        self._statements.append(("INSERT INTO lease VALUES (?,?)", (lease_id, ttl_s)))
        return lease_id

    def end(self, lease_id: int) -> None:
        """End a lease and delete the keys that are under it now, all at one revision."""
        if not self.has_lease(lease_id):
            return
        held = set(self._content.leases[lease_id].keys) if lease_id in self._content.leases else set[bytes]()
        held.update(self.changed)
        of_lease = [key for key in sorted(held) if (item := self._get(key)) is not None and item.lease == lease_id]
        self.ended.add(lease_id)
        self._statements.append(("DELETE FROM lease WHERE id=?", (lease_id,)))
        self._change([Delete(key) for key in of_lease])

    def _change(self, ops: Sequence[Put | Delete]) -> None:
        revision = self.revision + 1
        events: list[Event] = []
        for op in ops:
            old = self._get(op.key)
            if isinstance(op, Put):
                created = old.create_revision if old else revision
                self.changed[op.key] = KeyValue(op.key, op.value, created, revision, op.lease)
                row = (op.key, op.value, created, revision, op.lease)
                self._statements.append(("INSERT OR REPLACE INTO kv VALUES (?,?,?,?,?)", row))
                events.append(Event(EventType.PUT, op.key, op.value, revision, op.lease))
            elif old is not None:
                self.changed[op.key] = None
                self._statements.append(("DELETE FROM kv WHERE key=?", (op.key,)))
                events.append(Event(EventType.DELETE, op.key, b"", revision))
        if events:
            self.revision = revision
            self.revisions.append(tuple(events))
