"""What orders keeps: every purchase, how far it has come, and when somebody is to look after it.

An open order is always due at some moment: whoever works on it puts that off, and if he dies the order becomes due all the same.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import (
    Column,
    Connection,
    Executable,
    Index,
    MetaData,
    Row,
    Table,
    Text,
    and_,
    bindparam,
    insert,
    or_,
    select,
    update,
)

from apps.bookstore.database import INTEGER
from apps.bookstore.refusals import Reason, Refusal

FILE: Final = "orders.sqlite3"
FURTHEST_DUE_MS: Final = 60_000
"""No order is put off for longer; one that seems to be was written before the clock was set back, and is due."""


class State(StrEnum):
    """Names as in bookstore.v1.Order.State."""

    PENDING = "PENDING"
    TAKEN = "TAKEN"
    SETTLED = "SETTLED"
    REJECTED = "REJECTED"


TRANSITIONS: Final = frozenset(
    [
        (State.PENDING, State.TAKEN),
        (State.PENDING, State.REJECTED),
        (State.PENDING, State.SETTLED),  # a way that does all of it or nothing
        (State.TAKEN, State.SETTLED),
    ]
)
OPEN: Final = frozenset([State.PENDING, State.TAKEN])
"""Still to be seen through."""

_METADATA: Final = MetaData()
ORDERS: Final = Table(
    "orders",
    _METADATA,
    Column("order_id", Text, primary_key=True),
    Column("reader", Text, nullable=False),
    Column("book", Text, nullable=False),
    Column("copies", INTEGER, nullable=False),
    Column("state", Text, nullable=False),
    Column("amount_cents", INTEGER, nullable=False),
    Column("warehouse_version", Text, nullable=False),
    Column("warehouse_instance", Text, nullable=False),
    Column("refusal", Text, nullable=False),  # a Reason; empty unless rejected
    Column("explanation", Text, nullable=False),
    Column("tries", INTEGER, nullable=False),  # how often the settler has taken it up
    Column("due_ms", INTEGER),  # when to take it up; null once it is closed
    Column("recorded_ms", INTEGER, nullable=False),
    sqlite_strict=True,
)
Index("orders_due", ORDERS.c.due_ms)

# Statements are built once: building one costs twice what running it does.
_FIND: Final = select(ORDERS).where(ORDERS.c.order_id == bindparam("order_id"))
_RECORD: Final = insert(ORDERS)
_IS_IN: Final = and_(ORDERS.c.order_id == bindparam("of_order"), ORDERS.c.state == bindparam("old"))
_TAKEN: Final = (
    update(ORDERS)
    .where(_IS_IN)
    .values(
        state=bindparam("new"),
        amount_cents=bindparam("amount"),
        warehouse_version=bindparam("version"),
        warehouse_instance=bindparam("instance"),
    )
    .returning(*ORDERS.c)
)
_BOUGHT: Final = _TAKEN.values(due_ms=None)
_CLOSED: Final = (
    update(ORDERS)
    .where(_IS_IN)
    .values(state=bindparam("new"), refusal=bindparam("reason"), explanation=bindparam("text"), due_ms=None)
    .returning(*ORDERS.c)
)
_PUT_OFF: Final = (
    update(ORDERS)
    .where(ORDERS.c.order_id == bindparam("of_order"), ORDERS.c.due_ms.is_not(None))
    .values(due_ms=bindparam("until_ms"))
)
_DUE: Final = (
    select(ORDERS)
    .where(or_(ORDERS.c.due_ms <= bindparam("now_ms"), ORDERS.c.due_ms > bindparam("furthest_ms")))
    .order_by(ORDERS.c.due_ms)
    .limit(bindparam("most"))
)
_CLAIM: Final = (
    update(ORDERS)
    .where(ORDERS.c.order_id == bindparam("of_order"))
    .values(due_ms=bindparam("until_ms"), tries=ORDERS.c.tries + 1)
)


@dataclass(frozen=True, slots=True)
class Order:
    """A purchase and how far it has come."""

    order_id: str
    reader: str
    book: str
    copies: int
    state: State = State.PENDING
    amount_cents: int = 0
    """0 until the copies are taken."""
    warehouse_version: str = ""
    warehouse_instance: str = ""
    refusal: Reason | None = None
    explanation: str = ""
    tries: int = 0


def prepare(tx: Connection) -> None:
    """Create what is missing."""
    _METADATA.create_all(tx)


def record(tx: Connection, wanted: Order, now_ms: int, due_ms: int) -> Order:
    """Write a purchase down before anything is done about it; if it is there already, how far it has come.

    Raises Refusal if the order_id stands for another purchase.
    """
    before = find(tx, wanted.order_id)
    if before is None:
        row = {**asdict(wanted), "refusal": "", "due_ms": due_ms, "recorded_ms": now_ms}
        tx.execute(_RECORD, row)
        return wanted
    if (before.reader, before.book, before.copies) != (wanted.reader, wanted.book, wanted.copies):
        raise Refusal(
            Reason.ORDER_DIFFERS,
            f'order "{wanted.order_id}" stands for another purchase: {before.copies} of "{before.book}" for '
            f'"{before.reader}", not {wanted.copies} of "{wanted.book}" for "{wanted.reader}"',
        )
    return before


def taken(tx: Connection, order_id: str, amount_cents: int, version: str, instance: str) -> Order:
    """The warehouse gave the copies."""
    values = {"amount": amount_cents, "version": version, "instance": instance}
    return _move(tx, order_id, State.PENDING, State.TAKEN, _TAKEN, values)


def rejected(tx: Connection, order_id: str, refusal: Reason, explanation: str) -> Order:
    """The warehouse refused for good."""
    values = {"reason": refusal, "text": explanation}
    return _move(tx, order_id, State.PENDING, State.REJECTED, _CLOSED, values)


def settled(tx: Connection, order_id: str) -> Order:
    """The money is in the till."""
    return _move(tx, order_id, State.TAKEN, State.SETTLED, _CLOSED, {"reason": "", "text": ""})


def bought(tx: Connection, order_id: str, amount_cents: int, version: str, instance: str) -> Order | None:
    """All of it has happened at once; None if the order was closed already."""
    values = {"amount": amount_cents, "version": version, "instance": instance}
    return _step(tx, order_id, State.PENDING, State.SETTLED, _BOUGHT, values)


def turned_down(tx: Connection, order_id: str, refusal: Reason, explanation: str) -> Order | None:
    """Nothing of it has happened; None if the order was closed already."""
    return _step(tx, order_id, State.PENDING, State.REJECTED, _CLOSED, {"reason": refusal, "text": explanation})


def followed(tx: Connection, order_id: str) -> Order | None:
    """What was to follow has happened; None if that was known already."""
    return _step(tx, order_id, State.TAKEN, State.SETTLED, _CLOSED, {"reason": "", "text": ""})


def accepted(tx: Connection, order_id: str, amount_cents: int, version: str, instance: str) -> Order | None:
    """The warehouse gave the copies; None if that was known already."""
    values = {"amount": amount_cents, "version": version, "instance": instance}
    return _step(tx, order_id, State.PENDING, State.TAKEN, _TAKEN, values)


def _step(
    tx: Connection, order_id: str, old: State, new: State, statement: Executable, values: Mapping[str, object]
) -> Order | None:
    """From one state to the next; None if somebody else was faster."""
    assert (old, new) in TRANSITIONS
    row = tx.execute(statement, {"of_order": order_id, "old": old, "new": new, **values}).one_or_none()
    return None if row is None else _order(row)


def _move(
    tx: Connection, order_id: str, old: State, new: State, statement: Executable, values: Mapping[str, object]
) -> Order:
    """From one state to the next; if somebody else was faster, to where he has brought it."""
    order = _step(tx, order_id, old, new, statement, values) or find(tx, order_id)
    assert order is not None
    return order


def put_off(tx: Connection, order_id: str, due_ms: int) -> None:
    """Leave an open order alone until then."""
    tx.execute(_PUT_OFF, {"of_order": order_id, "until_ms": due_ms})


def is_any_due(tx: Connection, now_ms: int) -> bool:
    """True if `claim` would find something; only reads."""
    return bool(_due(tx, now_ms, 1))


def claim(tx: Connection, now_ms: int, until_ms: int, most: int) -> list[Order]:
    """Due orders, the longest due first; until then they are nobody else's."""
    claimed = _due(tx, now_ms, most)
    for order in claimed:
        tx.execute(_CLAIM, {"of_order": order.order_id, "until_ms": until_ms})
    return claimed


