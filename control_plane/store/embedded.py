"""The store of a laptop: a directory with one SQLite file in WAL mode, open in one process.

Theory of operation: the whole content is in memory; SQLite makes it durable. Writes queue up, one writer takes all that wait, checks
them one after the other against the content, commits them in one SQLite transaction in a thread of its own (`synchronous=FULL`: what
was acknowledged survives `kill -9` and a power cut), and only then shows them to readers and watchers. So readers never see what is not
durable, and the event loop never waits for the disk.

Watches live as long as the process, so history is kept in memory only; a watch from before the start gets `Compacted`.
Keep-alives are not written: on opening, every lease gets its full time and a grace period on top, so that a restart of the
control plane does not empty the mesh.
"""

import asyncio
import fcntl
import os
import sqlite3
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import IO, Final

from control_plane.store.contract import (
    MAX_KEY_BYTES,
    MAX_TXN_OPS,
    MAX_VALUE_BYTES,
    MIN_LEASE_TTL_S,
    Compacted,
    Compare,
    Delete,
    Event,
    EventType,
    KeyValue,
    LeaseNotFound,
    Listing,
    Put,
    StoreError,
    StoreLocked,
    StoreUnavailable,
    TxnResult,
)

FORMAT: Final = 1
"""Version of the file's layout; a file with a higher one is refused and not touched."""
MAX_HISTORY: Final = 10_000
"""Events kept for watches that begin in the past."""
RESTART_GRACE_S: Final = 10.0
"""Leases get so long on top of their TTL when the store is opened."""
FILE: Final = "remora.sqlite3"

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS kv (key BLOB PRIMARY KEY, value BLOB NOT NULL, created INTEGER NOT NULL,
  modified INTEGER NOT NULL, lease INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS lease (id INTEGER PRIMARY KEY, ttl INTEGER NOT NULL);
"""

Statement = tuple[str, tuple[object, ...]]


@dataclass(slots=True)
class _Lease:
    ttl_s: int
    deadline: float
    keys: set[bytes] = field(default_factory=set)


@dataclass(slots=True)
class _Write:
    """A write that waits for its turn."""

    compares: Sequence[Compare]
    ops: Sequence[Put | Delete]
    done: asyncio.Future[TxnResult]


class EmbeddedStore:
    """See the module. `open` makes one; `Store` in `contract` says what it does."""

    def __init__(self, directory: Path, clock: Callable[[], float]) -> None:
        self._directory = directory
        self._clock = clock
        self._data: dict[bytes, KeyValue] = {}
        self._leases: dict[int, _Lease] = {}
        self._next_lease = 1
        self._revision = 0
        self._compacted = 0
        self._history: deque[tuple[Event, ...]] = deque()
        self._history_size = 0
        self._changed = asyncio.Condition()
        self._writes: asyncio.Queue[_Write] = asyncio.Queue()
        self._lease_changed = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "store")
        self._db: sqlite3.Connection | None = None
        self._lock: IO[str] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._is_closed = False

    @classmethod
    async def open(cls, directory: Path | str, clock: Callable[[], float] = monotonic) -> "EmbeddedStore":
        """Open or create. Raises StoreLocked if another process has it, StoreError if it cannot be used."""
        store = cls(Path(directory), clock)
        try:
            await asyncio.get_running_loop().run_in_executor(store._thread, store._load)
        except (OSError, sqlite3.Error) as error:
            store._release()
            raise StoreError(f"store {directory}: {str(error).lower()}") from None
        except StoreError:
            store._release()
            raise
        store._tasks = [asyncio.create_task(store._write_forever()), asyncio.create_task(store._expire_forever())]
        return store

    def _load(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = open(self._directory / "lock", "a+", encoding="ascii")  # noqa: SIM115 - held as long as the store is open
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            lock.close()
            raise StoreLocked(
                f"store {self._directory} is open in another process (pid {owner}); stop it or use another directory"
            ) from None
        self._lock = lock
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._db = db = sqlite3.connect(self._directory / FILE, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        has_meta = db.execute("SELECT count(*) FROM sqlite_master WHERE name='meta'").fetchone()[0]
        meta = dict(db.execute("SELECT name, value FROM meta")) if has_meta else {}
        if meta.get("format", FORMAT) > FORMAT:
            raise StoreError(
                f"store {self._directory} was written by a newer release (format {meta['format']}, this one reads {FORMAT}); "
                "nothing was changed: use the newer release or another directory"
            )
        db.executescript(_SCHEMA)
        db.execute("INSERT OR IGNORE INTO meta VALUES ('format', ?), ('revision', 0), ('next_lease', 1)", (FORMAT,))
        meta = dict(db.execute("SELECT name, value FROM meta"))
        self._revision = self._compacted = meta["revision"]
        self._next_lease = meta["next_lease"]
        now = self._clock()
        for lease_id, ttl in db.execute("SELECT id, ttl FROM lease"):
            self._leases[lease_id] = _Lease(ttl, now + ttl + RESTART_GRACE_S)
        for key, value, created, modified, lease_id in db.execute(
            "SELECT key, value, created, modified, lease FROM kv"
        ):
            self._data[key] = KeyValue(key, value, created, modified, lease_id)
            if lease_id in self._leases:
                self._leases[lease_id].keys.add(key)

    # -- reading ------------------------------------------------------------------------------------

    async def get(self, key: bytes) -> KeyValue | None:
        self._check_open()
        return self._data.get(key)

    async def range(self, prefix: bytes) -> Listing:
        self._check_open()
        items = sorted((item for key, item in self._data.items() if key.startswith(prefix)), key=lambda item: item.key)
        return Listing(tuple(items), self._revision)

    async def watch(self, prefix: bytes, start_revision: int) -> AsyncGenerator[tuple[Event, ...], None]:
        self._check_open()
        next_revision = start_revision
        while True:
            if next_revision <= self._compacted:
                raise Compacted(self._compacted)
            for batch in [batch for batch in self._history if batch[0].revision >= next_revision]:
                next_revision = batch[0].revision + 1
                events = tuple(event for event in batch if event.key.startswith(prefix))
                if events:
                    yield events
            async with self._changed:
                while self._revision < next_revision:
                    self._check_open()
                    await self._changed.wait()

    # -- writing ------------------------------------------------------------------------------------

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> TxnResult:
        self._check_open()
        if len(ops) > MAX_TXN_OPS or len(compares) > MAX_TXN_OPS:
            raise ValueError(f"{len(ops)} operations in one transaction; at most {MAX_TXN_OPS} are taken")
        keys = [op.key for op in ops]
        if len(set(keys)) != len(keys):
            raise ValueError("one key in two operations of a transaction")
        for op in ops:
            if not 0 < len(op.key) <= MAX_KEY_BYTES:
                raise ValueError(f"a key of {len(op.key)} bytes; 1 to {MAX_KEY_BYTES} are taken")
            if isinstance(op, Put) and len(op.value) > MAX_VALUE_BYTES:
                raise ValueError(f"a value of {len(op.value)} bytes; at most {MAX_VALUE_BYTES} are taken")
        done: asyncio.Future[TxnResult] = asyncio.get_running_loop().create_future()
        self._writes.put_nowait(_Write(compares, ops, done))
        return await done

    async def _write_forever(self) -> None:
        """The one writer: takes all that wait, commits them together."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._writes.get()]
            while not self._writes.empty():
                batch.append(self._writes.get_nowait())
            staged: dict[bytes, KeyValue | None] = {}
            statements: list[Statement] = []
            events: list[tuple[Event, ...]] = []
            results: list[TxnResult | StoreError] = []
            revision = self._revision
            for write in batch:
                try:
                    changed = self._stage(write, staged, revision + 1, statements)
                except LeaseNotFound as error:
                    results.append(error)
                    continue
                if changed:
                    revision += 1
                    events.append(changed)
                results.append(TxnResult(changed is not None, revision))
            if events:
                statements.append(("UPDATE meta SET value=? WHERE name='revision'", (revision,)))
                try:
                    await loop.run_in_executor(self._thread, self._commit, statements)
                except sqlite3.Error as error:
                    for write in batch:
                        _settle(write.done, StoreUnavailable(f"store {self._directory}: {error}"))
                    continue
                self._show(staged, events, revision)
            for write, result in zip(batch, results, strict=True):
                _settle(write.done, result)
            if events:
                async with self._changed:
                    self._changed.notify_all()

    def _stage(
        self, write: _Write, staged: dict[bytes, KeyValue | None], revision: int, statements: list[Statement]
    ) -> tuple[Event, ...] | None:
        """The events of a write, () if it changes nothing, None if a comparison failed."""

        def current(key: bytes) -> KeyValue | None:
            return staged[key] if key in staged else self._data.get(key)

        for compare in write.compares:
            found = current(compare.key)
            if (found.mod_revision if found else 0) != compare.mod_revision:
                return None
        for op in write.ops:
            if isinstance(op, Put) and op.lease and op.lease not in self._leases:
                raise LeaseNotFound(f"lease {op.lease} has ended")
        events: list[Event] = []
        for op in write.ops:
            old = current(op.key)
            if isinstance(op, Put):
                created = old.create_revision if old else revision
                staged[op.key] = KeyValue(op.key, op.value, created, revision, op.lease)
                row = (op.key, op.value, created, revision, op.lease)
                statements.append(("INSERT OR REPLACE INTO kv VALUES (?,?,?,?,?)", row))
                events.append(Event(EventType.PUT, op.key, op.value, revision, op.lease))
            elif old is not None:
                staged[op.key] = None
                statements.append(("DELETE FROM kv WHERE key=?", (op.key,)))
                events.append(Event(EventType.DELETE, op.key, b"", revision))
        return tuple(events)

    def _commit(self, statements: Sequence[Statement]) -> None:
        """In the store's thread: all or nothing."""
        assert self._db is not None
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for sql, row in statements:
                self._db.execute(sql, row)
            self._db.execute("COMMIT")
        except sqlite3.Error:
            self._db.execute("ROLLBACK")
            raise

    def _show(self, staged: dict[bytes, KeyValue | None], events: list[tuple[Event, ...]], revision: int) -> None:
        """Make what is durable visible."""
        for key, item in staged.items():
            old = self._data.pop(key, None)
            if old is not None and old.lease in self._leases:
                self._leases[old.lease].keys.discard(key)
            if item is not None:
                self._data[key] = item
                if item.lease in self._leases:
                    self._leases[item.lease].keys.add(key)
        self._revision = revision
        self._history.extend(events)
        self._history_size += sum(len(batch) for batch in events)
        while self._history_size > MAX_HISTORY:
            batch = self._history.popleft()
            self._history_size -= len(batch)
            self._compacted = batch[0].revision

    async def compact(self) -> None:
        """Forget history: watches can begin only after the present revision."""
        self._history.clear()
        self._history_size = 0
        self._compacted = self._revision

    # -- leases -------------------------------------------------------------------------------------

    async def grant(self, ttl_s: int) -> int:
        self._check_open()
        if ttl_s < MIN_LEASE_TTL_S:
            raise ValueError(f"a lease of {ttl_s} s; at least {MIN_LEASE_TTL_S} s are needed")
        lease_id, self._next_lease = self._next_lease, self._next_lease + 1
        await self._run(
            [
                ("INSERT INTO lease VALUES (?,?)", (lease_id, ttl_s)),
                ("UPDATE meta SET value=? WHERE name='next_lease'", (lease_id + 1,)),
            ]
        )
        self._leases[lease_id] = _Lease(ttl_s, self._clock() + ttl_s)
        self._lease_changed.set()
        return lease_id

    async def keep_alive(self, lease: int) -> int:
        self._check_open()
        found = self._leases.get(lease)
        if found is None:
            raise LeaseNotFound(f"lease {lease} has ended")
        found.deadline = self._clock() + found.ttl_s
        return found.ttl_s

    async def revoke(self, lease: int) -> None:
        self._check_open()
        found = self._leases.get(lease)
        if found is None:
            return
        keys = sorted(found.keys)
        for at in range(0, len(keys), MAX_TXN_OPS):
            await self.txn((), [Delete(key) for key in keys[at : at + MAX_TXN_OPS]])
        self._leases.pop(lease, None)
        await self._run([("DELETE FROM lease WHERE id=?", (lease,))])

    async def expire_due(self) -> float | None:
        """End the leases whose time is over; seconds until the next may be, None if there is none."""
        now = self._clock()
        for lease_id in [lease_id for lease_id, lease in self._leases.items() if lease.deadline <= now]:
            await self.revoke(lease_id)
        return min((lease.deadline for lease in self._leases.values()), default=now) - now if self._leases else None

    async def _expire_forever(self) -> None:
        while True:
            wait_s = await self.expire_due()
            self._lease_changed.clear()
            try:
                async with asyncio.timeout(wait_s if wait_s is None else max(wait_s, 0.01)):
                    await self._lease_changed.wait()
            except TimeoutError:
                continue

    # -- the end ------------------------------------------------------------------------------------

    async def _run(self, statements: Sequence[Statement]) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._commit, statements)
        except sqlite3.Error as error:
            raise StoreUnavailable(f"store {self._directory}: {error}") from None

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoreUnavailable(f"store {self._directory} is closed")

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while not self._writes.empty():
            _settle(self._writes.get_nowait().done, StoreUnavailable("the store was closed"))
        async with self._changed:
            self._changed.notify_all()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._release)
        self._thread.shutdown()

    def _release(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _settle(future: asyncio.Future[TxnResult], result: TxnResult | StoreError) -> None:
    if future.done():
        return  # its caller was cancelled; the write stands
    if isinstance(result, StoreError):
        future.set_exception(result)
    else:
        future.set_result(result)
