"""What every service writes beside its balances: one row for every change, in the same local transaction.

A holding (a reader's wallet, a title on the shelf, a merchant) has a part that is free and one that is held: set aside for an order, of
use to nobody else. Balances say how things are; movements say why, and the reckoning compares the two.
"""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Column, Connection, MetaData, Table, Text, bindparam, func, insert, select

from apps.bookstore.database import INTEGER
from apps.bookstore.refusals import Reason, Refusal

_METADATA: Final = MetaData()
MOVEMENTS: Final = Table(
    "movements",
    _METADATA,
    Column("number", INTEGER, primary_key=True, autoincrement=True),
    Column("order_id", Text, nullable=False, index=True),
    Column("kind", Text, nullable=False),
    Column("holding", Text, nullable=False, index=True),
    Column("free", INTEGER, nullable=False),
    Column("held", INTEGER, nullable=False),
    sqlite_strict=True,
)
_MOVE: Final = insert(MOVEMENTS)
_HELD: Final = select(func.coalesce(func.sum(MOVEMENTS.c.held), 0)).where(
    MOVEMENTS.c.order_id == bindparam("order_id"), MOVEMENTS.c.holding == bindparam("holding")
)


@dataclass(frozen=True, slots=True)
class Movement:
    """One change of one holding."""

    order_id: str
    kind: str
    """Which operation: `debit`, `refund`, ..."""
    holding: str
    free: int
    """Change of what anybody may use."""
    held: int
    """Change of what is set aside."""


def prepare(tx: Connection) -> None:
    """Create what is missing."""
    _METADATA.create_all(tx)


def move(tx: Connection, order_id: str, kind: str, holding: str, *, free: int = 0, held: int = 0) -> None:
    """Write a change down."""
    tx.execute(_MOVE, {"order_id": order_id, "kind": kind, "holding": holding, "free": free, "held": held})


def require_held(tx: Connection, order_id: str, holding: str, amount: int) -> None:
    """Raises Refusal unless so much is set aside for the order."""
    held = int(tx.scalar(_HELD, {"order_id": order_id, "holding": holding}) or 0)
    if held < amount:
        raise Refusal(Reason.NOTHING_HELD, f'order "{order_id}": {held} of "{holding}" is set aside, not {amount}')


def everything(tx: Connection) -> list[Movement]:
    """In the order in which they were written; empty before the first start."""
    if not tx.dialect.has_table(tx, MOVEMENTS.name):
        return []
    rows = tx.execute(select(MOVEMENTS).order_by(MOVEMENTS.c.number))
    return [Movement(row.order_id, row.kind, row.holding, row.free, row.held) for row in rows]
