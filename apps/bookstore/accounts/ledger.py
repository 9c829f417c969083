"""What accounts keeps: the readers' wallets, the till, and every charge that moved money between them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Column, Connection, MetaData, Table, Text, bindparam, insert, select, update

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

# Statements are built once: building one costs twice what running it does.
_BALANCE: Final = select(WALLETS.c.balance_cents).where(WALLETS.c.reader == bindparam("reader"))
_OPEN_WALLET: Final = insert(WALLETS)
_DEBIT: Final = (
    update(WALLETS)
    .where(WALLETS.c.reader == bindparam("of_reader"))
    .values(balance_cents=WALLETS.c.balance_cents - bindparam("amount"))
    .returning(WALLETS.c.balance_cents)
)
_CREDIT_TILL: Final = (
    update(TILLS).where(TILLS.c.name == TILL).values(balance_cents=TILLS.c.balance_cents + bindparam("amount"))
)
_TILL: Final = select(TILLS.c.balance_cents).where(TILLS.c.name == TILL)
_OPEN_TILL: Final = insert(TILLS)
_FIND_CHARGE: Final = select(CHARGES).where(CHARGES.c.order_id == bindparam("order_id"))
_CHARGE: Final = insert(CHARGES)


@dataclass(frozen=True, slots=True)
class Wallet:
    """A reader's, for the audit."""

    reader: str
    opening_cents: int
    balance_cents: int


@dataclass(frozen=True, slots=True)
class Charge:
    """One, for the audit."""

    order_id: str
    reader: str
    amount_cents: int


def prepare(tx: Connection) -> None:
    """Create what is missing."""
    _METADATA.create_all(tx)
    if tx.scalar(_TILL) is None:
        tx.execute(_OPEN_TILL, {"name": TILL, "balance_cents": 0})


def open_wallets(tx: Connection, readers: Iterable[str]) -> None:
    """For readers who have none; else a wallet is opened by the first purchase."""
    known = set(tx.scalars(select(WALLETS.c.reader)))
    for reader in readers:
        if reader not in known:
            wallet = {"reader": reader, "opening_cents": OPENING_CENTS, "balance_cents": OPENING_CENTS}
            tx.execute(_OPEN_WALLET, wallet)


def charge(tx: Connection, order_id: str, reader: str, amount_cents: int, now_ms: int) -> int:
    """Move money from a reader to the till, once per order; the reader's balance after that.

    Raises Refusal if the order was charged differently before.
    """
    before = tx.execute(_FIND_CHARGE, {"order_id": order_id}).one_or_none()
    if before is not None:
        if (before.reader, before.amount_cents) != (reader, amount_cents):
            raise Refusal(
                Reason.ORDER_DIFFERS,
                f'order "{order_id}" was charged before: {before.amount_cents} cents to "{before.reader}", '
                f'not {amount_cents} to "{reader}"',
            )
        return int(before.balance_cents)
    left = tx.scalar(_DEBIT, {"of_reader": reader, "amount": amount_cents})
    if left is None:
        left = OPENING_CENTS - amount_cents
        tx.execute(_OPEN_WALLET, {"reader": reader, "opening_cents": OPENING_CENTS, "balance_cents": left})
    tx.execute(_CREDIT_TILL, {"amount": amount_cents})
    charged = {"order_id": order_id, "reader": reader, "amount_cents": amount_cents, "balance_cents": left}
    tx.execute(_CHARGE, {**charged, "at_ms": now_ms})
    return int(left)


def balance(tx: Connection, reader: str) -> int:
    """What a reader has, in cents."""
    found = tx.scalar(_BALANCE, {"reader": reader})
    return OPENING_CENTS if found is None else int(found)


def everything(tx: Connection) -> tuple[list[Wallet], int, list[Charge]]:
    """All wallets, what is in the till, all charges: for the audit."""
    wallets = [Wallet(row.reader, row.opening_cents, row.balance_cents) for row in tx.execute(select(WALLETS))]
    charges = [Charge(row.order_id, row.reader, row.amount_cents) for row in tx.execute(select(CHARGES))]
    return wallets, tx.scalar(_TILL) or 0, charges