def _due(tx: Connection, now_ms: int, most: int) -> list[Order]:
    bounds = {"now_ms": now_ms, "furthest_ms": now_ms + FURTHEST_DUE_MS, "most": most}
    return [_order(row) for row in tx.execute(_DUE, bounds)]


def find(tx: Connection, order_id: str) -> Order | None:
    """An order; None if there is none."""
    row = tx.execute(_FIND, {"order_id": order_id}).one_or_none()
    return None if row is None else _order(row)


def everything(tx: Connection) -> list[Order]:
    """All orders, for the audit."""
    return [_order(row) for row in tx.execute(select(ORDERS))]


def _order(row: Row[*tuple[Any, ...]]) -> Order:
    return Order(
        order_id=row.order_id,
        reader=row.reader,
        book=row.book,
        copies=row.copies,
        state=State(row.state),
        amount_cents=row.amount_cents,
        warehouse_version=row.warehouse_version,
        warehouse_instance=row.warehouse_instance,
        refusal=Reason(row.refusal) if row.refusal else None,
        explanation=row.explanation,
        tries=row.tries,
    )


def recorded_ms(tx: Connection) -> dict[str, int]:
    """When each open order was written down, in milliseconds since 1970: for the reckoning."""
    found = select(ORDERS.c.order_id, ORDERS.c.recorded_ms).where(ORDERS.c.due_ms.is_not(None))
    return {row.order_id: row.recorded_ms for row in tx.execute(found)}
