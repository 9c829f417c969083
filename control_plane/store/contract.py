"""What the control plane asks of a store: keys, one global revision, leases, watches.

Two implementations stand behind it: `embedded` (SQLite) and `etcd`. One test suite runs on both,
so a caller may rely on everything that is written here and on nothing else. The store knows bytes,
revisions and leases, and nothing of meshes.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

MAX_KEY_BYTES = 1024
MAX_VALUE_BYTES = 1_000_000
"""Below etcd's 1.5 MiB limit per request, so that both stores take the same values."""
MAX_TXN_OPS = 128
"""etcd's default `max-txn-ops`; the embedded store has the same limit."""
MAX_TXN_BYTES = 1_500_000
"""Keys and values of one transaction together: etcd's 1.5 MiB, less what it wraps them in."""
MIN_LEASE_TTL_S = 5
"""etcd grants more than was asked for when that is little; from 5 s on it does not."""
MAX_LEASE_TTL_S = 86_400


class StoreError(Exception):
    """The store could not do what was asked; the text says why, in one sentence."""


class BadTarget(StoreError):
    """What was given to open says no store; the text names what is wrong with it."""


class StoreUnavailable(StoreError):
    """The store cannot be reached, or has no quorum. A write may or may not have happened."""


class StoreFull(StoreError):
    """The store has no room left. The write was not done; reads go on."""


class StoreLocked(StoreError):
    """Another process has the embedded store open."""


class LeaseNotFound(StoreError):
    """The lease has ended or never was."""


class OverLimit(ValueError):
    """A transaction that no store takes; nothing was done."""


class Compacted(StoreError):
    """History up to `revision` is gone: list again, then watch from that list's revision + 1."""

    def __init__(self, revision: int) -> None:
        super().__init__(f"history up to revision {revision} is compacted; list again")
        self.revision = revision


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A stored value and where it stands in history."""

    key: bytes
    value: bytes
    create_revision: int
    """Revision at which the key came to be (again)."""
    mod_revision: int
    """Revision of the last put."""
    lease: int = 0
    """The lease that the key ends with; 0 if none."""


@dataclass(frozen=True, slots=True)
class Listing:
    """All keys of a prefix at one revision, in order of key."""

    items: tuple[KeyValue, ...]
    revision: int
    """The store's revision of this reading: watch from `revision + 1` to miss nothing."""


@dataclass(frozen=True, slots=True)
class Compare:
    """True if the key's `mod_revision` is this; 0 means that the key is not there."""

    key: bytes
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Put:
    key: bytes
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    key: bytes


@dataclass(frozen=True, slots=True)
class TxnResult:
    succeeded: bool
    """False: a comparison failed and nothing was written."""
    revision: int
    """The store's revision after the transaction."""


class EventType(Enum):
    PUT = "put"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one key. A lease that ends gives a DELETE for each of its keys."""

    type: EventType
    key: bytes
    value: bytes
    """Empty for DELETE."""
    revision: int
    lease: int = 0


def check_txn(compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> None:
    """Raises OverLimit for what no store takes in one transaction."""
    if max(len(ops), len(compares)) > MAX_TXN_OPS:
        what = f"{len(ops)} operations" if len(ops) > MAX_TXN_OPS else f"{len(compares)} comparisons"
        raise OverLimit(f"{what} in one transaction; at most {MAX_TXN_OPS} are taken")
    if len({op.key for op in ops}) != len(ops):
        raise OverLimit("one key in two operations of a transaction")
    total = 0
    for part in (*compares, *ops):
        if not 0 < len(part.key) <= MAX_KEY_BYTES:
            raise OverLimit(f"a key of {len(part.key)} bytes; 1 to {MAX_KEY_BYTES} are taken")
        total += len(part.key)
        if isinstance(part, Put):
            if len(part.value) > MAX_VALUE_BYTES:
                raise OverLimit(f"a value of {len(part.value)} bytes; at most {MAX_VALUE_BYTES} are taken")
            total += len(part.value)
    if total > MAX_TXN_BYTES:
        raise OverLimit(f"{total} bytes in one transaction; at most {MAX_TXN_BYTES} are taken")


def check_ttl(ttl_s: int) -> None:
    """Raises ValueError for a time to live that no store grants."""
    if not MIN_LEASE_TTL_S <= ttl_s <= MAX_LEASE_TTL_S:
        raise ValueError(f"a lease of {ttl_s} s; {MIN_LEASE_TTL_S} to {MAX_LEASE_TTL_S} s are granted")


def check_start(start_revision: int) -> None:
    """Raises ValueError for a revision that no watch can begin with."""
    if start_revision < 1:
        raise ValueError(f"a watch from revision {start_revision}; history begins at 1")


class Store(Protocol):
    """One linearizable key-value store.

    All methods may raise StoreUnavailable, and do so once the store is closed; writes may raise StoreFull.
    """

    async def get(self, key: bytes) -> KeyValue | None: ...

    async def range(self, prefix: bytes) -> Listing:
        """All keys that begin with `prefix`; the empty prefix means all."""
        ...

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> TxnResult:
        """Do all `ops` at one new revision if all `compares` hold, else nothing.

        Deleting what is not there is no error; if no op changes anything the revision stays.
        A put without a lease takes the key off the lease that it had.
        Raises OverLimit over the limits and for one key in two ops, LeaseNotFound for an unknown lease.
        A transaction that compares a key and puts it is carried out at most once and survives the loss of a
        member; after StoreUnavailable any other may have been done, or may still be.
        """
        ...

    async def grant(self, ttl_s: int) -> int:
        """A new lease's id, never 0. It ends `ttl_s` after the last keep-alive, or somewhat later.

        Raises ValueError outside MIN_LEASE_TTL_S to MAX_LEASE_TTL_S.
        """
        ...

    async def keep_alive(self, lease: int) -> int:
        """Renew once; returns the TTL in seconds, raises LeaseNotFound."""
        ...

    async def revoke(self, lease: int) -> None:
        """End the lease and delete its keys now; no error if it is gone."""
        ...

    def watch(self, prefix: bytes, start_revision: int) -> AsyncGenerator[tuple[Event, ...], None]:
        """Every event from `start_revision` on, in order, none twice; a tuple holds whole revisions.

        Survives reconnects; raises StoreUnavailable when the store stays away, so that the consumer knows that it is
        stale: a new watch from the last event's revision + 1 then misses nothing. Raises Compacted if the history
        from there on is gone, ValueError below revision 1. Ends when its consumer closes it.
        """
        ...

    async def compact(self, revision: int | None = None) -> None:
        """Forget history up to a revision, the present one if none is given: watches can begin only after it.

        No error if it is forgotten already; a revision that is yet to come means the present one.
        """
        ...

    async def close(self) -> None:
        """Let go of everything; calls and watches under way end with StoreUnavailable. Closing twice is no error."""
        ...
