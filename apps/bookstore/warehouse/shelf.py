"""What the warehouse keeps: the shelf, and for every order what it took from it, or why it got nothing."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    MetaData,
    Row,
    Table,
    Text,
    bindparam,
    insert,
    select,
    update,
)

from apps.bookstore.catalogue import Book
from apps.bookstore.database import INTEGER
from apps.bookstore.refusals import Reason, Refusal

FILE: Final = "warehouse.sqlite3"

_METADATA: Final = MetaData()
SHELF: Final = Table(
    "shelf",
    _METADATA,
    Column("book", Text, primary_key=True),
    Column("title", Text, nullable=False),
    Column("price_cents", INTEGER, nullable=False),
    Column("delivered", INTEGER, nullable=False),  # copies that were ever put on the shelf
    Column("copies", INTEGER, CheckConstraint("copies >= 0"), nullable=False),  # that are on it now
    sqlite_strict=True,
)
TAKINGS: Final = Table(
    "takings",
    _METADATA,
    Column("order_id", Text, primary_key=True),
    Column("book", Text, nullable=False),
    Column("copies", INTEGER, nullable=False),
    Column("amount_cents", INTEGER, nullable=False),
    Column("version", Text, nullable=False),
    Column("instance", Text, nullable=False),
    Column("refusal", Text, nullable=False),  # a Reason; empty if the copies were taken
    Column("explanation", Text, nullable=False),
    Column("at_ms", INTEGER, nullable=False),
    sqlite_strict=True,
)

# Statements are built once: building one costs twice what running it does.
_STOCK: Final = select(SHELF.c.copies, SHELF.c.price_cents).where(SHELF.c.book == bindparam("book"))
_REMOVE: Final = (
    update(SHELF)
    .where(SHELF.c.book == bindparam("of_book"), SHELF.c.copies >= bindparam("wanted"))
    .values(copies=SHELF.c.copies - bindparam("wanted"))
    .returning(SHELF.c.price_cents)
)
_DELIVER: Final = insert(SHELF)
_FIND: Final = select(TAKINGS).where(TAKINGS.c.order_id == bindparam("order_id"))
_ANSWER: Final = insert(TAKINGS)


@dataclass(frozen=True, slots=True)
class Keeper:
    """Which instance of the warehouse it is."""

    version: str
    instance: str


@dataclass(frozen=True, slots=True)
class Taking:
    """The first and only answer that an order gets."""

    order_id: str
    book: str
    copies: int
    amount_cents: int
    """0 if refused."""
    keeper: Keeper
    refusal: Reason | None
    explanation: str
    """Of the refusal."""


@dataclass(frozen=True, slots=True)
class Stock:
    """One title on the shelf."""

    copies: int
    price_cents: int


@dataclass(frozen=True, slots=True)
class Title:
    """One title, for the audit."""

    book: str
    delivered: int
    """Copies that were ever put on the shelf."""
    copies: int
    """That are on it now."""


def prepare(tx: Connection, books: Iterable[Book], copies: int) -> None:
    """Create what is missing; a title that is there already is not delivered again."""
    _METADATA.create_all(tx)
    known = set(tx.scalars(select(SHELF.c.book)))
    for book in books:
        if book.id not in known:
            title = {"book": book.id, "title": book.title, "price_cents": book.price_cents}
            tx.execute(_DELIVER, {**title, "delivered": copies, "copies": copies})


def take(tx: Connection, order_id: str, book: str, copies: int, keeper: Keeper, now_ms: int) -> Taking:
    """Take copies for an order, or record why not. Raises Refusal if the order took something else before.

    A refusal is an answer like any other, and recorded: whoever asked twice, because the first request seemed lost, must not
    be told "sold out" and get the books all the same when the first request arrives after all.
    """
    before = find(tx, order_id)
    if before is not None:
        if (before.book, before.copies) != (book, copies):
            raise Refusal(
                Reason.ORDER_DIFFERS,
                f'order "{order_id}" asked for {before.copies} of "{before.book}" before, not for {copies} of "{book}"',
            )
        return before
    taking = _decide(tx, order_id, book, copies, keeper)
    answer = {
        "order_id": order_id,
        "book": book,
        "copies": copies,
        "amount_cents": taking.amount_cents,
        "version": keeper.version,
        "instance": keeper.instance,
        "refusal": taking.refusal or "",
        "explanation": taking.explanation,
        "at_ms": now_ms,
    }
    tx.execute(_ANSWER, answer)
    return taking


def _decide(tx: Connection, order_id: str, book: str, copies: int, keeper: Keeper) -> Taking:
    price_cents = tx.scalar(_REMOVE, {"of_book": book, "wanted": copies})
    if price_cents is not None:
        return Taking(order_id, book, copies, price_cents * copies, keeper, None, "")
    found = stock(tx, book)
    if found is None:
        return Taking(order_id, book, copies, 0, keeper, Reason.NO_SUCH_BOOK, f'no book "{book}" in the catalogue')
    text = f'sold out: {copies} of "{book}" wanted, {found.copies} on the shelf'
    return Taking(order_id, book, copies, 0, keeper, Reason.SOLD_OUT, text)


def find(tx: Connection, order_id: str) -> Taking | None:
    """What an order was answered; None if it never asked."""
    row = tx.execute(_FIND, {"order_id": order_id}).one_or_none()
    return None if row is None else _taking(row)


def everything(tx: Connection) -> tuple[list[Title], list[Taking]]:
    """The whole warehouse, for the audit."""
    titles = [Title(row.book, row.delivered, row.copies) for row in tx.execute(select(SHELF).order_by(SHELF.c.book))]
    return titles, [_taking(row) for row in tx.execute(select(TAKINGS))]


def _taking(row: Row[*tuple[Any, ...]]) -> Taking:
    keeper = Keeper(row.version, row.instance)
    refusal = Reason(row.refusal) if row.refusal else None
    return Taking(row.order_id, row.book, row.copies, row.amount_cents, keeper, refusal, row.explanation)


def stock(tx: Connection, book: str) -> Stock | None:
    """What is on the shelf of a title; None if there is no such title."""
    row = tx.execute(_STOCK, {"book": book}).one_or_none()
    return None if row is None else Stock(row.copies, row.price_cents)
