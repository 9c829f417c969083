"""The log in SQL: SQLite for one machine, PostgreSQL for several.

Writes that come while another is on its way to the disk go together in the next local transaction (group commit), so many
transactions share one wait for the disk. Every write is one conditional statement that changes one row or none, so none can spoil
another's.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final, TypeVar

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    bindparam,
    create_engine,
    delete,
    event,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from apps.transactions.barrier.schema import create_tables
from apps.transactions.context import MAX_GID
from apps.transactions.coordinator.log import Fenced, LogUnavailable, Record, SessionLost
from apps.transactions.coordinator.states import ENDS, State
from apps.transactions.seam import crossing

MAX_BATCH: Final = 256
"""Writes in one local transaction."""
BUSY_TIMEOUT_S: Final = 5.0

T = TypeVar("T")
_INSERTS: Final[dict[str, Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_METADATA: Final = MetaData()
_LOG: Final = Table(
    "tx_log",
    _METADATA,
    Column("gid", String(MAX_GID), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("is_over", Boolean, nullable=False),
    Column("is_dead_letter", Boolean, nullable=False),
    Column("owner", String(200), nullable=False),
    Column("token", BigInteger().with_variant(Integer(), "sqlite"), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("value", LargeBinary, nullable=False),
    Index("tx_log_open", "is_over", "owner"),
)
_SESSION: Final = Table(
    "tx_session",
    _METADATA,
    Column("session", String(200), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("beat", BigInteger().with_variant(Integer(), "sqlite"), nullable=False),
)


# Statements are built once: building one costs more than running it does.
_UPDATE: Final = update(_LOG).where(_LOG.c.gid == bindparam("of_gid"), _LOG.c.token == bindparam("of_token"))
_BEAT: Final = update(_SESSION).where(_SESSION.c.session == bindparam("of_session")).values(beat=_SESSION.c.beat + 1)
_READ: Final = select(_LOG).where(_LOG.c.gid == bindparam("of_gid"))


def open_log_engine(url: str, *, is_synchronous: bool = True) -> Engine:
    """An engine for the log. `is_synchronous=False`: a commit on SQLite may be lost with the machine, not with the process."""
    if not url.startswith("sqlite"):
        return create_engine(url, pool_size=4)
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})

    def set_up(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if is_synchronous else 'OFF'}")

    event.listen(engine, "connect", set_up)
    return engine


@dataclass(slots=True)
class _Write:
    name: str
    apply: Callable[[Connection], Any]
    done: asyncio.Future[Any]


class SqlLog:
    """See `log.Log`. Use it within one event loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._create = _INSERTS[engine.dialect.name](_LOG).on_conflict_do_nothing().returning(_LOG.c.gid)
        self._writer = ThreadPoolExecutor(1, "log-write")
        self._reader = ThreadPoolExecutor(1, "log-read")
        self._queue: list[_Write] = []
        self._flushing: asyncio.Task[None] | None = None
        self.commits = 0
        """Local transactions so far; with group commit there are fewer than writes."""
        self.writes = 0
        try:
            create_tables(engine, _METADATA)
        except SQLAlchemyError as error:
            raise LogUnavailable(_text(error)) from error

    # Writes.

    async def create(self, record: Record) -> bool:
        row = _row(record)

        def apply(connection: Connection) -> bool:
            return connection.execute(self._create, row).first() is not None

        return await self._write(f"create {record.state}", apply)

    async def write(self, record: Record, token: int) -> None:
        row = {**_row(record), "of_gid": record.gid, "of_token": token}

        def apply(connection: Connection) -> bool:
            return connection.execute(_UPDATE, row).rowcount == 1

        if not await self._write(f"update {record.state}", apply):
            raise Fenced(f"{record.gid} has changed hands: its token is no longer {token}")

    async def forget(self, before: float, limit: int) -> int:
        old = select(_LOG.c.gid).where(_LOG.c.is_over, _LOG.c.created_at < before).limit(limit)

        def apply(connection: Connection) -> int:
            gids = connection.execute(old).scalars().all()
            connection.execute(delete(_LOG).where(_LOG.c.gid.in_(gids)))
            return len(gids)

        return await self._write("forget", apply)

    async def open_session(self, session: str, name: str) -> None:
        def apply(connection: Connection) -> None:
            connection.execute(delete(_SESSION).where(_SESSION.c.name == name))
            connection.execute(insert(_SESSION).values(session=session, name=name, beat=0))

        await self._write("session open", apply)

    async def beat(self, session: str) -> None:
        def apply(connection: Connection) -> bool:
            return connection.execute(_BEAT, {"of_session": session}).rowcount == 1

        if not await self._write("session beat", apply):
            raise SessionLost(f"{session} was ended by another replica")

    async def end_session(self, session: str, beat: int | None) -> None:
        statement = delete(_SESSION).where(_SESSION.c.session == session)
        if beat is not None:
            statement = statement.where(_SESSION.c.beat == beat)

        def apply(connection: Connection) -> None:
            connection.execute(statement)

        await self._write("session end", apply)

    async def _write(self, name: str, apply: Callable[[Connection], T]) -> T:
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.append(_Write(name, apply, done))
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush())
        return await done

    async def _flush(self) -> None:
        """Until the queue is empty: take what is there, write it in one local transaction."""
        loop = asyncio.get_running_loop()
        while self._queue:
            batch, self._queue = self._queue[:MAX_BATCH], self._queue[MAX_BATCH:]
            try:
                results = await loop.run_in_executor(self._writer, partial(self._commit, batch))
            except SQLAlchemyError as error:
                for each in batch:
                    _settle(each.done, LogUnavailable(_text(error)))
            except RuntimeError:  # the executor is shut down
                for each in batch:
                    _settle(each.done, LogUnavailable("the log is closed"))
            else:
                for each, result in zip(batch, results, strict=True):
                    if not each.done.done():
                        each.done.set_result(result)

    def _commit(self, batch: Sequence[_Write]) -> list[Any]:
        with crossing("write", "log " + ", ".join(each.name for each in batch)), self._engine.begin() as connection:
            results = [each.apply(connection) for each in batch]
        self.commits += 1
        self.writes += len(batch)
        return results

    # Reads.

    async def read(self, gid: str) -> Record | None:
        rows = await self._read(_READ, {"of_gid": gid})
        return _record(rows[0]) if rows else None

    async def orphans(self, limit: int) -> Sequence[Record]:
        alive = select(_SESSION.c.session)
        query = select(_LOG).where(_LOG.c.is_over.is_(False), _LOG.c.owner.not_in(alive))
        return [_record(each) for each in await self._read(query.order_by(_LOG.c.created_at).limit(limit))]

    async def page(self, states: Sequence[State], only_dead_letters: bool, after: str, limit: int) -> Sequence[Record]:
        query = select(_LOG).where(_LOG.c.gid > after).order_by(_LOG.c.gid).limit(limit)
        if states:
            query = query.where(_LOG.c.state.in_([each.value for each in states]))
        if only_dead_letters:
            query = query.where(_LOG.c.is_dead_letter)
        return [_record(each) for each in await self._read(query)]

    async def count_dead_letters(self) -> int:
        query = select(func.count()).select_from(_LOG).where(_LOG.c.is_over.is_(False), _LOG.c.is_dead_letter)
        return int((await self._read(query))[0][0])

    async def sessions(self) -> dict[str, int]:
        return {row.session: row.beat for row in await self._read(select(_SESSION))}

    async def _read(self, query: Any, values: Mapping[str, Any] = MappingProxyType({})) -> Sequence[Any]:
        def look() -> Sequence[Any]:
            with self._engine.connect() as connection:
                return connection.execute(query, dict(values)).all()

        try:
            return await asyncio.get_running_loop().run_in_executor(self._reader, look)
        except SQLAlchemyError as error:
            raise LogUnavailable(_text(error)) from error
        except RuntimeError as error:
            raise LogUnavailable("the log is closed") from error

    async def close(self) -> None:
        if self._flushing is not None:
            await asyncio.gather(self._flushing, return_exceptions=True)
        self._writer.shutdown()
        self._reader.shutdown()


def _settle(done: asyncio.Future[Any], error: LogUnavailable) -> None:
    if not done.done():
        done.set_exception(error)


def _row(record: Record) -> dict[str, Any]:
    return {
        "gid": record.gid,
        "state": record.state.value,
        "is_over": record.state in ENDS,
        "is_dead_letter": record.is_dead_letter,
        "owner": record.owner,
        "token": record.token,
        "created_at": record.created_at,
        "value": record.value,
    }


def _record(row: Any) -> Record:
    return Record(row.gid, State(row.state), row.is_dead_letter, row.owner, row.token, row.created_at, bytes(row.value))


def _text(error: SQLAlchemyError) -> str:
    return f"the log cannot be written or read: {error.orig if isinstance(error, DBAPIError) else error}"
