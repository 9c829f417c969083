"""What accounts keeps: the readers' wallets, the till, and every charge that moved money between them."""

from typing import Final

from sqlalchemy import Column, Connection, MetaData, Table, Text, insert, select, update

from apps.bookstore.database import INTEGER
from apps.bookstore.refusals import Reason, Refusal

FILE: Final = "accounts.sqlite3"
OPENING_CENTS: Final = 10_000
"""What every reader starts with."""
TILL: Final = "till"

_METADATA: Final = MetaData()
WALLETS: Final = Table(
    "wallets",
    _METADATA,
    Column("reader", Text, primary_key=True),
    Column("opening_cents", INTEGER, nullable=False),
    Column("balance_cents", INTEGER, nullable=False),
    sqlite_strict=True,
)
TILLS: Final = Table(
    "tills",
    _METADATA,
    Column("name", Text, primary_key=True),
    Column("balance_cents", INTEGER, nullable=False),
    sqlite_strict=True,
)
CHARGES: Final = Table(
    "charges",
    _METADATA,
    Column("order_id", Text, primary_key=True),
    Column("reader", Text, nullable=False),
    Column("amount_cents", INTEGER, nullable=False),
    Column("balance_cents", INTEGER, nullable=False),  # the reader's, after it
    Column("at_ms", INTEGER, nullable=False),
    sqlite_strict=True,
)


def prepare(tx: Connection) -> None:
    """Create what is missing."""
    _METADATA.create_all(tx)
    if tx.scalar(select(TILLS.c.name).where(TILLS.c.name == TILL)) is None:
        tx.execute(insert(TILLS).values(name=TILL, balance_cents=0))


def charge(tx: Connection, order_id: str, reader: str, amount_cents: int, now_ms: int) -> int:
    """Move money from a reader to the till, once per order; the reader's balance after that.

    Raises Refusal if the order was charged differently before.
    """
    before = tx.execute(select(CHARGES).where(CHARGES.c.order_id == order_id)).one_or_none()
    if before is not None:
        if (before.reader, before.amount_cents) != (reader, amount_cents):
            raise Refusal(
                Reason.ORDER_DIFFERS,
                f'order "{order_id}" was charged before: {before.amount_cents} cents to "{before.reader}", '
                f'not {amount_cents} to "{reader}"',
            )
        return int(before.balance_cents)
    if tx.scalar(select(WALLETS.c.reader).where(WALLETS.c.reader == reader)) is None:
        tx.execute(insert(WALLETS).values(reader=reader, opening_cents=OPENING_CENTS, balance_cents=OPENING_CENTS))
    tx.execute(
        update(WALLETS).where(WALLETS.c.reader == reader).values(balance_cents=WALLETS.c.balance_cents - amount_cents)
    )
    tx.execute(update(TILLS).where(TILLS.c.name == TILL).values(balance_cents=TILLS.c.balance_cents + amount_cents))
    left = balance(tx, reader)
    tx.execute(
        insert(CHARGES).values(
            order_id=order_id, reader=reader, amount_cents=amount_cents, balance_cents=left, at_ms=now_ms
        )
    )
    return left


def balance(tx: Connection, reader: str) -> int:
    """What a reader has, in cents."""
    found = tx.scalar(select(WALLETS.c.balance_cents).where(WALLETS.c.reader == reader))
    return OPENING_CENTS if found is None else int(found)
