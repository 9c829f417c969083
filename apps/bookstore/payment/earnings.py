"""What payment keeps: what merchants have earned, and what the bank is to pay them out.

A merchant's balance is the sum of his movements. There is no row of his own that every purchase would have to lock: with two-phase commit,
purchases of one merchant's books would wait for each other.
"""

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Column, Connection, MetaData, Row, Table, Text, bindparam, func, insert, select, update

from apps.bookstore import movements
from apps.bookstore.database import INTEGER
from apps.bookstore.movements import MOVEMENTS

FILE: Final = "payment.sqlite3"

_METADATA: Final = MetaData()
PAYOUTS: Final = Table(
    "payouts",
    _METADATA,
    Column("number", INTEGER, primary_key=True, autoincrement=True),
    Column("order_id", Text, nullable=False, index=True),
    Column("merchant", Text, nullable=False),
    Column("amount_cents", INTEGER, nullable=False),
    Column("paid", INTEGER, nullable=False, index=True),  # 1: the bank's statement has it
    sqlite_strict=True,
)
_INSTRUCT: Final = insert(PAYOUTS)
_DUE: Final = select(PAYOUTS).where(PAYOUTS.c.paid == 0).order_by(PAYOUTS.c.number).limit(bindparam("most"))
_PAID: Final = update(PAYOUTS).where(PAYOUTS.c.number == bindparam("of_number")).values(paid=1)
_EARNED: Final = select(func.coalesce(func.sum(MOVEMENTS.c.free), 0)).where(
    MOVEMENTS.c.holding == bindparam("merchant")
)
_PAID_OUT: Final = select(func.coalesce(func.sum(PAYOUTS.c.amount_cents), 0)).where(
    PAYOUTS.c.merchant == bindparam("merchant"), PAYOUTS.c.paid == 1
)


@dataclass(frozen=True, slots=True)
class Payout:
    """One instruction to the bank."""

    number: int
    order_id: str
    merchant: str
    amount_cents: int
    is_paid: bool


def prepare(tx: Connection) -> None:
    """Create what is missing."""
    movements.prepare(tx)
    _METADATA.create_all(tx)


def credit(tx: Connection, order_id: str, merchant: str, cents: int) -> None:
    """The merchant has earned it; the bank is to pay it out."""
    movements.move(tx, order_id, "credit", merchant, free=cents)
    _instruct(tx, order_id, merchant, cents)


def announce(tx: Connection, order_id: str, merchant: str, cents: int) -> None:
    """The merchant is to earn it, perhaps."""
    movements.move(tx, order_id, "announce", merchant, held=cents)


def confirm(tx: Connection, order_id: str, merchant: str, cents: int) -> None:
    """What was announced is earned."""
    movements.require_held(tx, order_id, merchant, cents)
    movements.move(tx, order_id, "confirm", merchant, free=cents, held=-cents)
    _instruct(tx, order_id, merchant, cents)


def withdraw(tx: Connection, order_id: str, merchant: str, cents: int) -> None:
    """What was announced will not come."""
    movements.require_held(tx, order_id, merchant, cents)
    movements.move(tx, order_id, "withdraw", merchant, held=-cents)


def _instruct(tx: Connection, order_id: str, merchant: str, cents: int) -> None:
    tx.execute(_INSTRUCT, {"order_id": order_id, "merchant": merchant, "amount_cents": cents, "paid": 0})


def due(tx: Connection, most: int) -> list[Payout]:
    """What the bank has still to pay, oldest first."""
    return [_payout(row) for row in tx.execute(_DUE, {"most": most})]


def paid(tx: Connection, number: int) -> None:
    """The bank's statement has it."""
    tx.execute(_PAID, {"of_number": number})


def merchant(tx: Connection, name: str) -> tuple[int, int]:
    """Cents that a merchant has earned, and that were paid out of it."""
    return int(tx.scalar(_EARNED, {"merchant": name}) or 0), int(tx.scalar(_PAID_OUT, {"merchant": name}) or 0)


def everything(tx: Connection) -> list[Payout]:
    """All payouts, for the reckoning."""
    if not tx.dialect.has_table(tx, PAYOUTS.name):
        return []
    return [_payout(row) for row in tx.execute(select(PAYOUTS))]


def _payout(row: Row[*tuple[Any, ...]]) -> Payout:
    return Payout(row.number, row.order_id, row.merchant, row.amount_cents, bool(row.paid))
