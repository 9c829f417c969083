"""What the bank keeps: every transfer that it made."""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Column, Connection, MetaData, Table, Text, bindparam, insert, select

from apps.bookstore.database import INTEGER
from apps.bookstore.refusals import Reason, Refusal

FILE: Final = "bank.sqlite3"

_METADATA: Final = MetaData()
TRANSFERS: Final = Table(
    "transfers",
    _METADATA,
    Column("number", INTEGER, primary_key=True, autoincrement=True),
    Column("key", Text, nullable=True, unique=True),  # null: the customer gave none
    Column("merchant", Text, nullable=False),
    Column("amount_cents", INTEGER, nullable=False),
    sqlite_strict=True,
)
_FIND: Final = select(TRANSFERS).where(TRANSFERS.c.key == bindparam("of_key"))
_TRANSFER: Final = insert(TRANSFERS)


@dataclass(frozen=True, slots=True)
class Transfer:
    """One line of the statement."""

    key: str
    merchant: str
    amount_cents: int


def prepare(tx: Connection) -> None:
    """Create what is missing."""
    _METADATA.create_all(tx)


def transfer(tx: Connection, wanted: Transfer) -> Transfer:
    """Pay, once for each key. Raises Refusal if the key paid something else."""
    before = find(tx, wanted.key) if wanted.key else None
    if before is None:
        row = {"key": wanted.key or None, "merchant": wanted.merchant, "amount_cents": wanted.amount_cents}
        tx.execute(_TRANSFER, row)
        return wanted
    if before != wanted:
        text = f'"{wanted.key}" paid {before.amount_cents} to "{before.merchant}" before'
        raise Refusal(Reason.ORDER_DIFFERS, text)
    return before


def find(tx: Connection, key: str) -> Transfer | None:
    """What was paid under a key."""
    row = tx.execute(_FIND, {"of_key": key}).one_or_none()
    return None if row is None else Transfer(row.key, row.merchant, row.amount_cents)


def everything(tx: Connection) -> list[Transfer]:
    """The whole statement, for the reckoning."""
    if not tx.dialect.has_table(tx, TRANSFERS.name):
        return []
    return [Transfer(row.key or "", row.merchant, row.amount_cents) for row in tx.execute(select(TRANSFERS))]
