"""The shelf as a branch of a transaction: at once (pick, put back), or in two steps (reserve, then ship or release)."""

from typing import Final

from sqlalchemy import Connection, bindparam, select, update

from apps.bookstore import movements
from apps.bookstore.refusals import Reason, Refusal
from apps.bookstore.warehouse.shelf import SHELF

_COPIES: Final = select(SHELF.c.copies).where(SHELF.c.book == bindparam("book"))
_CHANGE: Final = (
    update(SHELF)
    .where(SHELF.c.book == bindparam("of_book"), SHELF.c.copies + bindparam("change") >= 0)
    .values(copies=SHELF.c.copies + bindparam("change"))
    .returning(SHELF.c.copies)
)


def pick(tx: Connection, order_id: str, book: str, copies: int) -> None:
    """Take copies and ship them. Raises Refusal."""
    _change(tx, book, -copies)
    movements.move(tx, order_id, "pick", book, free=-copies)


def put_back(tx: Connection, order_id: str, book: str, copies: int) -> None:
    """Take a pick back."""
    _change(tx, book, copies)
    movements.move(tx, order_id, "put back", book, free=copies)


def reserve(tx: Connection, order_id: str, book: str, copies: int) -> None:
    """Put copies aside. Raises Refusal."""
    _change(tx, book, -copies)
    movements.move(tx, order_id, "reserve", book, free=-copies, held=copies)


def ship(tx: Connection, order_id: str, book: str, copies: int) -> None:
    """Ship what was put aside."""
    movements.require_held(tx, order_id, book, copies)
    movements.move(tx, order_id, "ship", book, held=-copies)


def release(tx: Connection, order_id: str, book: str, copies: int) -> None:
    """Put back on the shelf what was put aside."""
    movements.require_held(tx, order_id, book, copies)
    _change(tx, book, copies)
    movements.move(tx, order_id, "release", book, free=copies, held=-copies)


def _change(tx: Connection, book: str, change: int) -> None:
    if tx.scalar(_CHANGE, {"of_book": book, "change": change}) is not None:
        return
    found = tx.scalar(_COPIES, {"book": book})
    if found is None:
        raise Refusal(Reason.NO_SUCH_BOOK, f'no book "{book}" in the catalogue')
    raise Refusal(Reason.SOLD_OUT, f'sold out: {-change} of "{book}" wanted, {found} on the shelf')
