"""Five more ways of the same purchase: debit the reader, take the books from the shelf, credit the merchant. All or nothing, or so one hopes.

saga    act; undo what was done if a step is refused
tcc     set aside; then spend all of it, or give all of it back
outbox  take the books; what follows is written down with the order and will happen
xa      prepare in every database; then commit or roll back everywhere
naive   one call after the other, and hope

Each is a few lines: what they have in common is in `desk`, what makes them safe in the transactions library.
"""

from apps.bookstore.orders.purchase import Way
from apps.bookstore.orders.ways.desk import Desk
from apps.bookstore.orders.ways.naive import Naive
from apps.bookstore.orders.ways.outbox import Outbox
from apps.bookstore.orders.ways.saga import Saga
from apps.bookstore.orders.ways.tcc import Tcc
from apps.bookstore.orders.ways.xa import Xa


def way(name: str, desk: Desk) -> Way:
    """By its name. Raises KeyError."""
    kinds: dict[str, type[Saga | Tcc | Outbox | Xa | Naive]] = {
        "saga": Saga,
        "tcc": Tcc,
        "outbox": Outbox,
        "xa": Xa,
        "naive": Naive,
    }
    return kinds[name](desk)
