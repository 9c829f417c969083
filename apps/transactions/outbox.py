"""Events that happen if and only if a local transaction commits, delivered at least once, in order per key.

`publish` writes the event into the service's own database, in its own local transaction. A `Relay` beside the service calls the
consumer until it answers OK, and only then deletes the row: a crash in between delivers again, and the consumer's barrier knows the
event by its id. So the effect is once.

Order: of events with one key only the oldest is ever on its way, so no later one can overtake it, however many relays run. A consumer
that does not answer holds up its key, and no other.
"""

import asyncio
import contextlib
import random
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import grpc
from google.protobuf.message import Message
from prometheus_client import Counter, Gauge
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    delete,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError

from apps.transactions.barrier.schema import create_tables as create
from apps.transactions.calling import Caller
from apps.transactions.context import MAX_GID, BranchCall, Op, complaint
from apps.transactions.coordinator.machine import Retries
from apps.transactions.seam import crossing

MAX_KEY: Final = 200
MAX_BODY_BYTES: Final = 64 * 1024
BRANCH: Final = "outbox"

_METADATA: Final = MetaData()
_OUTBOX: Final = Table(
    "tx_outbox",
    _METADATA,
    Column("id", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True),
    Column("event", String(MAX_GID), nullable=False, unique=True),
    Column("key", String(MAX_KEY), nullable=False),
    Column("target", String(300), nullable=False),
    Column("body", LargeBinary, nullable=False),
    Index("tx_outbox_key", "key", "id"),
    sqlite_autoincrement=True,  # an id is never used again, or a deleted event's successor could come before it
)
DELIVERIES: Final = Counter("transactions_outbox_deliveries", "Deliveries of events.", ["result"])
WAITING: Final = Gauge("transactions_outbox_waiting", "Keys whose oldest event waits to be delivered.")
DEAD: Final = Gauge("transactions_outbox_dead_letters", "Keys whose oldest event a person should look at.")


def create_tables(engine: Engine) -> None:
    """Create what the outbox keeps, if it is not there."""
    create(engine, _METADATA)


def publish(connection: Connection, target: str, request: Message | bytes, *, key: str = "", event: str = "") -> str:
    """Write an event into the local transaction that `connection` is in; its id.

    `key`: events with the same one arrive in the order in which their transactions committed; empty: in any order.
    `event`: your own id, unique for ever; empty: one is made up. Raises ValueError over the limits.
    """
    event = event or uuid.uuid4().hex
    body = request if isinstance(request, bytes) else request.SerializeToString(deterministic=True)
    wrong = complaint("event", event, MAX_GID)
    if wrong is None and len(key) > MAX_KEY:
        wrong = f"key: is too long ({len(key)} characters); at most {MAX_KEY} are allowed"
    if wrong is None and len(body) > MAX_BODY_BYTES:
        wrong = f"request: {len(body)} bytes; at most {MAX_BODY_BYTES} are taken"
    if wrong is not None:
        raise ValueError(wrong)
    if key and connection.dialect.name == "postgresql":
        # Ids are given out before commits happen: without this a later id of the same key could commit, and be sent, first.
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"), {"key": f"tx_outbox:{key}"})
    values = {"event": event, "key": key or f"#{event}", "target": target, "body": body}
    connection.execute(insert(_OUTBOX).values(**values))
    return event


@dataclass(frozen=True, slots=True)
class Settings:
    """How a relay behaves."""

    poll_s: float = 0.2
    """How often it looks for new events; `Relay.hint` makes it look at once."""
    call_timeout_s: float = 3.0
    keys_at_once: int = 16
    """Keys that are delivered side by side."""
    retries: Retries = field(default_factory=Retries)


@dataclass(frozen=True, slots=True)
class _Event:
    id: int
    event: str
    key: str
    target: str
    body: bytes


class Relay:
    """Delivers one database's events. `run` it as a task beside the server."""

    def __init__(
        self,
        engine: Engine,
        calls: Caller,
        settings: Settings | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        dice: random.Random | None = None,
    ) -> None:
        create_tables(engine)
        self._engine = engine
        self._calls = calls
        self._settings = settings or Settings()
        self._clock = clock
        self._dice = dice or random.Random()
        self._failures: dict[str, int] = {}
        self._not_before: dict[str, float] = {}
        self._bell = asyncio.Event()

    def hint(self) -> None:
        """There is a new event."""
        self._bell.set()

    async def run(self) -> None:
        """For ever."""
        while True:
            self._bell.clear()
            has_moved = False
            with contextlib.suppress(DBAPIError):  # the database is away; look again later
                has_moved = await self.round()
            if not has_moved:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._settings.poll_s):
                        await self._bell.wait()

    async def round(self) -> bool:
        """Try the oldest event of every key once; whether any was delivered."""
        heads = await asyncio.to_thread(self._heads)
        keys = {each.key for each in heads}
        for key in self._failures.keys() - keys:
            del self._failures[key], self._not_before[key]
        now = self._clock()
        due = [each for each in heads if self._not_before.get(each.key, 0.0) <= now]
        slots = asyncio.Semaphore(self._settings.keys_at_once)
        delivered = await asyncio.gather(*(self._deliver(each, slots) for each in due))
        WAITING.set(len(keys))
        DEAD.set(sum(count >= self._settings.retries.dead_after for count in self._failures.values()))
        return any(delivered)

    async def _deliver(self, event: _Event, slots: asyncio.Semaphore) -> bool:
        call = BranchCall(event.event, BRANCH, Op.DELIVER)
        async with slots:
            try:
                with crossing("send", "event"):
                    await self._calls.call(event.target, event.body, call, self._settings.call_timeout_s)
            except grpc.aio.AioRpcError as error:
                DELIVERIES.labels(error.code().name).inc()
                failures = self._failures.get(event.key, 0) + 1
                self._failures[event.key] = failures
                self._not_before[event.key] = self._clock() + self._settings.retries.pause_s(failures, self._dice)
                return False
            await asyncio.to_thread(self._forget, event)
        DELIVERIES.labels("OK").inc()
        if self._failures.pop(event.key, None) is not None:
            del self._not_before[event.key]
        return True

    def _heads(self) -> Sequence[_Event]:
        oldest = select(func.min(_OUTBOX.c.id)).group_by(_OUTBOX.c.key)
        query = select(_OUTBOX).where(_OUTBOX.c.id.in_(oldest)).order_by(_OUTBOX.c.id).limit(1000)
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return [_Event(row.id, row.event, row.key, row.target, bytes(row.body)) for row in rows]

    def _forget(self, event: _Event) -> None:
        with crossing("write", "outbox delivered"), self._engine.begin() as connection:
            connection.execute(delete(_OUTBOX).where(_OUTBOX.c.id == event.id))
