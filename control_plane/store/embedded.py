"""The store of a laptop: a directory with one SQLite file in WAL mode, open in one process.

Theory of operation: the whole content is in memory; SQLite makes it durable. Writes queue up, one writer takes all that wait, stages
them one after the other on top of the content, commits them in one SQLite transaction in a thread of its own (`synchronous=FULL`: what
was acknowledged survives `kill -9` and a power cut), and only then shows them to readers and watchers. So readers never see what is not
durable, the event loop never waits for the disk, and a thousand writes at once cost one sync.

Watches live as long as the process, so history is kept in memory only; a watch from before the start gets `Compacted`.
Keep-alives are not written: on opening, every lease gets its full time and a grace period on top, so that a restart of the
control plane does not empty the mesh.
"""

import asyncio
import fcntl
import logging
import os
import sqlite3
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import IO, Any, Final, TypeVar

from control_plane.store.contract import (
    Compare,
    Delete,
    Event,
    KeyValue,
    LeaseNotFound,
    Listing,
    Put,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreUnavailable,
    TxnResult,
    check_start,
    check_ttl,
    check_txn,
)
from control_plane.store.embedded_content import Batch, Content, History, Lease, Statement

log = logging.getLogger("remora.store")

FORMAT: Final = 1
"""Version of the file's layout; a file with a higher one is refused and not touched."""
RESTART_GRACE_S: Final = 10.0
"""Leases get so long on top of their TTL when the store is opened."""
RETRY_S: Final = 1.0
"""Between tries to end leases while the disk refuses writes."""
FILE: Final = "remora.sqlite3"

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS kv (key BLOB PRIMARY KEY, value BLOB NOT NULL, created INTEGER NOT NULL,
  modified INTEGER NOT NULL, lease INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS lease (id INTEGER PRIMARY KEY, ttl INTEGER NOT NULL);
"""

T = TypeVar("T")


@dataclass(slots=True)
class _Write:
    """A change that waits for its turn."""

    stage: Callable[[Batch], Any]
    """Adds the change to the batch; what its caller is told. Raises StoreError if it is refused."""
    done: asyncio.Future[Any]


class EmbeddedStore:
    """See the module. `open` makes one; `Store` in `contract` says what it does."""

    def __init__(self, directory: Path, clock: Callable[[], float]) -> None:
        self._directory = directory
        self._clock = clock
        self._content = Content(0, 1, History(0))
        self._ending: frozenset[int] = frozenset()
        """Leases that end with the batch that is being written."""
        self._changed = asyncio.Condition()
        self._writes: asyncio.Queue[_Write | None] = asyncio.Queue()
        """None wakes the writer up for the end."""
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
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise StoreError(f"store {directory}: {(reason or str(error)).lower()}") from None
        except BaseException:
            store._release()
            raise
        store._tasks = [asyncio.create_task(store._write_forever()), asyncio.create_task(store._expire_forever())]
        return store

    def _load(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = self._locked()
        file = (self._directory / FILE).absolute()
        if file.exists():
            self._check_format(file)
        self._db = db = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.executescript(_SCHEMA)
        db.execute("INSERT OR IGNORE INTO meta VALUES ('format', ?), ('revision', 0), ('next_lease', 1)", (FORMAT,))
        meta = dict(db.execute("SELECT name, value FROM meta"))
        content = self._content = Content(meta["revision"], meta["next_lease"], History(meta["revision"]))
        now = self._clock()
        for lease_id, ttl_s in db.execute("SELECT id, ttl FROM lease"):
            content.leases[lease_id] = Lease(ttl_s, now + ttl_s + RESTART_GRACE_S)
        for row in db.execute("SELECT key, value, created, modified, lease FROM kv"):
            item = KeyValue(*row)
            content.data[item.key] = item
            if item.lease in content.leases:
                content.leases[item.lease].keys.add(item.key)

    def _locked(self) -> IO[str]:
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
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        return lock

    def _check_format(self, file: Path) -> None:
        """Over a connection that cannot write: not even what a crash left in the log is moved."""
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as db:
            if not db.execute("SELECT count(*) FROM sqlite_master WHERE name='meta'").fetchone()[0]:
                return
            row = db.execute("SELECT value FROM meta WHERE name='format'").fetchone()
        if row and row[0] > FORMAT:
            raise StoreError(
                f"store {self._directory} was written by a newer release (format {row[0]}, this one reads {FORMAT}); "
                "nothing was changed: use the newer release or another directory"
            )

    # -- reading ------------------------------------------------------------------------------------

    async def get(self, key: bytes) -> KeyValue | None:
        self._check_open()
        return self._content.data.get(key)

    async def range(self, prefix: bytes) -> Listing:
        self._check_open()
        found = (item for key, item in self._content.data.items() if key.startswith(prefix))
        return Listing(tuple(sorted(found, key=lambda item: item.key)), self._content.revision)

    async def watch(self, prefix: bytes, start_revision: int) -> AsyncGenerator[tuple[Event, ...], None]:
        check_start(start_revision)
        self._check_open()
        next_revision = start_revision
        while True:
            for revision in self._content.history.since(next_revision):
                next_revision = revision[0].revision + 1
                events = tuple(event for event in revision if event.key.startswith(prefix))
                if events:
                    yield events
                    self._check_open()
            async with self._changed:
                while self._content.revision < next_revision:
                    self._check_open()
                    await self._changed.wait()

    # -- writing ------------------------------------------------------------------------------------

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> TxnResult:
        self._check_open()
        check_txn(compares, ops)
        compares, ops = tuple(compares), tuple(ops)  # the caller may go on with its lists
        return await self._write(lambda batch: batch.txn(compares, ops))

    async def _write(self, stage: Callable[[Batch], T]) -> T:
        self._check_open()
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._writes.put_nowait(_Write(stage, done))
        return await done

    async def _write_forever(self) -> None:
        """The one writer: takes all that wait, commits them together."""
        is_last = False
        while not is_last:
            waiting = [await self._writes.get()]
            while not self._writes.empty():
                waiting.append(self._writes.get_nowait())
            is_last = None in waiting
            await self._write_together([write for write in waiting if write is not None])

    async def _write_together(self, writes: Sequence[_Write]) -> None:
        batch = Batch(self._content)
        results: list[Any] = []
        for write in writes:
            try:
                results.append(write.stage(batch))
            except StoreError as error:
                results.append(error)
        statements = batch.statements()
        if statements:
            self._ending = frozenset(batch.ended)
            try:
                await asyncio.get_running_loop().run_in_executor(self._thread, self._commit, statements)
            except sqlite3.Error as error:
                full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
                for write in writes:
                    _settle(write.done, (StoreFull if full else StoreUnavailable)(f"store {self._directory}: {error}"))
                return
            finally:
                self._ending = frozenset()
            self._content.adopt(batch, self._clock())
        for write, result in zip(writes, results, strict=True):
            _settle(write.done, result)
        if batch.granted:
            self._lease_changed.set()
        if batch.revisions:
            await self._tell_watches()

    def _commit(self, statements: Sequence[Statement]) -> None:
        """In the store's thread: all or nothing."""
        assert self._db is not None
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for sql, row in statements:
                self._db.execute(sql, row)
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    async def _tell_watches(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def compact(self, revision: int | None = None) -> None:
        self._check_open()
        self._content.history.forget(self._content.revision if revision is None else revision)

    # -- leases -------------------------------------------------------------------------------------

    async def grant(self, ttl_s: int) -> int:
        self._check_open()
        check_ttl(ttl_s)
        return await self._write(lambda batch: batch.grant(ttl_s))

    async def keep_alive(self, lease: int) -> int:
        self._check_open()
        found = self._content.leases.get(lease)
        if found is None or lease in self._ending:
            raise LeaseNotFound("the lease has ended or never was")
        found.deadline = self._clock() + found.ttl_s
        return found.ttl_s

    async def revoke(self, lease: int) -> None:
        self._check_open()
        await self._write(lambda batch: batch.end(lease))

    async def expire_due(self) -> float | None:
        """End the leases whose time is over; seconds until the next may be, None if there is none."""
        leases = self._content.leases
        now = self._clock()
        due = [lease_id for lease_id, lease in leases.items() if lease.deadline <= now]

        def end_due(batch: Batch) -> None:
            for lease_id in due:
                if lease_id in leases and leases[lease_id].deadline <= now:  # else it was kept alive at the last moment
                    batch.end(lease_id)

        if due:
            await self._write(end_due)
        return min(lease.deadline for lease in leases.values()) - self._clock() if leases else None

    async def _expire_forever(self) -> None:
        while True:
            self._lease_changed.clear()
            try:
                wait_s = await self.expire_due()
            except StoreError as error:
                log.warning("leases that are over cannot be ended now: %s", error)
                wait_s = RETRY_S
            try:
                async with asyncio.timeout(wait_s if wait_s is None else max(wait_s, 0.01)):
                    await self._lease_changed.wait()
            except TimeoutError:
                continue

    # -- the end ------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoreUnavailable(f"the store {self._directory} is closed")

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        writer, expiry = self._tasks
        expiry.cancel()
        self._writes.put_nowait(None)
        await asyncio.gather(writer, expiry, return_exceptions=True)
        await self._tell_watches()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._release)
        self._thread.shutdown()

    def _release(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _settle(future: asyncio.Future[Any], result: object) -> None:
    if future.done():
        return  # its caller was cancelled; the write stands
    if isinstance(result, StoreError):
        future.set_exception(result)
    else:
        future.set_result(result)
