"""The database of one service: local transactions, one after the other, off the event loop.

It is a SQLite file, or, where two-phase commit needs it, a database of a PostgreSQL server.

Theory of operation: all SQL of a process runs in one thread of the database's own, so a wait for the disk or for a lock never holds up
the event loop, and the health check answers however busy the file is. Other processes may have the same file open (four warehouses,
one stock): a transaction that writes takes the write lock at its first statement (BEGIN IMMEDIATE), so what it has read is still true
when it writes, and it waits for the lock rather than fail. WAL: who only reads never waits.

What runs in a transaction is a plain function whose first parameter is the transaction: `await database.run(shelf.take, ...)`.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Concatenate, Final, ParamSpec, TypeVar
from urllib.parse import quote

from sqlalchemy import BigInteger, Connection, Engine, Integer, create_engine, event
from sqlalchemy.exc import DBAPIError, IntegrityError

BUSY_TIMEOUT_S: Final = 3.0
"""A transaction waits so long for other processes; then the call fails, and may be repeated."""
SYNCHRONOUS: Final = ("FULL", "NORMAL")
"""FULL: what was answered survives a power cut. NORMAL: only `kill -9`, but a commit does not wait for the disk (0.02 ms instead of 0.25
on the SSD where it was measured; a slow disk takes 10)."""
INTEGER: Final = BigInteger().with_variant(Integer(), "sqlite")
"""64 bits, whatever the database."""

P = ParamSpec("P")
T = TypeVar("T")
Place = Path | str
"""A SQLite file, or the SQLAlchemy URL of a database."""
SERVICE: Final = "{service}"
"""Stands in a URL for the name of the service, which is the name of its database."""


class DatabaseAway(Exception):
    """The file cannot be used now: locked for too long, disk full, not a database. Nothing was written."""


def place(directory: Path, file: str, url: str = "") -> Place:
    """Where a service's database is: a file in the directory, unless a URL says otherwise."""
    return url.replace(SERVICE, Path(file).stem) if url else directory / file


def open_engine(path: Place, synchronous: str = "FULL") -> Engine:
    """Open a database; a file is created. Raises DatabaseAway."""
    assert synchronous in SYNCHRONOUS
    if isinstance(path, str):
        options = f"-c synchronous_commit={'on' if synchronous == 'FULL' else 'off'}"
        return create_engine(path, pool_pre_ping=True, connect_args={"options": options})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseAway(f"{path.parent}: {(error.strerror or str(error)).lower()}") from None
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_TIMEOUT_S}, pool_size=1)
    event.listen(engine, "connect", partial(_set_up, synchronous))
    event.listen(engine, "begin", _begin)
    return engine


def open_read_only(path: Place) -> Engine:
    """Open a database that others may be writing; a transaction sees one moment of it. Raises DatabaseAway if there is none."""
    if isinstance(path, str):
        return create_engine(path, isolation_level="REPEATABLE READ")
    if not path.is_file():
        raise DatabaseAway(f"{path}: no such file")
    uri = f"file:{quote(str(path))}?mode=ro"

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)

    engine = create_engine(f"sqlite:///{path}", creator=connect)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine


def _set_up(synchronous: str, connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # the driver is not to begin transactions: `_begin` does
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {synchronous}")


def _begin(connection: Connection) -> None:
    only_reads = connection.get_execution_options().get("only_reads", False)
    connection.exec_driver_sql("BEGIN" if only_reads else "BEGIN IMMEDIATE")


def transact(engine: Engine, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`work(transaction, ...)`, all of it or nothing. Raises DatabaseAway, and what `work` raises."""
    return _within(engine, False, lambda tx: work(tx, *args, **kwargs))


def look(engine: Engine, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`work(transaction, ...)`, without holding up writers. Raises DatabaseAway."""
    return _within(engine, True, lambda tx: work(tx, *args, **kwargs))


def _within(engine: Engine, only_reads: bool, work: Callable[[Connection], T]) -> T:
    try:
        with engine.connect().execution_options(only_reads=only_reads) as connection, connection.begin():
            return work(connection)
    except IntegrityError:
        raise  # not the file's fault but ours
    except DBAPIError as error:
        raise DatabaseAway(f"{database_name(engine)}: {error.orig}") from None


def database_name(engine: Engine) -> str:
    """As it is called in messages."""
    return Path(engine.url.database or "").name


class Database:
    """A database and its thread, for a server's lifetime."""

    def __init__(self, path: Place, synchronous: str = "FULL") -> None:
        self._engine = open_engine(path, synchronous)
        self._thread = ThreadPoolExecutor(1, database_name(self._engine))

    @property
    def engine(self) -> Engine:
        """For what has threads of its own: barrier, relay."""
        return self._engine

    async def run(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`transact` in the database's thread. Cancelling does not stop what has begun."""
        return await self._in_thread(lambda: transact(self._engine, work, *args, **kwargs))

    async def look(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`look` in the database's thread."""
        return await self._in_thread(lambda: look(self._engine, work, *args, **kwargs))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        """Finish what was begun, then let go of the database."""
        self._thread.shutdown()
        self._engine.dispose()
