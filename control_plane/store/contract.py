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
MIN_LEASE_TTL_S = 5


class StoreError(Exception):
    """The store could not do what was asked; the text says why, in one sentence."""


class StoreUnavailable(StoreError):
    """The store cannot be reached, or has no quorum. A write may or may not have happened."""


class StoreLocked(StoreError):
    """Another process has the embedded store open."""


class LeaseNotFound(StoreError):
    """The lease has ended or never was."""


class Compacted(StoreError):
    """History before `revision` is gone: list again, then watch from that list's revision + 1."""

    def __init__(self, revision: int) -> None:
        super().__init__(f"history before revision {revision} is compacted; list again")
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


class Store(Protocol):
    """One linearizable key-value store. All methods may raise StoreUnavailable."""

    async def get(self, key: bytes) -> KeyValue | None: ...

    async def range(self, prefix: bytes) -> Listing: ...

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> TxnResult:
        """Do all `ops` at one new revision if all `compares` hold, else nothing.

        Deleting what is not there is no error; if no op changes anything the revision stays.
        Raises ValueError over the limits or for one key in two ops, LeaseNotFound for an unknown lease.
        """
        ...

    async def grant(self, ttl_s: int) -> int:
        """A new lease's id. It ends `ttl_s` after the last keep-alive; raises ValueError below MIN_LEASE_TTL_S."""
        ...

    async def keep_alive(self, lease: int) -> int:
        """Renew once; returns the TTL in seconds, raises LeaseNotFound."""
        ...

    async def revoke(self, lease: int) -> None:
        """End the lease and delete its keys now; no error if it is gone."""
        ...

    def watch(self, prefix: bytes, start_revision: int) -> AsyncGenerator[tuple[Event, ...], None]:
        """Every event from `start_revision` on, in order, none twice; a tuple holds whole revisions.

        Survives reconnects. Raises Compacted if the history from there on is gone. Ends when its consumer closes it.
        """
        ...

    async def close(self) -> None: ...
